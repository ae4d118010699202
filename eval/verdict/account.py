"""Where a round's time goes: rows of results.json become one account for each (drafter, k) and batch.

Suites and temperatures are pooled, each row weighted by the rounds that it timed. Prefills are left out: what is
accounted for begins with the second token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.measurement import CHOOSE
from eval.verdict.rows import Row

# The rows' keys, what the report calls them. Results of earlier versions know the sum of the last two only.
PARTS = {
    "t_draft_s": "draft",
    "t_verify_s": "verify",
    "t_accept_s": "accept",
    "t_host_s": "host",
    "t_overhead_s": "accept and host",
}
WHOLE, SPLIT = "t_overhead_s", ("t_accept_s", "t_host_s")


@dataclass(frozen=True)
class Account:
    """One (drafter, k) at one batch, or the target alone. A round is one target pass over the whole batch."""

    artifact: str | None
    drafter: str | None
    k: int | None
    batch: int
    seconds: dict[str, float]  # of a round, by the parts' names, in their order; parts of no time are left out
    tokens: float  # new tokens of a round, all rows of the batch together

    @property
    def round_s(self) -> float:
        """Seconds of a round."""
        return sum(self.seconds.values())

    def per_token_s(self) -> dict[str, float]:
        """Seconds of a new token, by the same parts."""
        return {name: spent / self.tokens for name, spent in self.seconds.items()}


def accounts(rows: Sequence[Row]) -> list[Account]:
    """Of the prompts to choose by, in the order of the rows; what was never timed beyond its prefill has none."""
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["prompt_set"] == CHOOSE and row["t_verify_s"] is not None:
            grouped.setdefault((row["batch"], row["artifact"], row["drafter"], row["k"]), []).append(row)
    return [_account(key, found) for key, found in grouped.items()]


def _account(key: tuple[Any, ...], rows: Sequence[Row]) -> Account:
    batch, artifact, drafter, k = key
    weights = [rounds(row) for row in rows]
    total = sum(weights)
    split = all(row.get(part) is not None for row in rows for part in SPLIT)
    seconds = {}
    for part, name in PARTS.items():
        if part == WHOLE if split else part in SPLIT:
            continue
        spent = sum(weight * (row[part] or 0.0) for weight, row in zip(weights, rows, strict=True)) / total
        if spent > 0:
            seconds[name] = spent
    # A row's tokens are those of its first repeat; the others wrote the same.
    tokens = sum(row["repeats"] * (row["new_tokens"] - row["prompts"]) for row in rows) / total
    return Account(artifact, drafter, k, batch, seconds, tokens)


def rounds(row: Row) -> float:
    """Timed rounds of a row: the target's passes after its prefills, in all repeats. Earlier results do not say."""
    return float(row.get("rounds") or row["repeats"] * (row["target_passes"] - row["prompts"]))
