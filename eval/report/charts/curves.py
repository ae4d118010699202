"""Trainings as curves over the tokens they learned from: held-out overlap, modelled speedup, loss."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from eval.measurement import CHOOSE, MODEL
from eval.report.charts.field import Results, bests, looks
from eval.report.drawing.chart import Chart
from eval.report.drawing.labels import Box, Room, width_of
from eval.report.drawing.looks import Look
from eval.report.drawing.plane import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Plane, legend
from eval.report.drawing.svg import decade_ticks, drawing, fitted, group, line, path, si, spot, symbol, text, ticks
from eval.verdict.trainings import Training

MEANS = 12  # of a training's loss: what can be followed by eye through the noise of single steps
LONGEST = 40  # letters of a name

OVERLAP = """Held-out overlap, which is the acceptance to expect: each mark is a look at text that nothing was learned
from, and the look whose weights were kept has a ring. A dotted upright is where a drafter is distilled once more."""
WORTH = """The speedup that a drafter's sizes promise on the machine that trained it, were that overlap the acceptance;
dashed, what was measured here at its best k, on the prompts to choose by."""
LOSS = "Training loss: thin as it was, thick in means. Losses of different kinds do not compare."


@dataclass(frozen=True)
class Mark:
    """One point of a curve."""

    x: float
    y: float
    words: str
    kept: bool = False  # whether the weights of this look were kept


@dataclass(frozen=True)
class Curve:
    """One distillation of one drafter."""

    name: str
    look: Look
    stage: int
    marks: Sequence[Mark]
    noise: Sequence[tuple[float, float]] = ()  # what the marks are means of


@dataclass(frozen=True)
class Axes:
    """What a chart measures: its words, and how a value is written."""

    what: str
    form: str
    along: str = "trained tokens"
    log: bool = False  # where values span decades
    most: float = math.inf


@dataclass(frozen=True)
class Level:
    """A horizontal line, of a drafter or of the target."""

    y: float
    words: str
    colour: str


def training_charts(results: Results) -> list[Chart]:
    """Of an evaluation's drafters: as many of the three as their trainings told of."""
    found = results.get("trainings") or []
    styles = looks(results)
    return [
        Chart(name, title, svg, caption)
        for name, title, svg, caption in (
            ("overlap", "What training brought", overlap_chart(found, styles), OVERLAP),
            ("worth", "What that is worth", speedup_chart(found, styles, _measured(results, styles)), WORTH),
            ("loss", "What it learned by", loss_chart(found, styles), LOSS),
        )
        if svg
    ]


def _measured(results: Results, styles: dict[str, Look]) -> dict[str, Level]:
    """The best of each drafter on the prompts to choose by, as the verdict ranks them."""
    rows = [row for row in results["candidates"] if row["prompt_set"] == CHOOSE and row["drafter"] == MODEL]
    sound = bests([row for row in rows if row.get("matches_target") is not False])
    return {
        name: Level(row["speedup"], f"{name} measured {row['speedup']:.2f}x, k = {row['k']}", styles[name].colour)
        for name, row in sound.items()
    }


def overlap_chart(trainings: Sequence[Training], styles: dict[str, Look]) -> str:
    """Held-out overlap over trained tokens; nothing where nothing was held out."""
    axes = Axes("held-out overlap", "{:.3f}", most=1.0)
    return _chart("overlap", "What training brought", _looks(trainings, styles, "overlap"), (), axes)


def speedup_chart(trainings: Sequence[Training], styles: dict[str, Look], measured: dict[str, Level]) -> str:
    """Modelled speedup over trained tokens, and as a level what was `measured` of a drafter, by its name."""
    curves = _looks(trainings, styles, "speedup")
    present = dict.fromkeys(curve.name for curve in curves)
    levels = [Level(1.0, "target alone", "alone"), *(measured[name] for name in present if name in measured)]
    return _chart("worth", "What that is worth", curves, levels, Axes("modelled speedup", "{:.2f}x"))


def loss_chart(trainings: Sequence[Training], styles: dict[str, Look]) -> str:
    """Training loss over tokens, or over steps where an earlier version did not count them all."""
    counted = all(one["trained_tokens"] for one in trainings if one["losses"])
    curves = []
    for start, one in _one_behind_the_other(trainings, "trained_tokens" if counted else "steps"):
        place = _tokens_at(one) if counted else float
        points = [(start + place(step), loss) for step, loss in one["losses"]]
        if points:
            marks = _means(one, points, one["losses"])
            curves.append(Curve(one["artifact"], _look(styles, one), one["stage"], marks, points))
    values = [value for curve in curves for _, value in curve.noise]
    log = bool(values) and min(values) > 0 and max(values) > 10 * min(values)
    axes = Axes("training loss", "{:.3g}", "trained tokens" if counted else "optimizer steps", log)
    return _chart("loss", "What it learned by", curves, (), axes)


