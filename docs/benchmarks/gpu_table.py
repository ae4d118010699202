"""The JSON of docs/benchmarks/gpu_check.py as Markdown: the goals, then all rows, then what was not measured and why.

Needs nothing but Python: it is printed on any machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoder_table import figure, said, words_of

PREFIX = "cuda-"
WAITS = "waits for a GPU"
Kept = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """A line of the goals' table: the rows of a part whose `what` begins so."""

    what: str
    goal: str
    part: str
    begins: str


GOALS = (
    Goal(
        "7B shape, bf16: an autoregressive step against its bandwidth floor, as a share of the floor's speed",
        ">= 0.85",
        "steps",
        "the bandwidth floor's time / an autoregressive step's",
    ),
    Goal("against `generate`, eager, 7B shape", ">= 5", "steps", "our autoregressive decode / generate, greedy"),
    Goal(
        'against `generate(cache_implementation="static")`, compiled, 7B shape',
        ">= 1.1",
        "steps",
        "our autoregressive decode / generate, static cache",
    ),
    Goal(
        "speculative against `generate(assistant_model=)`, 7B shape",
        ">= 10",
        "rounds",
        "our speculative decode / generate(assistant_model=)",
    ),
    Goal("a round / (k t_draft + t_verify(k+1)), 7B shape, greedy", "<= 1.05", "rounds", "a round / "),
    Goal("gpt-fast on the same shape, beside ours", ">= 1", "gpt-fast", "our autoregressive decode / gpt-fast"),
    Goal("batch 16 against batch 1, autoregressive, tokens/s, 7B shape", ">= 10", "steps", "batch 16 / batch 1"),
    Goal(
        "enlarged shipped target at 7B cost, its drafter in bf16, against our own baseline",
        ">= 2.4",
        "enlarged",
        "speedup, bf16",
    ),
    Goal("the same, its drafter in int4", ">= 2.4", "enlarged", "speedup, int4"),
    Goal("speedup modelled against measured, 7B shape", "1 ± 0.05", "rounds", "modelled / measured speedup"),
    Goal("the same, enlarged shipped target", "1 ± 0.05", "enlarged", "modelled / measured speedup"),
)


def collected(folder: Path) -> dict[str, Kept]:
    """Every part's JSON there, by its part."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{PREFIX}*.json")))
    return {kept["part"]: kept for kept in found if "part" in kept}


def table(folder: Path) -> str:
    """All of it."""
    parts = collected(folder)
    lines = []
    if any(kept["size"] != "full" for kept in parts.values()):
        lines += ["**Small size: the figures show that everything runs, and nothing else.**", ""]
    lines += ["| goal | wanted | measured, 95 % interval | | beside |", "| --- " * 5 + "|"]
    for goal in GOALS:
        rows = rows_of(goal, parts)
        if not rows:
            lines.append(f"| {goal.what} | {goal.goal} | {why_not(goal.part, parts)} | | |")
        lines += [
            f"| {goal.what} | {words_of(row['goal'])} | {figure(row)} | {row['met'] or ''} | {beside(row)} |"
            for row in rows
        ]
    for name, kept in parts.items():
        lines += ["", *section(name, kept)]
    return "\n".join(lines)


def rows_of(goal: Goal, parts: dict[str, Kept]) -> list[Kept]:
    """Those that a goal is judged by; none where its part did not come so far."""
    rows = parts[goal.part]["rows"] if goal.part in parts else []
    return [row for row in rows if row["what"].startswith(goal.begins) and row["goal"]]


def why_not(part: str, parts: dict[str, Kept]) -> str:
    """What stands where nothing was measured."""
    if part not in parts:
        return WAITS
    kept = parts[part]
    said = kept["reason"] or "no such row"
    return f"{WAITS}; last run: {kept['status']}, {said}".replace("|", "/")


def section(name: str, kept: Kept) -> list[str]:
    """One part's rows, and what it left out."""
    gpu = kept["hardware"].get("gpu") or kept["hardware"]["cpu"] if "hardware" in kept else "unknown hardware"
    status = kept["status"] + (f": {kept['reason']}" if kept["reason"] else "")
    lines = [f"`{name}` on {gpu}, {kept.get('dtype', '')}, {kept['seconds']:.0f} s; {status}."]
    if kept.get("peak_memory_bytes"):
        lines[-1] += f" At most {kept['peak_memory_bytes'] / 2**30:.1f} GiB were held."
    if kept["facts"].get("reader"):
        why = f" ({kept['facts']['why']})" if kept["facts"].get("why") else ""
        lines[-1] += f" Reader {kept['facts']['reader']}{why}."
    model = kept["facts"].get("model") or {}
    if model.get("note"):
        lines += ["", model["note"]]
    if kept["rows"]:
        lines += ["", "| what | model | goal | measured, 95 % interval | | s | beside |", "| --- " * 7 + "|"]
    for row in kept["rows"]:
        lines.append(
            f"| {row['what']} | {row['model']} | {words_of(row['goal'])} | {figure(row)} | {row['met'] or ''} "
            f"| {row['seconds']:.0f} | {beside(row)} |"
        )
    if kept["facts"].get("tests"):
        lines += ["", ", ".join(f"{count} {status}" for status, count in kept["facts"]["tests"].items()) + "."]
    if kept["left_out"]:
        lines += ["", "Not measured:", ""]
        lines += [f"- {one['what']}: {one['status']}, {one['reason']}" for one in kept["left_out"]]
    return lines


def beside(row: Kept) -> str:
    """The detail, after the label of what was made with the enlarging tool."""
    label = f"**enlarged**: {row['enlarged']}; " if row.get("enlarged") else ""
    return label + said(row["detail"]).replace("|", "/")
