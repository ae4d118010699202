"""results.json, tokens.jsonl, report.html, a PNG, and the table on the terminal.

Everything drawn is drawn from these files and map.json alone, so that a report can be made again anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from eval.measurement import CHOOSE, CONFIRM, MODEL, PROMPT_LOOKUP, Cell
from eval.report.heatmap import map_section
from eval.report.page import map_page, page
from eval.report.plots import Level, Point, histogram, png, scatter
from eval.verdict.rows import Row, drafter_name, interval, k_words, mode, same_output
from factory.errors import DataError
from factory.files.atomic import write_atomically

RESULTS, TOKENS, MAP, REPORT, PLOT = "results.json", "tokens.jsonl", "map.json", "report.html", "speedup.png"

SIZE = "bytes of the drafter on disk"
COST = "c: bytes of a draft step / bytes of a target step"


def write(results: dict[str, Any], cells: Sequence[Cell], out: Path) -> None:
    """All files of an evaluation into `out`; what was measured before what is drawn of it."""
    write_atomically(out / TOKENS, "".join(json.dumps(line) + "\n" for cell in cells for line in token_lines(cell)))
    write_atomically(out / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    draw(results, out / TOKENS, out)


def require_writable(out: Path) -> None:
    """Raises DataError now rather than after an hour of measuring."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / ".writable", "")
        (out / ".writable").unlink()
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); give another --out") from error


def token_lines(cell: Cell) -> list[Row]:
    """Every output of a cell's first timed repeat: enough to check what its row claims about tokens."""
    return [
        {
            "prompt_ids": one.generation.prompt,
            "output_ids": one.generation.tokens,
            "artifact": cell.arm.artifact,
            "drafter": cell.arm.drafter,
            "suite": cell.suite,
            "k": cell.arm.k,
            "batch": cell.batch,
            "temperature": cell.temperature,
            "new_tokens": len(one.generation.tokens),
            "target_passes": one.generation.target_passes,
            "accepted": one.generation.accepted,
            "proposed": one.generation.proposed,
            "prompt_set": cell.stage,
            "request": one.request,
        }
        for one in cell.outputs
    ]


def redraw(folder: Path) -> Path:
    """report.html again from the files in `folder`; returns its path. Raises DataError for what eval did not write."""
    if (folder / MAP).is_file() and not (folder / RESULTS).is_file():
        found = _read(folder / MAP, "factory eval --map")
        return _drawn(folder / MAP, lambda: _write_page(map_page(found, map_section(found)), folder))
    results = _read(folder / RESULTS, "factory eval")
    return _drawn(folder / RESULTS, lambda: draw(results, folder / TOKENS, folder))


def _read(path: Path, command: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); `{command}` writes it") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: not what `{command}` writes; run it again")
    return found


def _drawn(path: Path, draw_it: Callable[[], Path]) -> Path:
    try:
        return draw_it()
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not what `factory eval` writes ({error!r}); run it again") from error


def _write_page(text: str, out: Path) -> Path:
    write_atomically(out / REPORT, text)
    return out / REPORT


def draw(results: dict[str, Any], tokens_path: Path, out: Path) -> Path:
    """report.html and the PNG from results, tokens.jsonl and the map that `out` may hold; returns the report's path."""
    names = list(dict.fromkeys(drafter_name(row) for row in results["candidates"]))
    levels = _levels(results)
    by_cost = _points(results, names, "cost_ratio")
    plots = [
        ("What its size buys", scatter(_points(results, names, "bytes_on_disk"), levels, SIZE, log=True)),
        ("What its cost per token buys", scatter(by_cost, levels, COST, log=False)),
    ]
    mapped = map_section(_read(out / MAP, "factory eval --map")) if (out / MAP).is_file() else ""
    batch = results["plan"].get("batches", [1])[0]
    png(by_cost, names, levels, COST, out / PLOT)
    return _write_page(page(results, plots, names, _histograms(tokens_path, names, batch), mapped), out)


