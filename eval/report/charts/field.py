"""Who took part in an evaluation, and what each measured at its best: what all drawings begin from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.measurement import CHOOSE, CONFIRM, PROMPT_LOOKUP
from eval.report.drawing.looks import Look, looks_of
from eval.verdict.rows import Row, drafter_name

Results = dict[str, Any]


def names_of(results: Results) -> list[str]:
    """The drafters in the order that they were given in, prompt lookup behind those with weights."""
    rows = sorted(results["candidates"], key=lambda row: row["drafter"] == PROMPT_LOOKUP)
    return list(dict.fromkeys(map(drafter_name, rows)))


def looks(results: Results) -> dict[str, Look]:
    """How each looks; a training's drafter that was not measured too."""
    trained = [one["artifact"] for one in results.get("trainings") or ()]
    return looks_of(list(dict.fromkeys([*names_of(results), *trained])))


def chosen_from(results: Results) -> list[Row]:
    """Every (drafter, k), suites and temperatures pooled, on the prompts to choose by."""
    return [row for row in results["candidates"] if row["prompt_set"] == CHOOSE]


def confirmed(results: Results) -> list[Row]:
    """Those that were measured again, on fresh prompts."""
    return [row for row in results["candidates"] if row["prompt_set"] == CONFIRM]


def lossless(row: Row) -> bool:
    """Whether its output was not found to be another than the target's; earlier results do not say."""
    return row.get("matches_target") is not False


def rank(row: Row) -> tuple[bool, float, float]:
    """What the verdict ranks by: losslessness, the lower bound, the figure."""
    return lossless(row), row["speedup_low"] or 0.0, row["speedup"]


def bests(rows: Sequence[Row]) -> dict[str, Row]:
    """By drafter the row of its best k, in the order of the rows."""
    best: dict[str, Row] = {}
    for row in rows:
        name = drafter_name(row)
        best[name] = max(best.get(name, row), row, key=rank)
    return best


def low(row: Row) -> float:
    """The lower end of its interval; the figure itself, where there is none."""
    return float(row["speedup"] if row["speedup_low"] is None else row["speedup_low"])


def high(row: Row) -> float:
    """The upper end."""
    return float(row["speedup"] if row["speedup_high"] is None else row["speedup_high"])


def decisive_batch(results: Results) -> int:
    """The batch that the choice is made at: the plan's first."""
    return int((results["plan"].get("batches") or [1])[0])
