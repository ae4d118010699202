"""What a drafter's size, or its cost, buys: every drafter at its best k, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from eval.measurement import MODEL
from eval.report.charts.field import Results, bests, chosen_from, high, looks, lossless, low
from eval.report.drawing.chart import Chart
from eval.report.drawing.labels import Box, Room, width_of
from eval.report.drawing.looks import Look
from eval.report.drawing.plane import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Plane, floor_of, legend, speedup_ticks
from eval.report.drawing.svg import (
    decade_ticks,
    drawing,
    fitted,
    group,
    line,
    path,
    si,
    spot,
    symbol,
    text,
    ticks,
    whisker,
)
from eval.verdict.rows import Row, drafter_name, interval

SLOT = 46.0  # on the left of a logarithmic axis: what has no weights
LONGEST = 26  # letters of a name
TICK = 46.0  # what a size below the axis needs


@dataclass(frozen=True)
class Point:
    """One (drafter, k): a speedup and its interval over what it takes; `best` of its drafter."""

    name: str
    k: int | str
    x: float
    y: float
    low: float
    high: float
    best: bool
    sound: bool  # whether its output was the target's own
    words: str


def size_chart(results: Results) -> Chart | None:
    """Speedup over bytes on disk; None where no drafter has weights."""
    caption = """Up is faster, left is smaller. Each drafter at its best k, with its 95 % interval, on the prompts to
choose by; smaller marks are its other k. The line is the Pareto front: nothing measured is both smaller and faster
than a drafter on it, prompt lookup and no drafter at all included. What it passes over is dimmed."""
    points = _points(results, "bytes_on_disk", lambda row: si(row["bytes_on_disk"], "B") + " on disk")
    return _chart(results, points, "size", "What size buys", "bytes of the drafter on disk", caption, log=True)


def cost_chart(results: Results) -> Chart | None:
    """Speedup over c, the bytes of a draft step / those of a target step; None where no drafter has weights."""
    caption = """The same over what a drafted token costs: c, the bytes that a draft step reads / those of a step of the