def _looks(trainings: Sequence[Training], styles: dict[str, Look], key: str) -> list[Curve]:
    """The curves of one figure of the looks, of those trainings that have it."""
    curves = []
    for start, one in _one_behind_the_other(trainings, "trained_tokens"):
        looks = [look for look in one["looks"] if look.get(key) is not None and look.get("tokens") is not None]
        marks = [
            Mark(start + look["tokens"], look[key], _words(one, look), look["step"] == one["kept_step"])
            for look in looks
        ]
        if marks:
            curves.append(Curve(one["artifact"], _look(styles, one), one["stage"], marks))
    return curves


def _one_behind_the_other(trainings: Sequence[Training], length: str) -> list[tuple[float, Training]]:
    """Where each begins: a drafter's second distillation where its first ended."""
    found = []
    ends: dict[str, float] = {}
    for one in sorted(trainings, key=lambda each: int(each["stage"])):
        start = ends.get(one["artifact"], 0.0)
        found.append((start, one))
        ends[one["artifact"]] = start + (one[length] or 0)
    return found


def _look(styles: dict[str, Look], one: Training) -> Look:
    return styles.get(one["artifact"], Look("alone"))


def _words(one: Training, look: Training) -> str:
    """A look in a sentence."""
    said = [f"{one['artifact']}, step {look['step']} of {one['steps']}, {si(look['tokens'], '').strip()} tokens"]
    said += [f"{name} {look[key]:.3f}" for key, name in _FIGURES if look.get(key) is not None]
    if look.get("speedup") is not None:
        k = f" at k = {look['k']}" if look.get("k") is not None else ""
        said.append(f"modelled {look['speedup']:.2f}x{k}")
    return f"{said[0]}: {', '.join(said[1:])}" + ("; kept" if look["step"] == one["kept_step"] else "")


_FIGURES = (("overlap", "overlap"), ("forward_kl", "forward KL"), ("loss", "training loss"))


def _tokens_at(one: Training) -> Callable[[float], float]:
    """Tokens learned from by a step: a straight line from look to look, which are where they were counted."""
    counted = {look["step"]: look["tokens"] for look in one["looks"] if look.get("tokens") is not None}
    known = sorted({0: 0, **counted, one["steps"]: one["trained_tokens"]}.items())

    def tokens(step: float) -> float:
        after = min(max(bisect_left(known, (step,)), 1), len(known) - 1)
        (left, low), (right, high) = known[after - 1], known[after]
        return float(low + (high - low) * (step - left) / (right - left))

    return tokens


def _means(one: Training, points: Sequence[tuple[float, float]], losses: Sequence[Sequence[float]]) -> list[Mark]:
    """The mean of every twelfth of the points, in its middle."""
    size = math.ceil(len(points) / MEANS)
    marks, before = [], 0.0
    for first in range(0, len(points), size):
        some, last = points[first : first + size], losses[first : first + size][-1][0]
        x, y = (sum(values) / len(some) for values in zip(*some, strict=True))
        steps = f"steps {before + 1:g} to {last:g}" if last > before + 1 else f"step {last:g}"
        marks.append(Mark(x, y, f"{one['artifact']}, {steps}: training loss {y:.3g}"))
        before = last
    return marks


def _chart(name: str, title: str, curves: Sequence[Curve], levels: Sequence[Level], axes: Axes) -> str:
    """Lines over tokens, and levels. Nothing where there are no curves."""
    if not curves:
        return ""
    values = [mark.y for curve in curves for mark in curve.marks] + [one.y for one in levels]
    values += [value for curve in curves for _, value in curve.noise]
    ends = [mark.x for curve in curves for mark in curve.marks] + [x for curve in curves for x, _ in curve.noise]
    named = {curve.name: curve.look for curve in curves}
    head, top = legend([(fitted(one, LONGEST), look) for one, look in named.items()])
    scaled = _Scaled(max(ends) or 1.0, values, axes, top)
    parts = [*head, *scaled.grid()]
    room = Room(scaled.plane.box)
    marks: list[str] = []
    for _, mine in groupby(sorted(curves, key=lambda one: one.name), key=lambda one: one.name):
        several = list(mine)
        for curve in several:
            places = [(scaled.x(mark.x), scaled.y(mark.y)) for mark in curve.marks]
            noise = path("noise", [(scaled.x(x), scaled.y(y)) for x, y in curve.noise]) if curve.noise else ""
            drawn = noise + (path("curve", places) if len(places) > 1 else "")
            parts.append(group(curve.look.colour, drawn))
            marks += [_marked(curve.look, mark, at) for mark, at in zip(curve.marks, places, strict=True)]
            for start, end in pairwise(places):
                room.line(start, end)
        marks += [_joint(scaled, before, after) for before, after in pairwise(several)]
    parts += [drawn for one in levels for drawn in _levelled(one, scaled, room)]
    parts.append(scaled.plane.foot(axes.along))
    said = [*(_said(curve, axes) for curve in curves), *(one.words for one in levels)]
    words = f"{axes.what} over {axes.along}: {'; '.join(said)}"
    return drawing(name, title, words, (WIDTH, HEIGHT + top), [*parts, *marks])