def _points(results: dict[str, Any], names: list[str], x_key: str) -> list[Point]:
    """Model drafters, pooled over suites and temperatures, on the prompts to choose by."""
    return [
        Point(
            x=row[x_key],
            y=row["speedup"],
            low=row["speedup"] if row["speedup_low"] is None else row["speedup_low"],
            high=row["speedup"] if row["speedup_high"] is None else row["speedup_high"],
            series=names.index(drafter_name(row)),
            label=f"k={row['k']}",
            words=f"{drafter_name(row)}, k = {row['k']}: {interval(row)}",
        )
        for row in _chosen_from(results)
        if row["drafter"] == MODEL
    ]


def _chosen_from(results: dict[str, Any]) -> list[Row]:
    return [row for row in results["candidates"] if row["prompt_set"] == CHOOSE]


def _levels(results: dict[str, Any]) -> list[Level]:
    lookups = [row["speedup"] for row in _chosen_from(results) if row["drafter"] == PROMPT_LOOKUP]
    levels = [Level(1.0, "target alone")]
    return [*levels, Level(max(lookups), "prompt lookup, best k")] if lookups else levels


def _histograms(tokens_path: Path, names: list[str], batch: int) -> list[str]:
    """Accepted tokens per round, one figure for each drafter, k and temperature, of outputs written in such batches."""
    counts: dict[tuple[str, int | str, float], list[int]] = {}
    try:
        lines = tokens_path.read_text(encoding="utf-8").splitlines()
        for line in map(json.loads, lines):
            mine = line["prompt_set"] == CHOOSE and line.get("batch", 1) == batch
            if line["drafter"] is not None and mine:
                key = (drafter_name(line), line["k"], line["temperature"])
                found = counts.setdefault(key, [])
                most = line["k"] if isinstance(line["k"], int) else max(line["proposed"], default=0)  # or "auto"
                found += [0] * (most + 1 - len(found))
                for accepted in line["accepted"]:
                    found[accepted] += 1
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{tokens_path}: not what `factory eval` writes ({error!r}); run it again") from error
    return [
        histogram(found, f"{name}, k = {k}, {mode(t)}", names.index(name))
        for (name, k, t), found in sorted(counts.items(), key=lambda item: _place(names, *item[0]))
    ]


def _place(names: list[str], name: str, k: int | str, temperature: float) -> tuple[int, bool, int, float]:
    """Where a histogram stands: by drafter, by k with "auto" behind the numbers, by temperature."""
    return names.index(name), isinstance(k, str), 0 if isinstance(k, str) else k, temperature


def terminal_table(results: dict[str, Any]) -> Group:
    """The report's table and the verdict, for rich."""
    table = Table(title="speedup over the target alone, 95 % interval", title_justify="left", pad_edge=False)
    batches = len({row["batch"] for row in results["rows"]}) > 1
    for heading in ("drafter", "suite", "T", *(["batch"] if batches else []), "k"):
        table.add_column(heading, no_wrap=heading != "drafter")
    for heading in (
        "speedup",
        "same output",
        "alpha",
        "tau",
        "overlap",
        "tok/s",
        "draft ms",
        "verify ms",
        "repetition",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for row in results["rows"]:
        group = (row["prompt_set"], row["suite"], row["temperature"], row["batch"])
        if previous not in (None, group):
            table.add_section()
        previous = group
        suite = row["suite"] + (" (fresh)" if row["prompt_set"] == CONFIRM else "")
        cells = [drafter_name(row), suite, f"{row['temperature']:g}", *([str(row["batch"])] if batches else [])]
        cells += [k_words(row), interval(row)]
        cells += [same_output(row), _cell(row["alpha"]), _cell(row["tau"]), _cell(row["overlap"])]
        cells += [
            _cell(row["tokens_per_s"], "{:.0f}"),
            _milliseconds(row["t_draft_s"]),
            _milliseconds(row["t_verify_s"]),
        ]
        table.add_row(*map(Text, [*cells, _cell(row["repetition"], "{:.0%}")]))
    notes = [Text(note) for note in results.get("notes", [])]
    return Group(table, *notes, Text(), Text(results["verdict"]["reason"], style="bold"))


def _cell(value: Any, form: str = "{:.2f}") -> str:
    return "" if value is None else form.format(value)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.2f}"