target. Prompt lookup reads none. What a step costs besides its bytes stands under "Forecast and measured"."""
    points = _points(results, "cost_ratio", lambda row: f"c {row['cost_ratio']:.3f}")
    title, along = "What cost per drafted token buys", "c: bytes of a draft step / bytes of a target step"
    return _chart(results, points, "cost", title, along, caption, log=False)


def _points(results: Results, key: str, say: Callable[[Row], str]) -> list[Point]:
    rows = chosen_from(results)
    best = bests(rows)
    found = []
    for row in rows:
        name = drafter_name(row)
        if row["drafter"] == MODEL and row.get(key) is None:
            continue
        cost = say(row) if row["drafter"] == MODEL else "no weights"
        words = f"{name}, k = {row['k']}, {cost}: {interval(row)}"
        x = float(row[key]) if row["drafter"] == MODEL else 0.0
        mine = best[name] is row
        sound = lossless(row)
        said = words if sound else f"{words}; its output was not the target's own"
        found.append(Point(name, row["k"], x, row["speedup"], low(row), high(row), mine, sound, said))
    return found


def front(points: Sequence[Point]) -> list[Point]:
    """Those that nothing else passes over: each faster than all that take no more, and than the target alone.

    From the smallest on. What is not lossless has no part in it.
    """
    found: list[Point] = []
    most = 1.0
    for point in sorted((one for one in points if one.sound), key=lambda one: (one.x, -one.y)):
        if point.y > most:
            found.append(point)
            most = point.y
    return found


def _chart(
    results: Results, points: Sequence[Point], name: str, title: str, along: str, caption: str, *, log: bool
) -> Chart | None:
    if not any(point.x > 0 for point in points):
        return None
    styles = looks(results)
    shown = [one for one in styles if any(point.name == one for point in points)]
    head, top = legend([*((fitted(one, 40), styles[one]) for one in shown), ("Pareto front", Look("alone", "line"))])
    axis = _Logarithmic(points) if log else _Linear(points)
    on_front = front(points)
    parts = [*head, *_drawn(points, on_front, styles, axis, top, along)]
    said = "; ".join(point.words + (", on the front" if point in on_front else "") for point in points if point.best)
    words = f"Speedup over {along}: {said}"
    return Chart(name, title, drawing(name, title, words, (WIDTH, HEIGHT + top), parts), caption)


class _Linear:
    """From 0 on."""

    def __init__(self, points: Sequence[Point]) -> None:
        most = max(point.x for point in points)
        self.low, self.high = -0.06 * most, 1.35 * most
        self.marks = [(one, f"{one:g}") for one in ticks(0, self.high, 5)]

    def place(self, value: float) -> float:
        """Where a figure lies."""
        return value


class _Logarithmic:
    """Sizes that span decades, with a place of its own for what has no size."""

    def __init__(self, points: Sequence[Point]) -> None:
        shown = [math.log10(point.x) for point in points if point.x > 0]
        low, high = min(shown) - 0.3, max(shown) + 0.35
        nothing = any(point.x == 0 for point in points)
        self._zero = low - 0.12 * (high - low)
        self.low, self.high = (low - 0.2 * (high - low) if nothing else low), high
        self.marks = [(one, si(10**one, "B")) for one in _thinned(low, high, TICK / (WIDTH - LEFT - RIGHT))]
        if nothing:
            self.marks.insert(0, (self._zero, "none"))

    def place(self, value: float) -> float:
        """Where a size lies."""
        return math.log10(value) if value > 0 else self._zero


def _thinned(low: float, high: float, share: float) -> list[float]:
    """Round sizes, the roundest first, none nearer to another than that share of the axis."""
    found: list[float] = []
    for marks in ((1,), (2, 5), (1.5, 3, 7), (2.5, 4, 6, 8)):
        for one in decade_ticks(low, high, marks):
            if all(abs(one - other) >= 1.3 * share * (high - low) for other in found):
                found.append(one)
    return sorted(found)


def _drawn(
    points: Sequence[Point],
    on_front: Sequence[Point],
    styles: dict[str, Look],
    axis: _Linear | _Logarithmic,
    top: float,
    along: str,
) -> list[str]:
    most = max([1.1, *(point.high if point.best else point.y for point in points)])
    floor = floor_of(min(point.low if point.best else point.y for point in points))
    edge, base = WIDTH - RIGHT, top + HEIGHT - BOTTOM
    plane = Plane(axis.low, axis.high, floor, floor + 1.08 * (most - floor), LEFT, top + 8, edge, base)
    named = dict(axis.marks)
    parts = plane.grid(speedup_ticks(plane.y_high, floor), list(named), lambda one: f"{one:g}x", named.__getitem__)
    parts += [plane.foot(along), group("alone", line("even", LEFT, plane.y(1.0), edge, plane.y(1.0)))]
    at = [(plane.x(axis.place(point.x)), plane.y(point.y)) for point in points]
    room = Room(plane.box)
    for point, (x, y) in zip(points, at, strict=True):
        room.mark(x, y, 6 if point.best else 4)
        if point in on_front:
            room.block(x - 3, plane.y(point.low), x + 3, plane.y(point.high))
    steps = _staircase([at[points.index(point)] for point in on_front], plane)
    for start, end in pairwise(steps):
        room.line(start, end)
    # Names of the front first, then what it passes over; where nothing is free, pointing at the mark says it.
    told = [one for one in points if one in on_front or (one.best and not styles[one.name].control)]
    named_points = sorted(told, key=lambda one: one not in on_front)
    labels = []
    for point in named_points:
        x, y = at[points.index(point)]
        words, kind = f"{fitted(point.name, LONGEST)}, k={point.k}", "own" if point in on_front else "faint"
        label = room.label(x, y, words, kind, far=True)
        labels.append(group(styles[point.name].colour, label or ""))
    parts += [_alone(plane, room), path("front", steps) if on_front else ""]
    order = sorted(range(len(points)), key=lambda i: (points[i] in on_front, points[i].best))
    marks = [_mark(points[i], styles[points[i].name], at[i], plane, points[i] in on_front) for i in order]
    return [*parts, *labels, *marks]


def _staircase(corners: Sequence[tuple[float, float]], plane: Plane) -> list[tuple[float, float]]:
    """Along the front from the left edge at the target's own speed to the right edge."""
    steps = [(plane.left, plane.y(1.0))]
    for x, y in corners:
        steps += [(x, steps[-1][1]), (x, y)]
    return [*steps, (plane.right, steps[-1][1])]


def _alone(plane: Plane, room: Room) -> str:
    """The name of the line at 1."""
    wide, y = width_of("target alone", 11), plane.y(1.0)
    for base in (y + 13, y - 6):
        for left in (plane.right - wide, plane.left + 4):
            if room.take(Box(left, base - 10, left + wide, base + 2)):
                return text(left, base, "target alone", kind="faint")
    return ""


def _mark(point: Point, look: Look, at: tuple[float, float], plane: Plane, on_front: bool) -> str:
    """A drafter's best with its interval; its other k small. Dimmed where the front passes over it."""
    x, y = at
    if not point.sound:
        drawn = line("thin", x - 4, y - 4, x + 4, y + 4) + line("thin", x - 4, y + 4, x + 4, y - 4)
        return spot("bad", point.words, drawn)
    if point.best:
        drawn = whisker(x, plane.y(point.low), plane.y(point.high)) + symbol(look.shape, x, y, 5.5, look.kind)
    else:
        drawn = symbol(look.shape, x, y, 3, look.kind)
    return spot(look.colour if on_front else f"{look.colour} dimmed", point.words, drawn)
