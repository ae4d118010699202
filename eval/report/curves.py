"""Trainings as curves over the tokens they learned from: held-out overlap, modelled speedup, loss."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise

from eval.report.plots import BOTTOM, HEIGHT, LEFT, RIGHT, SERIES, TOP, WIDTH, Level
from eval.report.svg import Room, decade_ticks, drawing, fitted, line, path, si, text, ticks
from eval.verdict.trainings import Training

MEANS = 12  # of a training's loss: what can be followed by eye through the noise of single steps
ABOVE, BELOW = (-9, -21, -33), (17, 29, 41)  # where a name's baseline may lie from the end of its line, in turn
ON_LEVEL = (-4, 12)
LONGEST = 34  # letters of a name


@dataclass(frozen=True)
class Mark:
    """One point of a curve."""

    x: float
    y: float
    words: str  # on hover
    kept: bool = False  # whether the weights of this look were kept


@dataclass(frozen=True)
class Curve:
    """One distillation of one drafter."""

    name: str
    series: int
    stage: int
    marks: Sequence[Mark]
    noise: Sequence[tuple[float, float]] = ()  # what the marks are means of


@dataclass(frozen=True)
class Axes:
    """What a chart measures: its words, how a value is written, and where a line's name stands best."""

    what: str
    form: str
    along: str = "trained tokens"
    rising: bool = True  # names stand above the ends of rising lines, and below those of falling ones
    most: float = math.inf


@dataclass(frozen=True)
class _Owned:
    """A level, and the drafter that it is of, if any."""

    level: Level
    name: str = ""
    series: int | None = None

    @property
    def words(self) -> str:
        return f"{self.name} {self.level.words}".strip()


def overlap_chart(trainings: Sequence[Training], names: Sequence[str]) -> str:
    """Held-out overlap over trained tokens; nothing where nothing was held out. `names` in the order of colours."""
    return _chart(_looks(trainings, names, "overlap"), (), Axes("held-out overlap", "{:.3f}", most=1.0))


def speedup_chart(trainings: Sequence[Training], names: Sequence[str], measured: dict[str, Level]) -> str:
    """Modelled speedup over trained tokens, and as a level what was `measured` of a drafter, by its name."""
    curves = _looks(trainings, names, "speedup")
    present = {curve.name: curve.series for curve in curves}
    levels = [_Owned(measured[name], name, series) for name, series in present.items() if name in measured]
    return _chart(curves, [_Owned(Level(1.0, "target alone")), *levels], Axes("modelled speedup", "{:.2f}x"))


def loss_chart(trainings: Sequence[Training], names: Sequence[str]) -> str:
    """Training loss over tokens, or over steps where an earlier version did not count them all."""
    counted = all(one["trained_tokens"] for one in trainings if one["losses"])
    axes = Axes("training loss", "{:.3g}", "trained tokens" if counted else "optimizer steps", rising=False)
    curves = []
    for start, one in _one_behind_the_other(trainings, "trained_tokens" if counted else "steps"):
        place = _tokens_at(one) if counted else float
        points = [(start + place(step), loss) for step, loss in one["losses"]]
        if points:
            marks = _means(one, points, one["losses"])
            curves.append(Curve(one["artifact"], _series(names, one), one["stage"], marks, points))
    return _chart(curves, (), axes)


def _looks(trainings: Sequence[Training], names: Sequence[str], key: str) -> list[Curve]:
    """The curves of one figure of the looks, of those trainings that have it."""
    curves = []
    for start, one in _one_behind_the_other(trainings, "trained_tokens"):
        looks = [look for look in one["looks"] if look.get(key) is not None and look.get("tokens") is not None]
        marks = [
            Mark(start + look["tokens"], look[key], _words(one, look), look["step"] == one["kept_step"])
            for look in looks
        ]
        if marks:
            curves.append(Curve(one["artifact"], _series(names, one), one["stage"], marks))
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


def _series(names: Sequence[str], one: Training) -> int:
    return list(names).index(one["artifact"]) if one["artifact"] in names else len(names)


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


