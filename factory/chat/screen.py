"""Text on a terminal, or in a pipe: answers on one stream, everything said about them on the other."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from typing import TextIO

from factory.chat.answer import Origin, Piece

_COLOURS = {Origin.ACCEPTED: "32", Origin.CORRECTED: "33", Origin.BONUS: "36", Origin.PLAIN: "0"}
_WORDS = {
    Origin.ACCEPTED: "drafted, and the target agreed",
    Origin.CORRECTED: "the target's own after a refused guess",
    Origin.BONUS: "its own after all guesses stood",
    Origin.PLAIN: "nothing was drafted",
}
_DIM, _RESET = "2", "\033[0m"
_LEAST_ROWS, _LEAST_COLUMNS = 6, 20  # of a terminal that is given a status line
_LIVE_EVERY_S = 0.1
# What a model writes must not steer a terminal: control characters are shown by their pictures, U+2400 and on.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_PICTURES |= dict.fromkeys(range(128, 160), 0xFFFD)


def is_styled(out: TextIO) -> bool:
    """Whether colours and a status line may be drawn there: a terminal that can, and no NO_COLOR (no-color.org)."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


class Screen:
    """Draws answers as they come. Styled: each token in the colour of its origin, and a live status in the last row.

    The status row is kept by a scroll region (DECSTBM) while an answer is written, and given back after it.
    """

    def __init__(self, out: TextIO, notes: TextIO, styled: bool) -> None:
        """`out` gets what is written, `notes` what is said about it."""
        self.styled = styled
        self._out, self._notes = out, notes
        self._pictures = _PICTURES if out.isatty() else {}
        self._colour = _RESET
        self._column_0 = True  # nothing stands in the present line
        self._rows = 0  # of the terminal, while a status row is kept
        self._drawn_s = 0.0

    def note(self, text: str) -> None:
        """Something about the conversation."""
        self._say(f"\033[{_DIM}m{text}{_RESET}" if self.styled else text)

    def legend(self) -> None:
        """What the colours mean; nothing where there are none."""
        if self.styled:
            self._say(" · ".join(f"\033[{_COLOURS[origin]}m{_WORDS[origin]}{_RESET}" for origin in Origin))

    def begin(self, before: str = "") -> None:
        """An answer begins; `before` is the text that it goes on from, shown on terminals only."""
        if not self.styled:
            return
        size = shutil.get_terminal_size()
        if size.lines >= _LEAST_ROWS and size.columns >= _LEAST_COLUMNS:
            self._rows, self._drawn_s = size.lines, 0.0
            # one line down and up makes room where the cursor is in the last row; setting the region moves it home
            self._put(f"\n\0337\033[1;{self._rows - 1}r\0338\033[1A")
        if before:
            self._put(f"\033[{_DIM}m{before.translate(self._pictures)}{_RESET}")
            self._column_0 = before.endswith("\n")

    def show(self, pieces: Sequence[Piece]) -> None:
        """Append to the answer."""
        text = ""
        for piece in pieces:
            colour = f"\033[{_COLOURS[piece.origin]}m"
            if self.styled and colour != self._colour:
                self._colour = colour
                text += colour
            text += piece.text.translate(self._pictures)
        if text:
            self._put(text)
            self._column_0 = text.endswith("\n")

    def live(self, line: str) -> None:
        """Draw a status under the answer, where a row is kept for it, some times a second."""
        now_s = time.monotonic()
        if not self._rows or now_s - self._drawn_s < _LIVE_EVERY_S:
            return
        self._drawn_s = now_s
        size = shutil.get_terminal_size()
        if size.lines != self._rows:  # resized: no status row until the next answer
            self._rows = 0
            self._put("\0337\033[r\0338")
            return
        self._put(f"\0337\033[{self._rows};1H\033[0;{_DIM}m\033[2K{line[: size.columns - 1]}{_RESET}\0338")

    def end(self) -> None:
        """The answer is over: plain colour, no status row, a line of its own for what follows."""
        if self.styled:
            self._put(_RESET)
            self._colour = _RESET
        if self._rows:
            self._put(f"\0337\033[r\033[{self._rows};1H\033[2K\0338")
            self._rows = 0
        self._end_line()

    def interrupted(self) -> None:
        """Somebody pressed Ctrl-C, and the terminal has shown that in the present line."""
        self._column_0 = False

    def _end_line(self) -> None:
        if not self._column_0:
            self._put("\n")
            self._column_0 = True

    def _say(self, text: str) -> None:
        self._end_line()
        self._notes.write(text + "\n")
        self._notes.flush()

    def _put(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
