"""Suite by suite and temperature by temperature: every drafter at its best k, with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from eval.measurement import CHOOSE
from eval.report.charts.field import Results, bests, chosen_from, decisive_batch, high, looks, low, names_of
from eval.report.drawing.chart import Chart
from eval.report.drawing.looks import Look
from eval.report.drawing.plane import WIDTH, Plane, floor_of, speedup_ticks
from eval.report.drawing.svg import drawing, fitted, group, line, spot, symbol, text
from eval.verdict.rows import Row, drafter_name, interval, mode

NAMES, FIGURES, STEP, HEAD, FOOT = 128.0, 38.0, 19.0, 24.0, 36.0


def by_suite(results: Results) -> list[tuple[str, list[Row]]]:
    """(suite and temperature in words, the rows of every drafter's best k there), on the prompts to choose by.

    The best k is that of all suites together, since that is what a server would be set to.
    """
    best = {name: row["k"] for name, row in bests(chosen_from(results)).items()}
    batch = decisive_batch(results)
    found: dict[tuple[str, float], list[Row]] = {}
    for row in results["rows"]:
        mine = row["prompt_set"] == CHOOSE and row.get("batch", 1) == batch and row["drafter"] is not None
        if mine and row["k"] == best.get(drafter_name(row)):
            found.setdefault((row["suite"], row["temperature"]), []).append(row)
    order = names_of(results)
    for rows in found.values():
        rows.sort(key=lambda row: order.index(drafter_name(row)))
    return [(f"{suite}, {mode(temperature)}", rows) for (suite, temperature), rows in found.items()]


def suite_chart(results: Results) -> Chart | None:
    """A line for each; None where nothing drafted."""
    groups = by_suite(results)
    if not groups:
        return None
    title = "By suite and temperature"
    caption = """Every drafter at the k that was best over all suites together, on the prompts to choose by, with 95 %
intervals. A drafter that pays on one kind of text need not pay on another."""
    styles = looks(results)
    height = sum(HEAD + STEP * len(rows) for _, rows in groups) + FOOT
    said = "; ".join(_words(where, row) for where, rows in groups for row in rows)
    parts = _drawn(groups, styles, height)
    words = f"Speedup of every drafter at its best k: {said}"
    return Chart("by-suite", title, drawing("by-suite", title, words, (WIDTH, height), parts), caption)


def _words(where: str, row: Row) -> str:
    return f"{where}: {drafter_name(row)}, k = {row['k']}, {interval(row)}"


def _drawn(groups: Sequence[tuple[str, list[Row]]], styles: dict[str, Look], height: float) -> list[str]:
    rows = [row for _, mine in groups for row in mine]
    least = min([0.9, *(low(row) for row in rows)])
    floor = floor_of(least)
    most = max([1.1, *(high(row) for row in rows)])
    plane = Plane(floor, floor + 1.05 * (most - floor), 0.0, 1.0, NAMES, 4.0, WIDTH - FIGURES, height - 24.0)
    parts = []
    for value in speedup_ticks(plane.x_high, floor):
        parts.append(line("grid", plane.x(value), plane.top, plane.x(value), plane.bottom))
        parts.append(text(plane.x(value), plane.bottom + 15, f"{value:g}x", anchor="middle"))
    parts.append(group("alone", line("even", plane.x(1.0), plane.top, plane.x(1.0), plane.bottom)))
    y = plane.top
    for where, mine in groups:
        parts.append(text(4, y + 15, where, kind="heading"))
        y += HEAD
        for row in mine:
            look, x, middle = styles[drafter_name(row)], plane.x(row["speedup"]), y + STEP / 2
            bar = line("interval", plane.x(low(row)), middle, plane.x(high(row)), middle)
            parts.append(text(NAMES - 8, middle + 4, fitted(drafter_name(row), 18), anchor="end"))
            drawn = bar + symbol(look.shape, x, middle, 4.5, look.kind)
            parts.append(spot(look.colour, _words(where, row), drawn))
            parts.append(text(WIDTH - 2, middle + 4, f"{row['speedup']:.2f}x", anchor="end", kind="title"))
            y += STEP
    return parts
