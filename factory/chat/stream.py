"""Tokens to text, one by one."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_NOT_WHOLE = "\ufffd"  # what decoding shows for bytes that are no character, or not yet
_ENOUGH_BEFORE = 8  # tokens: a character and more


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Their text, special tokens left out and blanks left as they are."""
    text: str = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


class TextStream:
    """The text of a growing list of tokens, handed out as soon as it is certain.

    All pieces joined, `flush` last, are `decoded` of all tokens at once. A character of several tokens is
    held back until it is whole. What a token adds depends on its neighbours (a blank is dropped at the
    very beginning only), so it is read off a window that begins one piece earlier: constant time a token,
    however long the text.

    One exception: where a SentencePiece text ends within a character, decoding at once spoils the whole
    characters of bytes just before it too; here those were handed out, and stay.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = ()) -> None:
        """`before`: tokens that the text goes on from; they decide how it begins, and are not handed out."""
        self._tokenizer = tokenizer
        self._ids = list(before[-_ENOUGH_BEFORE:])
        self._window = 0  # where decoding begins
        self._told = len(self._ids)  # tokens whose text was handed out

    def push(self, token: int) -> str:
        """The text that has become certain with this token; empty while a character is not whole."""
        self._ids.append(token)
        known, text = self._known(), decoded(self._tokenizer, self._ids[self._window :])
        if len(text) <= len(known) or text.endswith(_NOT_WHOLE):
            return ""
        self._window, self._told = self._told, len(self._ids)
        return text[len(known) :]

    def flush(self) -> str:
        """What is still held back, as the tokenizer shows it."""
        known, text = self._known(), decoded(self._tokenizer, self._ids[self._window :])
        self._told = len(self._ids)
        return text[len(known) :]

    def _known(self) -> str:
        return decoded(self._tokenizer, self._ids[self._window : self._told])
