"""What a size or a cost buys, and how long accepted runs are: as SVG for the page, and as PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from eval.report.svg import Room, apart, decade_ticks, drawing, line, si, text, ticks

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 14, 44
SERIES = 6  # colours in the page's CSS: --series-0 ...


@dataclass(frozen=True)
class Point:
    """One (drafter, k): a speedup and its interval over some cost."""

    x: float
    y: float
    low: float
    high: float
    series: int
    label: str  # beside the mark: the k
    words: str  # on hover


@dataclass(frozen=True)
class Level:
    """A horizontal line."""

    y: float
    words: str


def scatter(points: Sequence[Point], levels: Sequence[Level], x_title: str, *, log: bool) -> str:
    """Speedup over a cost, with intervals; `log` for sizes that span decades."""
    if not points:
        return "<p>No drafter with a size of its own was measured.</p>"
    shown = [math.log10(point.x) if log else point.x for point in points]
    # A cost begins at 0, a size half a decade below the smallest: one drafter alone still has a scale around it.
    x_low, x_high = (min(shown) - 0.5, max(shown) + 0.5) if log else (0.0, 1.25 * max(shown))
    y_high = 1.08 * max([1.1, *(point.high for point in points), *(level.y for level in levels)])

    def x(value: float) -> float:
        return LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / y_high * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value in ticks(0, y_high, 6):
        parts.append(line("grid", LEFT, y(value), WIDTH - RIGHT, y(value)))
        parts.append(text(LEFT - 6, y(value) + 4, f"{value:g}x", anchor="end"))
    for value in decade_ticks(x_low, x_high) if log else ticks(x_low, x_high, 5):
        words = si(10**value, "B") if log else f"{value:g}"
        parts.append(text(x(value), HEIGHT - BOTTOM + 16, words, anchor="middle"))
    names = apart([y(level.y) - 4 for level in levels], 12, TOP, HEIGHT - BOTTOM)
    for level, name in zip(levels, names, strict=True):
        parts.append(line("level", LEFT, y(level.y), WIDTH - RIGHT, y(level.y)))
        parts.append(text(LEFT + 4, name, level.words))  # on the left: few drafters cost nearly nothing
    room, marks = Room(), []
    for point, value, aside in zip(points, shown, _asides(points), strict=True):
        at = x(value) + 24 * aside
        colour = f'style="--mark: var(--series-{point.series % SERIES})"'
        mark = line("interval", at, y(point.low), at, y(point.high))
        mark += f'<circle class="mark" cx="{at:.1f}" cy="{y(point.y):.1f}" r="4"/>'
        places = (y(point.high) - 5, y(point.low) + 13)  # where both are taken, hovering says it
        free = next((place for place in places if room.take(at, place, point.label)), None)
        if free is not None:
            parts.append(text(at, free, point.label, anchor="middle"))
        marks.append(f"<g {colour}><title>{escape(point.words)}</title>{mark}</g>")
    parts += marks  # over the labels, whose halo would hide them
    parts.append(text((WIDTH + LEFT) / 2, HEIGHT - 6, x_title, anchor="middle"))
    said = "; ".join(point.words for point in points)
    return drawing(WIDTH, HEIGHT, f"speedup over {x_title}: {said}", parts)


def histogram(counts: Sequence[int], title: str, series: int) -> str:
    """Share of rounds by accepted length; counts[n] rounds accepted n tokens."""
    total = sum(counts) or 1
    width, height, base = 180, 110, 84
    slot = (width - 8) / max(1, len(counts))
    parts = [f'<text class="title" x="4" y="12">{escape(title)}</text>']
    for length, count in enumerate(counts):
        share = count / total
        bar, left, middle = share * (base - 30), 5 + length * slot, 4 + (length + 0.5) * slot
        words = f"{length} accepted: {count} rounds, {share:.0%}"
        parts += [
            f'<g style="--mark: var(--series-{series % SERIES})"><title>{words}</title>',
            f'<rect class="bar" x="{left:.1f}" y="{base - bar:.1f}" width="{slot - 2:.1f}" height="{bar:.1f}"/></g>',
            f'<text x="{middle:.1f}" y="{base + 14}" text-anchor="middle">{length}</text>',
        ]
        if slot > 18:
            parts.append(f'<text x="{middle:.1f}" y="{base - bar - 3:.1f}" text-anchor="middle">{share:.0%}</text>')
    parts.append(f'<line class="axis" x1="4" x2="{width - 4}" y1="{base}" y2="{base}"/>')
    return drawing(width, height, title, parts)


def png(points: Sequence[Point], names: Sequence[str], levels: Sequence[Level], x_title: str, path: Path) -> None:
    """The scatter for a README or a slide."""
    from matplotlib.figure import Figure  # takes most of a second to import

    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    width = 1.25 * max((point.x for point in points), default=1.0)
    placed = [(point, point.x + 0.04 * width * aside) for point, aside in zip(points, _asides(points), strict=True)]
    for series, name in enumerate(names):
        mine = [(point, x) for point, x in placed if point.series == series]
        if mine:
            errors = ([p.y - p.low for p, _ in mine], [p.high - p.y for p, _ in mine])
            axes.errorbar([x for _, x in mine], [p.y for p, _ in mine], yerr=errors, fmt="o", capsize=3, label=name)
    for point, at in placed:
        axes.annotate(point.label, (at, point.high), textcoords="offset points", xytext=(0, 3), ha="center", fontsize=7)
    for level in levels:
        axes.axhline(level.y, linewidth=1, linestyle="--", color="grey")
        axes.annotate(
            level.words, (1, level.y), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7
        )
    axes.set(xlabel=x_title, ylabel="measured speedup", xlim=(0, width), ylim=(0, None))
    if points:
        axes.legend(fontsize=8)
    figure.savefig(path)


def _asides(points: Sequence[Point]) -> list[float]:
    """Steps to the side for marks that share their x (one drafter, several k), so that no interval hides another."""
    places = [sum(other.x == point.x for other in points[:i]) for i, point in enumerate(points)]
    shares = [sum(other.x == point.x for other in points) for point in points]
    return [place - (share - 1) / 2 for place, share in zip(places, shares, strict=True)]
