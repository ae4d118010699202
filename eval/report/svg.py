"""The pieces that every drawing is made of: SVG text, ticks, labels that keep out of each other's way.

Colours come from the page's CSS, so that a drawing follows light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape


def drawing(width: float, height: float, words: str, parts: Sequence[str]) -> str:
    """An SVG of that many units; `words` say to who cannot see it what it shows."""
    body = "".join(parts)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(words)}">{body}</svg>'


def text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "") -> str:
    """A line of text; `kind` is its CSS class."""
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line of a CSS class."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def path(kind: str, points: Sequence[tuple[float, float]]) -> str:
    """Straight lines from point to point, of a CSS class."""
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between low and high, roughly `about` of them."""
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first = math.ceil(low / step)
    return [round(step * i, 10) for i in range(first, math.floor(high / step) + 1)]


def decade_ticks(low: float, high: float, marks: Sequence[float] = (1, 2, 5)) -> list[float]:
    """log10 of `marks` times powers of ten, between low and high, both of them log10."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [power + math.log10(mark) for power in powers for mark in marks]
    return [place for place in found if low <= place <= high]


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


class Room:
    """Where texts lie already: for labels that go only where nothing is in their way."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float]] = []  # left, right, baseline

    def take(self, x: float, y: float, words: str) -> bool:
        """Whether a text whose middle is at x, on the baseline y, is in nobody's way; if so its place is taken."""
        half, height = len(words) * 6.2 / 2, 11.0  # of the page's 11 px letters, wide ones among them
        if any(x - half < right and left < x + half and abs(y - base) < height for left, right, base in self._taken):
            return False
        self._taken.append((x - half, x + half, y))
        return True


def si(value: float, unit: str) -> str:
    """2500000 -> '2.5 M' and the unit, in powers of a thousand."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} P{unit}"


def fitted(words: str, most: int) -> str:
    """At most so many characters; what is left out is the middle, since names often differ at their ends."""
    if len(words) <= most:
        return words
    head = (most - 1) // 3
    return f"{words[:head]}…{words[len(words) - (most - 1 - head) :]}"
