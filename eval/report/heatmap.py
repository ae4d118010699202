"""The break-even map drawn: a heat map and a table for the page, a table for the terminal."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from eval.report.sections import table
from eval.report.svg import drawing, text
from eval.verdict.rows import drafter_name, interval, mode

CELL_WIDTH, CELL_HEIGHT, LEFT, TOP, FOOT = 78, 42, 150, 22, 8
DEEPEST = 0.62  # opacity of a cell that is twice, or half, as fast

Figures = dict[str, Any]


def map_section(found: Figures) -> str:
    """The map's part of the page: the rules, one heat map for each drafter, every cell as a table."""
    rules = "".join(f"<li>{escape(one['rule'])}</li>" for one in found["drafters"])
    figures = "".join(
        f"<figure><h3>{escape(drafter_name(one))}</h3>{heat_map(found, one)}</figure>" for one in found["drafters"]
    )
    head = ["drafter", "T", "context", "batch", "k", "speedup, 95 % interval", "with prefill", "tok/s", "alpha"]
    lines = []
    for cell, best in _bests(found):
        said = [drafter_name(best), f"{cell['temperature']:g}", cell["context"], cell["batch"]]
        said += [best["k"] if best["pays"] else "off", interval(best), f"{best['speedup_total']:.2f}"]
        lines.append([*said, f"{best['tokens_per_s']:.0f}", "" if best["alpha"] is None else f"{best['alpha']:.2f}"])
    return f"""<h2>Where drafting pays</h2>
<ul>{rules}</ul>
<div class="plots">{figures}</div>
<p class="soft">{escape(found["words"])}</p>
<details><summary>Every cell</summary><div class="wide">{table(head, lines, texts=1)}</div></details>
"""


def heat_map(found: Figures, drafter: Figures) -> str:
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
    return drawing(width, height, f"{drafter_name(drafter)}, speedup over the target alone: {'; '.join(said)}", parts)


def _cell(left: float, top: float, best: Figures, words: str) -> str:
    colour = "--series-0" if best["speedup"] >= 1 else "--series-1"
    depth = DEEPEST * min(1.0, abs(math.log2(best["speedup"])))
    middle = left + CELL_WIDTH / 2
    box = f'x="{left + 1:.1f}" y="{top + 1:.1f}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}"'
    return (
        f'<g style="--mark: var({colour})"><title>{escape(words)}</title>'
        f'<rect class="bar" {box} fill-opacity="{depth:.2f}"/><rect class="tile" {box}/>'
        + text(middle, top + 19, f"{best['speedup']:.2f}x", anchor="middle", kind="cell big")
        + text(middle, top + 33, f"k = {best['k']}" if best["pays"] else "off", anchor="middle", kind="cell")
        + "</g>"
    )


def map_table(found: Figures) -> Group:
    """The map and its rules for the terminal: a line for each drafter, temperature and context, a column a batch."""
    shown = Table(title="speedup over the target alone, and the best k", title_justify="left", pad_edge=False)
    for heading in ("drafter", "T", "context"):
        shown.add_column(heading, no_wrap=heading != "drafter")
    for batch in found["batches"]:
        shown.add_column(f"batch {batch}", justify="right", no_wrap=True)
    lines: dict[tuple[str, float, int], list[str]] = {}
    for cell, best in _bests(found):
        key = (drafter_name(best), cell["temperature"], cell["context"])
        lines.setdefault(key, []).append(f"{interval(best)} {'k=' + str(best['k']) if best['pays'] else 'off'}")
    previous = None
    for (name, temperature, context), cells in lines.items():
        if previous not in (None, name):
            shown.add_section()
        previous = name
        shown.add_row(*map(Text, [name, f"{temperature:g}", str(context), *cells]))
    rules = [Text(one["rule"], style="bold") for one in found["drafters"]]
    return Group(shown, Text(found["words"]), Text(), *rules)


def _bests(found: Figures) -> list[tuple[Figures, Figures]]:
    """(cell, best of a drafter) of the whole map, drafter by drafter."""
    names = [drafter_name(one) for one in found["drafters"]]
    pairs = [(cell, best) for cell in found["cells"] for best in cell["best"]]
    return [pair for name in names for pair in pairs if drafter_name(pair[1]) == name]
