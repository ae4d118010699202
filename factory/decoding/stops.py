"""Texts that end at a string: token by token, as plain decoding would have stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Token ids to text, special tokens left out or not as the caller pleases, blanks left as they are.
Decode = Callable[[Sequence[int]], str]

_NOT_WHOLE = "\ufffd"  # what decoding shows for bytes that are no character, or not yet
_LONGEST_CHARACTER = 4  # bytes of UTF-8, so at most as many tokens
_LONGEST_WAIT = 32  # tokens held back before what is surely no character is taken as it is


@dataclass(frozen=True)
class Stops:
    """Strings that end a text, and how its tokens are read.

    A text ends with the first token at which its decoded new tokens contain one of them. Raises
    ValueError for an empty string, which every text contains, and for one that holds U+FFFD, which
    stands for bytes that are no character yet.
    """

    strings: tuple[str, ...]
    decode: Decode

    def __post_init__(self) -> None:
        for string in self.strings:
            if not string or _NOT_WHOLE in string:
                raise ValueError(f"a stop string must have characters, and U+FFFD not among them; got {string!r}")

    def watch(self) -> StopWatch:
        """What looks out for them in one text."""
        return StopWatch(self)


class StopWatch:
    """Reads one text's new tokens as they come.

    What a token adds depends on its neighbours (a character may need several tokens; a blank may be
    dropped at the very beginning), so it is read off a window that begins one piece earlier: constant
    time a token, however long the text. Only as many characters are kept as the longest string has.
    """

    def __init__(self, stops: Stops) -> None:
        self._strings, self._decode = stops.strings, stops.decode
        self._kept = max(map(len, stops.strings), default=1) - 1
        self._window: list[int] = []  # tokens that decoding begins at
        self._told = 0  # of these, how many have their text in `_tail`
        self._tail = ""  # the end of the text that is certain

    def push(self, token: int) -> str | None:
        """The stop string that the text contains with this token, the earliest of several; None if it goes on."""
        self._window.append(token)
        known, text = self._decode(self._window[: self._told]), self._decode(self._window)
        new = self._tail + text[len(known) :]
        found = [(place, string) for string in self._strings if (place := new.find(string)) >= 0]
        if found:
            return min(found)[1]
        end = self._certain(text)
        if end > self._told:
            certain = text if end == len(self._window) else self._decode(self._window[:end])
            self._tail = (self._tail + certain[len(known) :])[-self._kept :] if self._kept else ""
            self._window, self._told = self._window[self._told :], end - self._told
        return None

    def _certain(self, text: str) -> int:
        """How many tokens of the window have a text that no later token will change."""
        size = len(self._window)
        if not text.endswith(_NOT_WHOLE):
            return size
        if size - self._told < _LONGEST_WAIT:
            return self._told
        # so many bytes are no character: but the last few may yet begin one
        for end in range(size - _LONGEST_CHARACTER + 1, size - 2 * _LONGEST_CHARACTER, -1):
            if text.startswith(self._decode(self._window[:end])):
                return end
        return self._told
