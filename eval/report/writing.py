"""results.json, tokens.jsonl, report.html, plots as files of their own, and the table on the terminal.

Everything drawn is drawn from these files, map.json and the drafters' certificates, so that a report can be made again
anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from eval.measurement import CONFIRM, Cell
from eval.report.contents import map_report, report
from eval.report.pictures import draw_pictures
from eval.verdict.figures import count_lengths
from eval.verdict.rows import Row, drafter_name, interval, k_words, same_output
from factory.artifact import Artifact
from factory.errors import ArtifactError, DataError
from factory.files.atomic import write_atomically
from factory.files.json_reading import NotJsonError, read_json
from factory.fitting import Fitted

RESULTS, TOKENS, MAP, REPORT, PLOTS = "results.json", "tokens.jsonl", "map.json", "report.html", "plots"


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
    """report.html and the plots again from the files in `folder`; returns the page's path.

    Results of earlier versions are drawn with what they hold. Raises DataError for what eval did not write.
    """
    if (folder / MAP).is_file() and not (folder / RESULTS).is_file():
        found = _read(folder / MAP, "factory eval --map")
        return _drawn(folder / MAP, lambda: _write_page(map_report(found), folder))
    results = _read(folder / RESULTS, "factory eval")
    return _drawn(folder / RESULTS, lambda: draw(results, folder / TOKENS, folder))


def _read(path: Path, command: str) -> dict[str, Any]:
    if not path.is_file():
        found = f"{path.parent}: no such folder" if not path.parent.is_dir() else f"{path.parent}: no {path.name} there"
        raise DataError(f"{found}; `{command} ARTIFACTS --out {path.parent}` writes one")
    try:
        found = read_json(path)
    except NotJsonError as error:
        raise DataError(f"{path}: damaged ({error}); `{command}` writes it anew") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: not what `{command}` of this version writes; run it again")
    return found


def _drawn(path: Path, draw_it: Callable[[], Path]) -> Path:
    try:
        return draw_it()
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: not what `factory eval` of this version writes; run it again") from error


def _write_page(text: str, out: Path) -> Path:
    write_atomically(out / REPORT, text)
    return out / REPORT


def draw(results: dict[str, Any], tokens_path: Path, out: Path) -> Path:
    """report.html and the plots from results and what else `out` may hold; returns the page's path.

    Earlier results know no accepted lengths: they are counted from tokens.jsonl, where that lies there.
    """
    if tokens_path.is_file() and not any("accepted_lengths" in row for row in results["rows"]):
        results = {**results, "rows": _with_lengths(results["rows"], tokens_path)}
    mapped = _read(out / MAP, "factory eval --map") if (out / MAP).is_file() else None
    path = _write_page(report(results, mapped, _certificates(results, out)), out)
    draw_pictures(results, out / PLOTS, mapped=mapped)
    return path


_COUNTED = ("artifact", "drafter", "suite", "k", "batch", "temperature", "prompt_set")


def _with_lengths(rows: list[Row], tokens_path: Path) -> list[Row]:
    """The rows with their accepted lengths, counted from what tokens.jsonl says of each output."""
    rounds: dict[tuple[Any, ...], list[Row]] = {}
    try:
        for line in map(json.loads, tokens_path.read_text(encoding="utf-8").splitlines()):
            rounds.setdefault(tuple(line.get(key, 1) for key in _COUNTED), []).append(line)
        found = {
            key: count_lengths([(line["accepted"], line["proposed"]) for line in lines])
            for key, lines in rounds.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{tokens_path}: not what `factory eval` of this version writes; run it again") from error
    return [
        {**row, "accepted_lengths": found.get(tuple(row.get(key, 1) for key in _COUNTED)) if row["drafter"] else None}
        for row in rows
    ]


def _certificates(results: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """Those of the drafters that lie in `out`, or that `out` is."""
    found = []
    for name in dict.fromkeys(row["artifact"] for row in results["candidates"] if row["artifact"]):
        for folder in (out / name, out):
            if (folder / "manifest.json").is_file():
                with suppress(ArtifactError):
                    artifact = Artifact.open(folder)
                    certificate = artifact.certificate() if artifact.name == name else None
                    found += [certificate] if certificate is not None else []
    return found


def terminal_table(results: dict[str, Any]) -> Group:
    """The report's table and the verdict, for rich."""
    batches = len({row["batch"] for row in results["rows"]}) > 1
    heads = ["drafter", "suite", "T", *(["batch"] if batches else []), "k", "speedup", "same output", "alpha", "tau"]
    heads += ["overlap", "tok/s", "draft ms", "verify ms", "repetition"]
    lines: list[list[str] | None] = []
    previous = None
    for row in results["rows"]:
        group = (row["prompt_set"], row["suite"], row["temperature"], row["batch"])
        if previous not in (None, group):
            lines.append(None)
        previous = group
        suite = row["suite"] + (" (fresh)" if row["prompt_set"] == CONFIRM else "")
        cells = [drafter_name(row), suite, f"{row['temperature']:g}", *([str(row["batch"])] if batches else [])]
        cells += [k_words(row), interval(row)]
        cells += [same_output(row), _cell(row["alpha"]), _cell(row["tau"]), _cell(row["overlap"])]
        cells += [_cell(row["tokens_per_s"], "{:.0f}"), _milliseconds(row["t_draft_s"])]
        lines.append([*cells, _milliseconds(row["t_verify_s"]), _cell(row["repetition"], "{:.0%}")])
    spare = ("repetition", "overlap", "verify ms", "draft ms", "tau", "tok/s", "alpha")
    words = heads.index("speedup")
    table = Fitted("speedup over the target alone, 95 % interval", heads, lines, words=words, spare=spare)
    notes = [Text(note) for note in results.get("notes", [])]
    return Group(table, *notes, Text(), Text(results["verdict"]["reason"], style="bold"))


def _cell(value: Any, form: str = "{:.2f}") -> str:
    return "" if value is None else form.format(value)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.2f}"
