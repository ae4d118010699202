"""Forecast against measured: how far sizes and a device's profile alone foretell a speedup."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report.charts.field import Results, bests, chosen_from, high, looks, low
from eval.report.drawing.chart import Chart
from eval.report.drawing.labels import Room
from eval.report.drawing.looks import Look
from eval.report.drawing.plane import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Plane, legend, speedup_ticks
from eval.report.drawing.svg import drawing, fitted, group, line, spot, symbol, text, whisker
from eval.verdict.rows import Row, drafter_name, interval


def forecast_chart(results: Results) -> Chart | None:
    """Measured over forecast, with the diagonal where they agree; None where nothing was forecast."""
    rows = [row for row in chosen_from(results) if row.get("forecast_speedup") is not None]
    if not rows:
        return None
    caption = """Each mark is a drafter at one k, the best of each named, with 95 % intervals. On the diagonal the
forecast is right; above it the drafter did better than sizes and the device's profile foretold at its alpha."""
    styles = looks(results)
    names = list(dict.fromkeys(map(drafter_name, rows)))
    head, top = legend([(fitted(name, 40), styles[name]) for name in styles if name in names])
    title = "Forecast and measured"
    said = "; ".join(map(_words, rows))
    parts = [*head, *_drawn(rows, styles, top)]
    drawn = drawing("forecast", title, f"Measured over forecast speedup: {said}", (WIDTH, HEIGHT + top), parts)
    return Chart("forecast", title, drawn, caption)


def _words(row: Row) -> str:
    forecast = row["forecast_speedup"]
    off = row["speedup"] / forecast - 1
    return f"{drafter_name(row)}, k = {row['k']}: forecast {forecast:.2f}x, measured {interval(row)}, {off:+.0%}"


def _drawn(rows: Sequence[Row], styles: dict[str, Look], top: float) -> list[str]:
    values = [1.0, *(row["forecast_speedup"] for row in rows), *(end(row) for row in rows for end in (low, high))]
    margin = 0.06 * (max(values) - min(values)) + 0.02
    least, most = max(0.0, min(values) - margin), max(values) + margin
    plane = Plane(least, most, least, most, LEFT, top + 8, WIDTH - RIGHT, top + HEIGHT - BOTTOM)
    marks = speedup_ticks(most, least)
    parts = plane.grid(marks, marks, lambda one: f"{one:g}x", lambda one: f"{one:g}x", uprights=True)
    parts += [line("diagonal", plane.x(least), plane.y(least), plane.x(most), plane.y(most))]
    parts += [plane.foot("forecast speedup"), text(plane.left + 6, plane.top + 12, "measured speedup", kind="faint")]
    room = Room(plane.box)
    at = [(plane.x(row["forecast_speedup"]), plane.y(row["speedup"])) for row in rows]
    for row, (x, y) in zip(rows, at, strict=True):
        room.mark(x, y)
        room.block(x - 2, plane.y(low(row)), x + 2, plane.y(high(row)))
    drawn, labels = [], []
    best = bests(rows)
    for row, (x, y) in zip(rows, at, strict=True):
        look, mine = styles[drafter_name(row)], best[drafter_name(row)] is row
        label = room.label(x, y, f"k={row['k']}", "own") if mine else None
        labels.append(group(look.colour, label or ""))
        bar = whisker(x, plane.y(low(row)), plane.y(high(row)), "thin")
        drawn.append(spot(look.colour, _words(row), bar + symbol(look.shape, x, y, 4.5, look.kind)))
    return [*parts, *labels, *drawn]
