"""Labels that keep out of each other's way, and out of the way of marks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eval.report.drawing.svg import LETTER, line, text

SIZE = 12.0


def width_of(words: str, size: float = SIZE) -> float:
    """How wide a text is, letters taken for a little wider than they are on average."""
    return len(words) * size * LETTER


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Those places, moved as little as needed to lie `gap` apart within [low, high]; too many of them lie nearer."""
    if not places:
        return []
    order = sorted(range(len(places)), key=lambda i: places[i])
    gap = min(gap, (high - low) / max(1, len(places) - 1))
    found: list[float] = []
    for i in order:
        found.append(max(places[i], low, found[-1] + gap if found else low))
    limit = high
    for i in range(len(found) - 1, -1, -1):
        found[i] = min(found[i], limit)
        limit = found[i] - gap
    moved = [0.0] * len(places)
    for i, place in zip(order, found, strict=True):
        moved[i] = place
    return moved


@dataclass(frozen=True)
class Box:
    """A rectangle that something stands in."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two have a point in common."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


class Room:
    """What is taken of a drawing, and labels that go where nothing is."""

    def __init__(self, within: Box) -> None:
        self._within = within
        self._taken: list[Box] = []

    def block(self, left: float, top: float, right: float, bottom: float) -> None:
        """Nothing is written there."""
        self._taken.append(Box(min(left, right), min(top, bottom), max(left, right), max(top, bottom)))

    def mark(self, x: float, y: float, radius: float = 5.0) -> None:
        """A mark stands there."""
        self.block(x - radius, y - radius, x + radius, y + radius)

    def line(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """A line leads from there to there."""
        steps = 1 + int(math.dist(start, end) / 6)
        for place in range(steps + 1):
            share = place / steps
            self.mark(start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]), 3)

    def take(self, box: Box) -> bool:
        """Whether nothing is in it and it lies within the drawing; if so it is taken."""
        inside = (
            self._within.left <= box.left
            and box.right <= self._within.right
            and self._within.top <= box.top
            and box.bottom <= self._within.bottom
        )
        if not inside or any(box.meets(other) for other in self._taken):
            return False
        self._taken.append(box)
        return True

    def label(self, x: float, y: float, words: str, kind: str, *, far: bool = False) -> str | None:
        """The text beside the mark at (x, y), nearest place first; with a line to it where that is not beside it.

        None where nothing is free; `far` searches the whole drawing first.
        """
        wide, high = width_of(words), SIZE + 1
        for left, middle in _around(x, y, wide, far):
            found = Box(left - 1, middle - high / 2, left + wide + 1, middle + high / 2)
            if self.take(found):
                return _led(x, y, found) + _beside(x, found, words, kind)
        return None


def _around(x: float, y: float, wide: float, far: bool) -> Iterator[tuple[float, float]]:
    """Left ends and middles of a label: right, left, above, below, then on growing rings."""
    yield from ((x + 9, y), (x - 9 - wide, y), (x - wide / 2, y - 15), (x - wide / 2, y + 15))
    yield from ((x + 7, y - 12), (x + 7, y + 12), (x - 7 - wide, y - 12), (x - 7 - wide, y + 12))
    for distance in range(24, 190 if far else 64, 10):
        for turn in (0, -1, 1, -2, 2, -3, 3, 4):
            a, b = distance * math.cos(turn * math.pi / 4), distance * math.sin(turn * math.pi / 4)
            yield (x + a if a > 1 else x + a - wide if a < -1 else x - wide / 2), y + b


def _beside(x: float, found: Box, words: str, kind: str) -> str:
    """The text in its box, at the end that is nearer to the mark: letters are seldom as wide as they are taken for."""
    base = (found.top + found.bottom) / 2 + 0.35 * SIZE
    if found.left >= x:
        return text(found.left + 1, base, words, kind=kind)
    if found.right <= x:
        return text(found.right - 1, base, words, anchor="end", kind=kind)
    return text((found.left + found.right) / 2, base, words, anchor="middle", kind=kind)


def _led(x: float, y: float, found: Box) -> str:
    """A thin line from the mark to a label that lies off."""
    a = min(max(x, found.left), found.right)
    b = min(max(y, found.top + 2), found.bottom - 2)
    length = math.hypot(a - x, b - y)
    if length < 14:
        return ""
    start = 6 / length
    return line("leader", x + start * (a - x), y + start * (b - y), a, b)
