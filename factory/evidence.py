"""What an evaluation says of one drafter: the row that speaks for it, and its k. Pure functions over results."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def best_row(results: dict[str, Any], name: str) -> Row | None:
    """The row of `candidates` that speaks for a drafter: its best fixed k, on fresh prompts where it was timed again.

    As the verdict does it: k is chosen on the prompts to choose by, by the lower bound, lossless ones first; what is
    claimed is the second measurement, since the best of many noisy figures is too high. A choice that did not hold up
    there makes room for the next one that did. None where the evaluation has no fixed k of this drafter.
    """
    own = [row for row in results.get("candidates", []) if row["artifact"] == name and isinstance(row["k"], int)]
    chosen = sorted((row for row in own if row["prompt_set"] == "choose"), key=_rank, reverse=True)
    fresh = {row["k"]: row for row in own if row["prompt_set"] == "confirm"}
    again = [fresh[row["k"]] for row in chosen if row["k"] in fresh] or sorted(fresh.values(), key=_rank, reverse=True)
    held = [row for row in again if lower_bound(row) > 1 and row.get("matches_target")]
    return next(iter([*held, *again, *chosen]), None)


def lower_bound(row: Row) -> float:
    """What a speedup surely is at least; 0 where one observation gives no interval."""
    low = row["speedup_low"]
    return float(low) if low is not None else 0.0


def rows_at(results: dict[str, Any], name: str, row: Row) -> list[Row]:
    """The rows of a drafter, suite by suite and temperature by temperature, that `row` pools."""
    pooled = (row["k"], row["prompt_set"], row.get("batch") or 1)
    own = [one for one in results.get("rows", []) if one["artifact"] == name and one["drafter"] is not None]
    return [one for one in own if (one["k"], one["prompt_set"], one.get("batch") or 1) == pooled]


def _rank(row: Row) -> tuple[bool, float, float]:
    return bool(row.get("matches_target")), lower_bound(row), float(row["speedup"])
