"""The break-even map drawn: a heat map and a table for the page, a table for the terminal."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from rich.console import Group
from rich.text import Text

from eval.report.drawing.chart import Chart
from eval.report.drawing.svg import box, drawing, spot, text
from eval.report.tables import table
from eval.verdict.rows import drafter_name, interval, mode
from factory.fitting import Fitted

CELL_WIDTH, CELL_HEIGHT, LEFT, TOP, FOOT = 78, 42, 150, 22, 8
DEEPEST = 0.62  # opacity of a cell that is twice, or half, as fast

Figures = dict[str, Any]


def map_charts(found: Figures) -> list[Chart]:
    """A heat map for each drafter."""
    caption = "Speedup and best k in every cell: blue is faster, orange slower, off where no interval lies above 1."
    return [
        Chart(
            f"map-{place}", f"Where drafting pays: {drafter_name(one)}", heat_map(found, one, f"map-{place}"), caption
        )
        for place, one in enumerate(found["drafters"])
    ]


def map_rules(found: Figures) -> str:
    """Where to switch drafting off, a sentence for each drafter."""
    rules = "".join(f"<li>{escape(one['rule'])}</li>" for one in found["drafters"])
    return f'<ul class="rules">{rules}</ul>'


def cells_table(found: Figures) -> str:
    """Every cell of the map."""
    head = ["drafter", "T", "context", "batch", "k", "speedup, 95 % interval", "with prefill", "tok/s", "alpha"]
    lines = []
    for cell, best in _bests(found):
        said = [drafter_name(best), f"{cell['temperature']:g}", cell["context"], cell["batch"]]
        said += [best["k"] if best["pays"] else "off", interval(best), f"{best['speedup_total']:.2f}"]
        lines.append([*said, f"{best['tokens_per_s']:.0f}", "" if best["alpha"] is None else f"{best['alpha']:.2f}"])
    return table("Every cell of the map", head, lines, texts=1)


def heat_map(found: Figures, drafter: Figures, name: str) -> str:
    """One drafter's cells: batches from left to right, temperatures and contexts from the top down."""
    batches = found["batches"]
    places = [(temperature, context) for temperature in found["temperatures"] for context in found["contexts"]]
    bests = {
        (cell["temperature"], cell["context"], cell["batch"]): best
        for cell, best in _bests(found)
        if drafter_name(best) == drafter_name(drafter)
    }
    width, height = LEFT + CELL_WIDTH * len(batches) + 4, TOP + CELL_HEIGHT * len(places) + FOOT
    parts = [
        text(LEFT + CELL_WIDTH * (column + 0.5), TOP - 7, f"batch {batch}", anchor="middle")
        for column, batch in enumerate(batches)
    ]
    said = []
    for row, (temperature, context) in enumerate(places):
        top = TOP + CELL_HEIGHT * row
        parts.append(text(LEFT - 8, top + 18, mode(temperature), anchor="end", kind="title"))
        parts.append(text(LEFT - 8, top + 32, f"context {context}", anchor="end"))
        for column, batch in enumerate(batches):
            best = bests.get((temperature, context, batch))
            if best is not None:
                words = f"{mode(temperature)}, context {context}, batch {batch}: {interval(best)} at k = {best['k']}"
                said.append(words + ("" if best["pays"] else ", off"))
                parts.append(_cell(LEFT + CELL_WIDTH * column, top, best, said[-1]))
    title = f"Where drafting pays: {drafter_name(drafter)}"
    words = f"{drafter_name(drafter)}, speedup over the target alone: {'; '.join(said)}"
    return drawing(name, title, words, (width, height), parts)


def _cell(left: float, top: float, best: Figures, words: str) -> str:
    depth = DEEPEST * min(1.0, abs(math.log2(best["speedup"])))
    middle, size = left + CELL_WIDTH / 2, (CELL_WIDTH - 2, CELL_HEIGHT - 2)
    drawn = box("bar", left + 1, top + 1, *size, f' fill-opacity="{depth:.2f}"') + box("tile", left + 1, top + 1, *size)
    drawn += text(middle, top + 19, f"{best['speedup']:.2f}x", anchor="middle", kind="cell big")
    drawn += text(middle, top + 33, f"k = {best['k']}" if best["pays"] else "off", anchor="middle", kind="cell")
    return spot("s0" if best["speedup"] >= 1 else "s1", words, drawn)


def map_table(found: Figures) -> Group:
    """The map and its rules for the terminal: a line for each drafter, temperature and context, a column a batch."""
    heads = ["drafter", "T", "context", *(f"batch {batch}" for batch in found["batches"])]
    lines: dict[tuple[str, float, int], list[str]] = {}
    for cell, best in _bests(found):
        key = (drafter_name(best), cell["temperature"], cell["context"])
        lines.setdefault(key, []).append(f"{interval(best)} {'k=' + str(best['k']) if best['pays'] else 'off'}")
    rows: list[list[str] | None] = []
    previous = None
    for (name, temperature, context), cells in lines.items():
        if previous not in (None, name):
            rows.append(None)
        previous = name
        rows.append([name, f"{temperature:g}", str(context), *cells])
    shown = Fitted("speedup over the target alone, and the best k", heads, rows, words=3)
    rules = [Text(one["rule"], style="bold") for one in found["drafters"]]
    return Group(shown, Text(found["words"]), Text(), *rules)


def _bests(found: Figures) -> list[tuple[Figures, Figures]]:
    """(cell, best of a drafter) of the whole map, drafter by drafter."""
    names = [drafter_name(one) for one in found["drafters"]]
    pairs = [(cell, best) for cell in found["cells"] for best in cell["best"]]
    return [pair for name in names for pair in pairs if drafter_name(pair[1]) == name]
