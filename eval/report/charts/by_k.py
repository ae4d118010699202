"""Speedup by k: a line for each drafter, with its intervals, and the levels that a drafter has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from eval.measurement import AUTO, PROMPT_LOOKUP
from eval.report.charts.field import Results, bests, chosen_from, confirmed, high, looks, low
from eval.report.drawing.chart import Chart
from eval.report.drawing.labels import SIZE, apart, width_of
from eval.report.drawing.looks import ALONE, LOOKUP, Look
from eval.report.drawing.plane import BOTTOM, HEIGHT, LEFT, WIDTH, Plane, floor_of, legend, speedup_ticks
from eval.report.drawing.svg import box, drawing, fitted, group, line, path, spot, symbol, text, whisker
from eval.verdict.rows import Row, drafter_name, interval

LONGEST = 18  # letters of a name beside the end of its line
ASIDE = 5.0  # between marks of one k, where there is room for that
_LEVELS = ("alone", "lookup")  # the colours of what is to be beaten


def k_chart(results: Results) -> Chart | None:
    """None where nothing drafted."""
    rows = chosen_from(results)
    if not rows:
        return None
    caption = """Tokens proposed a round, on the prompts to choose by; suites and temperatures pooled, bars are 95 %
intervals. The dashed level is prompt lookup at its best k, the solid line the target alone. A cross in a drafter's
colour is a choice measured again on fresh prompts: the verdict is made of those."""
    styles = looks(results)
    names = list(dict.fromkeys(map(drafter_name, rows)))
    head, top = legend([(fitted(name, 40), styles[name]) for name in styles if name in names])
    title = "Speedup by k"
    said = "; ".join(_words(row) for row in rows)
    parts = [*head, *_drawn(rows, confirmed(results), styles, top)]
    drawn = drawing("by-k", title, f"Speedup over tokens proposed a round: {said}", (WIDTH, HEIGHT + top), parts)
    return Chart("by-k", title, drawn, caption)


def _words(row: Row, fresh: bool = False) -> str:
    again = f", again on {row['prompts']} fresh prompts" if fresh else ""
    return f"{drafter_name(row)}, k = {row['k']}{again}: {interval(row)}"


def _drawn(rows: Sequence[Row], again: Sequence[Row], styles: dict[str, Look], top: float) -> list[str]:
    fixed = sorted({row["k"] for row in rows if row["k"] != AUTO})
    auto = any(row["k"] == AUTO for row in rows)
    last = (fixed[-1] if fixed else 0) + 1
    ks = [*fixed, *([last] if auto else [])]
    lines = [name for name in dict.fromkeys(map(drafter_name, rows)) if name != LOOKUP]
    wide = max([width_of(ALONE), *(width_of(fitted(name, LONGEST)) for name in [*lines, LOOKUP])])
    margin = 0.35 + 0.02 * (ks[-1] - ks[0])
    most = max([1.1, *(high(row) for row in (*rows, *again))])
    least = min([0.9, *(low(row) for row in (*rows, *again))])
    floor = floor_of(least)
    right = WIDTH - wide - 12
    plane = Plane(
        ks[0] - margin,
        ks[-1] + margin,
        floor,
        floor + 1.05 * (most - floor),
        LEFT,
        top + 8,
        right,
        top + HEIGHT - BOTTOM,
    )
    across = speedup_ticks(plane.y_high, floor)
    parts = plane.grid(
        across, ks, lambda one: f"{one:g}x", lambda one: AUTO if auto and one == last else f"{one:g}", uprights=True
    )
    parts.append(plane.foot("k: tokens proposed a round"))
    parts.append(group("alone", line("even", LEFT, plane.y(1.0), right, plane.y(1.0))))
    ends = [(ALONE, _LEVELS[0], plane.y(1.0))]
    lookup = bests([row for row in rows if row["drafter"] == PROMPT_LOOKUP]).get(LOOKUP)
    marks: list[str] = []
    if lookup is not None:
        y, upper, lower = plane.y(lookup["speedup"]), plane.y(high(lookup)), plane.y(low(lookup))
        level = box("band", LEFT, upper, right - LEFT, max(lower - upper, 1)) + line("level", LEFT, y, right, y)
        parts.append(spot("lookup", _words(lookup), level))
        ends.append((LOOKUP, _LEVELS[1], y))
    nearest = min((plane.x(b) - plane.x(a) for a, b in pairwise(ks)), default=right - LEFT)
    between = min(ASIDE, 0.7 * nearest / (len(lines) + 2))  # every mark is nearest to its own k
    for place, name in enumerate([*lines, *([LOOKUP] if lookup is not None else [])]):
        aside = between * (place - len(lines) / 2)
        mine = sorted((row for row in rows if drafter_name(row) == name), key=lambda row: _at(row, last))
        places = [(plane.x(_at(row, last)) + aside, plane.y(row["speedup"])) for row in mine]
        numbered = [at for row, at in zip(mine, places, strict=True) if row["k"] != AUTO]
        look = styles[name]
        if name != LOOKUP:
            parts.append(group(look.colour, path("curve", numbered) if len(numbered) > 1 else ""))
            ends.append((name, look.colour, places[-1][1]))
        for row, (x, y) in zip(mine, places, strict=True):
            bar = "" if name == LOOKUP else whisker(x, plane.y(low(row)), plane.y(high(row)), "thin")
            radius = 3.5 if name == LOOKUP else 4.5
            marks.append(spot(look.colour, _words(row), bar + symbol(look.shape, x, y, radius, look.kind)))
        behind = aside + 2 * between
        marks += [_cross(row, plane, behind, last, look) for row in again if drafter_name(row) == name]
    return [*parts, *_names(ends, plane), *marks]


def _at(row: Row, last: int) -> float:
    """Where its k lies; `auto` behind all numbers."""
    return float(last if row["k"] == AUTO else row["k"])


def _cross(row: Row, plane: Plane, aside: float, last: int, look: Look) -> str:
    """A choice as it was measured again."""
    x, y = plane.x(_at(row, last)) + aside, plane.y(row["speedup"])
    bar = whisker(x, plane.y(low(row)), plane.y(high(row)), "thin")
    cross = line("interval", x - 4, y - 4, x + 4, y + 4) + line("interval", x - 4, y + 4, x + 4, y - 4)
    return spot(look.colour, _words(row, fresh=True), bar + cross)


def _names(ends: Sequence[tuple[str, str, float]], plane: Plane) -> list[str]:
    """Names beside the ends of their lines, moved apart; of too many the highest, and the legend has them all."""
    room = int((plane.bottom - plane.top) // (2 * SIZE))  # half of it: names stay near their lines
    levels, others = ([one for one in ends if (one[1] in _LEVELS) == level] for level in (True, False))
    ends = [*levels, *sorted(others, key=lambda one: one[2])[: room - len(levels)]]
    moved = apart([y for _, _, y in ends], SIZE + 2, plane.top + 4, plane.bottom)
    return [
        group(colour, text(plane.right + 8, y + 4, fitted(name, LONGEST), kind="own"))
        for (name, colour, _), y in zip(ends, moved, strict=True)
    ]