class _Scaled:
    """Where values lie on the drawing."""

    def __init__(self, end: float, values: Sequence[float], axes: Axes, top: float) -> None:
        self._axes, self._end = axes, end
        shown = [math.log10(value) if axes.log else value for value in values]
        margin = 0.08 * (max(shown) - min(shown)) or 0.1 * abs(shown[0]) or 0.1
        lowest = -math.inf if axes.log or min(values) < 0 else 0.0
        low, high = max(lowest, min(shown) - margin), min(axes.most, max(shown) + margin)
        # The last mark stands inside.
        self.plane = Plane(0.0, 1.015 * end, low, high, LEFT, top + 8, WIDTH - RIGHT, top + HEIGHT - BOTTOM)

    def x(self, along: float) -> float:
        """From tokens, or steps."""
        return self.plane.x(along)

    def y(self, value: float) -> float:
        """From a figure."""
        return self.plane.y(math.log10(value) if self._axes.log else value)

    def grid(self) -> list[str]:
        """Its lines and their figures."""
        low, high = self.plane.y_low, self.plane.y_high
        across = (
            decade_ticks(low, high, (1, 2, 5) if high - low < 2 else (1,)) if self._axes.log else ticks(low, high, 5)
        )
        unit = "x" if self._axes.form.endswith("x") else ""
        return self.plane.grid(
            across,
            ticks(0, self._end, 5),
            lambda one: f"{10**one if self._axes.log else one:g}{unit}",
            lambda one: si(one, "").strip(),
        )


def _levelled(one: Level, scaled: _Scaled, room: Room) -> list[str]:
    """A level and its name, on the left or the right, above it or below it, wherever nothing is."""
    y, plane, words = scaled.y(one.y), scaled.plane, fitted(one.words, LONGEST)
    kind, wide = ("even", width_of(words)) if one.colour == "alone" else ("level", width_of(words))
    drawn = group(one.colour, line(kind, plane.left, y, plane.right, y))
    for base in (y - 5, y + 14):
        for left in (plane.right - wide - 4, plane.left + 4):
            if room.take(Box(left, base - 10, left + wide, base + 2)):
                return [drawn, group(one.colour, text(left, base, words, kind="own"))]
    return [spot(one.colour, one.words, line(kind, plane.left, y, plane.right, y))]


def _marked(look: Look, mark: Mark, at: tuple[float, float]) -> str:
    """A point, with a ring where its weights were kept."""
    x, y = at
    ring = f'<circle class="kept" cx="{x:.1f}" cy="{y:.1f}" r="8"/>' if mark.kept else ""
    return spot(look.colour, mark.words, ring + symbol(look.shape, x, y, 3.5, look.kind))


def _joint(scaled: _Scaled, before: Curve, after: Curve) -> str:
    """Where one distillation of a drafter goes over into its next."""
    x = (scaled.x(before.marks[-1].x) + scaled.x(after.marks[0].x)) / 2
    low, high = sorted((scaled.y(before.marks[-1].y), scaled.y(after.marks[0].y)))
    words = f"{after.name}: stage {after.stage + 1} of its recipe distils again"
    return spot(after.look.colour, words, line("joint", x, low - 12, x, high + 12))


def _said(curve: Curve, axes: Axes) -> str:
    """A curve for who cannot see it: from where to where, and what was kept."""
    first, last = (axes.form.format(mark.y) for mark in (curve.marks[0], curve.marks[-1]))
    kept = [axes.form.format(mark.y) for mark in curve.marks if mark.kept]
    return f"{curve.name} from {first} to {last}" + (f", kept {kept[0]}" if kept else "")