def _chart(curves: Sequence[Curve], levels: Sequence[_Owned], axes: Axes) -> str:
    """Lines over tokens, and levels. Nothing where there are no curves."""
    if not curves:
        return ""
    values = [mark.y for curve in curves for mark in curve.marks] + [one.level.y for one in levels]
    values += [value for curve in curves for _, value in curve.noise]
    ends = [mark.x for curve in curves for mark in curve.marks] + [x for curve in curves for x, _ in curve.noise]
    log = not axes.rising and min(values) > 0 and max(values) > 10 * min(values)
    room, frame = Room(), _Frame(max(ends) or 1.0, values, axes.most, log)
    labels: list[str] = []
    lines = frame.grid(axes)
    marks: list[str] = []
    for curve in curves:
        for mark in curve.marks:
            room.take(frame.x(mark.x), frame.y(mark.y) + 4, "o")  # names keep out of the marks' way
    for one in levels:
        y = frame.y(one.level.y)
        kind = "level" if one.series is None else "level own"
        lines.append(_coloured(one.series, one.words, line(kind, LEFT, y, WIDTH - RIGHT, y)))
        places = [(x, y + offset) for offset in ON_LEVEL for x in (float(LEFT + 4), math.inf)]
        labels += _label(room, places, one.level.words, one.series)
    for name, group in groupby(sorted(curves, key=lambda one: (one.series, one.name)), key=lambda one: one.name):
        mine = list(group)
        for curve in mine:
            places = [(frame.x(mark.x), frame.y(mark.y)) for mark in curve.marks]
            noise = path("noise", [(frame.x(x), frame.y(y)) for x, y in curve.noise]) if curve.noise else ""
            drawn = noise + (path("curve", places) if len(places) > 1 else "")
            lines.append(_coloured(curve.series, name, drawn))
            marks += [_marked(curve.series, mark, at) for mark, at in zip(curve.marks, places, strict=True)]
        lines += [_joint(frame, before, after) for before, after in pairwise(mine)]
        last = mine[-1].marks[-1]
        x, y = frame.x(last.x), frame.y(last.y)
        offsets = zip(ABOVE, BELOW, strict=True) if axes.rising else zip(BELOW, ABOVE, strict=True)
        width = _width(name)
        labels += _label(room, [(x - width, y + one) for both in offsets for one in both], name, mine[-1].series)
    parts = [*lines, *labels, *marks]  # marks over the labels, whose halo would hide them
    parts.append(text((WIDTH + LEFT) / 2, HEIGHT - 6, axes.along, anchor="middle"))
    said = [*(_said(curve, axes) for curve in curves), *(one.words for one in levels if one.series is not None)]
    return drawing(WIDTH, HEIGHT, f"{axes.what} over {axes.along}: {'; '.join(said)}", parts)


class _Frame:
    """Where values lie on the drawing."""

    def __init__(self, end: float, values: Sequence[float], most: float, log: bool) -> None:
        self._log, self._end = log, end
        shown = [math.log10(value) if log else value for value in values]
        margin = 0.08 * (max(shown) - min(shown)) or 0.1 * abs(shown[0]) or 0.1
        lowest = -math.inf if log or min(values) < 0 else 0.0
        self._low, self._high = max(lowest, min(shown) - margin), min(most, max(shown) + margin)

    def x(self, along: float) -> float:
        """From tokens, or steps."""
        return LEFT + along / self._end * (WIDTH - LEFT - RIGHT - 6)  # the last mark stands inside

    def y(self, value: float) -> float:
        """From a figure."""
        shown = math.log10(value) if self._log else value
        return HEIGHT - BOTTOM - (shown - self._low) / (self._high - self._low) * (HEIGHT - TOP - BOTTOM)

    def grid(self, axes: Axes) -> list[str]:
        """Its lines and their figures."""
        parts = []
        marks = (1, 2, 5) if self._high - self._low < 2 else (1,)
        shown = decade_ticks(self._low, self._high, marks) if self._log else ticks(self._low, self._high, 5)
        for value in (10**one if self._log else one for one in shown):
            parts.append(line("grid", LEFT, self.y(value), WIDTH - RIGHT, self.y(value)))
            unit = "x" if axes.form.endswith("x") else ""
            parts.append(text(LEFT - 6, self.y(value) + 4, f"{value:g}{unit}", anchor="end"))
        foot = HEIGHT - BOTTOM + 16
        along = ticks(0, self._end, 5)
        return parts + [text(self.x(one), foot, si(one, "").strip(), anchor="middle") for one in along]


def _coloured(series: int | None, words: str, drawn: str) -> str:
    colour = f' style="--mark: var(--series-{series % SERIES})"' if series is not None else ""
    return f"<g{colour}><title>{escape(words)}</title>{drawn}</g>"


def _marked(series: int, mark: Mark, at: tuple[float, float]) -> str:
    """A point, with a ring where its weights were kept."""
    x, y = at
    ring = f'<circle class="kept" cx="{x:.1f}" cy="{y:.1f}" r="7"/>' if mark.kept else ""
    return _coloured(series, mark.words, f'{ring}<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')


def _joint(frame: _Frame, before: Curve, after: Curve) -> str:
    """Where one distillation of a drafter goes over into its next."""
    x = (frame.x(before.marks[-1].x) + frame.x(after.marks[0].x)) / 2
    low, high = sorted((frame.y(before.marks[-1].y), frame.y(after.marks[0].y)))
    words = f"{after.name}: stage {after.stage + 1} of its recipe distils again"
    return _coloured(after.series, words, line("joint", x, low - 12, x, high + 12))


def _width(words: str) -> float:
    return 6.2 * len(fitted(words, LONGEST))


def _label(room: Room, places: Sequence[tuple[float, float]], words: str, series: int | None) -> list[str]:
    """A name at the first of those left ends that is free, moved sideways into the drawing; none where none is."""
    said, width = fitted(words, LONGEST), _width(words)
    for left, base in places:
        middle = min(max(left, LEFT + 4), WIDTH - RIGHT - width) + width / 2
        if TOP <= base <= HEIGHT - BOTTOM and room.take(middle, base, said):
            drawn = text(middle, base, said, anchor="middle", kind="" if series is None else "own")
            return [drawn if series is None else _coloured(series, words, drawn)]
    return []


def _said(curve: Curve, axes: Axes) -> str:
    """A curve for who cannot see it: from where to where, and what was kept."""
    first, last = (axes.form.format(mark.y) for mark in (curve.marks[0], curve.marks[-1]))
    kept = [axes.form.format(mark.y) for mark in curve.marks if mark.kept]
    return f"{curve.name} from {first} to {last}" + (f", kept {kept[0]}" if kept else "")
