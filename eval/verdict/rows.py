"""Rows of results.json in words."""

from __future__ import annotations

from typing import Any

from eval.measurement import AUTO, PROMPT_LOOKUP

Row = dict[str, Any]


def drafter_name(row: Row) -> str:
    """What a row is called: its artifact, or what drafts without one."""
    return str(row["artifact"] or {None: "target alone", PROMPT_LOOKUP: "prompt lookup"}[row["drafter"]])


def k_words(row: Row) -> str:
    """Its k, and where that was chosen each round what it was in the mean; nothing for the target alone."""
    if row["k"] is None:
        return ""
    mean = row.get("mean_k")
    return f"{row['k']} ({mean:.1f})" if row["k"] == AUTO and mean is not None else str(row["k"])


def interval(row: Row) -> str:
    """A speedup with its interval."""
    if row["speedup_low"] is None:
        return f"{row['speedup']:.2f}x"
    return f"{row['speedup']:.2f}x ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"


def same_output(row: Row) -> str:
    """Whether the output was the target's own, near-ties counted."""
    if row["matches_target"] is None:
        return "unknown"
    if not row["matches_target"]:
        return "NO"
    return f"yes, {row['near_ties']} near-ties" if row["near_ties"] else "yes"


def mode(temperature: float) -> str:
    """How tokens are chosen at that temperature."""
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"
