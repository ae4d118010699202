"""The pieces that every drawing is made of.

Colours and strokes come from the classes in `eval.report.drawing.palette`, so that a drawing follows light and dark on
the page and stands alone in a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from factory.wording import visible

LETTER = 0.58  # mean width of a letter, of its size


def drawing(name: str, title: str, words: str, size: tuple[float, float], parts: Sequence[str]) -> str:
    """An SVG of that many units. Its id is made of `name`; `words` say what it shows to who cannot see it."""
    width, height = size
    body, own = "".join(parts), f"plot-{name}"
    role = "group" if 'class="spot' in body else "img"
    return (
        f'<svg id="{own}" class="chart" viewBox="0 0 {width:g} {height:g}" role="{role}" '
        f'aria-labelledby="{own}-title" aria-describedby="{own}-words"><title id="{own}-title">{_words(title)}</title>'
        f'<desc id="{own}-words">{_words(words)}</desc>{body}</svg>'
    )


def spot(colour: str, words: str, drawn: str) -> str:
    """What can be pointed at and walked to: `words` on hover, on focus, and to a screen reader."""
    said = _words(words)
    return f'<g class="spot {colour}" tabindex="0" role="img" aria-label="{said}"><title>{said}</title>{drawn}</g>'


def group(colour: str, *parts: str) -> str:
    """Parts in the colour of a class."""
    return f'<g class="{colour}">{"".join(parts)}</g>'


def text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "") -> str:
    """A line of text; `kind` is its CSS class."""
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_words(words)}</text>'


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line of a CSS class."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def path(kind: str, points: Sequence[tuple[float, float]]) -> str:
    """Straight lines from point to point, of a CSS class."""
    return f'<polyline class="{kind}" points="{_points(points)}"/>'


def box(kind: str, x: float, y: float, width: float, height: float, more: str = "") -> str:
    """A rectangle of a CSS class; `more` are further attributes."""
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"{more}/>'


def whisker(x: float, low: float, high: float, kind: str = "interval") -> str:
    """An upright interval with short ends."""
    ends = [line(kind, x - 3, at, x + 3, at) for at in (low, high)]
    return line(kind, x, low, x, high) + "".join(ends)


SHAPES = ("circle", "square", "diamond", "up", "down")


def symbol(shape: str, x: float, y: float, radius: float, kind: str = "dot") -> str:
    """A mark of one of SHAPES, equally large to the eye."""
    if shape == "circle":
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'
    if shape == "line":  # of a legend
        return line("front", x - 1.4 * radius, y, x + 1.4 * radius, y)
    if shape == "square":
        half = 0.89 * radius
        return box(kind, x - half, y - half, 2 * half, 2 * half)
    corners = {
        "diamond": [(0, -1.28), (1.28, 0), (0, 1.28), (-1.28, 0)],
        "up": [(0, -1.3), (1.2, 0.85), (-1.2, 0.85)],
        "down": [(0, 1.3), (1.2, -0.85), (-1.2, -0.85)],
    }[shape]
    return f'<polygon class="{kind}" points="{_points([(x + radius * a, y + radius * b) for a, b in corners])}"/>'


def _words(words: str) -> str:
    """Text in a drawing: a control character in somebody's file name would make it no XML."""
    return escape(visible(words))


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


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
