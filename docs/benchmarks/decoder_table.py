"""The JSON of docs/benchmarks/decoder.py as Markdown: goals first, then what has none, then every contest."""

from __future__ import annotations

import math
from typing import Any

Kept = dict[str, Any]


def allowed(goal: dict[str, Any]) -> tuple[float, float]:
    """The least and the greatest value that meet a goal."""
    bound = goal["value"]
    if goal["relation"] == "within":
        return 1 - bound, 1 + bound
    return (bound, math.inf) if goal["relation"] == ">=" else (-math.inf, bound)


def verdict(row: Kept) -> str:
    """Met or missed by the value; "not sure" where the interval is not all on that side, or where there is none."""
    least, greatest = allowed(row["goal"])
    low, high = row["low"], row["high"]
    if least <= row["value"] <= greatest:
        sure = low is not None and least <= low and high <= greatest
        return "met" if sure else "met, not sure"
    sure = low is not None and (high < least or low > greatest)
    return "**missed**" if sure else "**missed**, not sure"


def words_of(goal: dict[str, Any] | None) -> str:
    """A goal as the table says it."""
    if goal is None:
        return ""
    if goal["relation"] == "within":
        return f"1 ± {goal['value']:.2f}"
    return f"{goal['relation']} {goal['value']:g}"


def figure(row: Kept) -> str:
    """Value and interval."""
    interval = "" if row["low"] is None else f" ({row['low']:.2f} to {row['high']:.2f})"
    return f"{row['value']:.2f}{interval}"


def said(detail: Kept) -> str:
    """What stands beside a figure: numbers only, few digits."""
    parts = []
    for key, value in detail.items():
        if isinstance(value, dict):
            inner = {name: one for name, one in value.items() if isinstance(one, float)}
            if key == "alpha" and inner:
                parts.append("alpha " + " / ".join(f"{one:.2f}" for one in inner.values()))
        elif isinstance(value, float):
            parts.append(f"{key.replace('_', ' ')} {value:.3g}")
        elif isinstance(value, int | str):
            parts.append(f"{key.replace('_', ' ')} {value}")
    return ", ".join(parts)


def table(kept: Kept) -> str:
    """All of it."""
    lines = []
    if kept["settings_name"] != "full":
        lines += [
            f"**Settings `{kept['settings_name']}`: the figures show that everything runs, and nothing else.**",
            "",
        ]
    goals = [row for row in kept["rows"] if row["goal"]]
    lines += ["| what | model | goal | measured, 95 % interval | | beside |", "| --- " * 6 + "|"]
    for row in goals:
        lines.append(
            f"| {row['what']} | {row['model']} | {words_of(row['goal'])} | {figure(row)} | {verdict(row)} "
            f"| {said(row['detail'])} |"
        )
    others = [row for row in kept["rows"] if not row["goal"]]
    if others:
        lines += ["", "Without a goal:", "", "| what | model | measured, 95 % interval | beside |", "| --- " * 4 + "|"]
        lines += [f"| {row['what']} | {row['model']} | {figure(row)} | {said(row['detail'])} |" for row in others]
    for row in kept["rows"]:
        if "contest" in row:
            lines += ["", *contest(row["model"], row["contest"])]
    unmeasured = [part for part in kept["parts"] if part["status"] != "measured"]
    if unmeasured:
        lines += ["", "Not measured:", ""]
        lines += [f"- {part['part']}, {part['model']}: {part['status']}, {part['reason']}" for part in unmeasured]
    return "\n".join([*lines, "", *footer(kept)])


def contest(model: str, one: Kept) -> list[str]:
    """Everybody who took part on one model at one temperature."""
    temperature = "greedy" if one["temperature"] == 0 else f"temperature {one['temperature']:g}"
    lines = [
        f"{model}, {temperature}, k = {one['k']}, our reader {one['reader']}; times as fast as `generate`:",
        "",
        "| contestant | tokens/s | against `generate` | alpha | tau | outputs that differ from ours / near-ties |",
        "| --- " * 6 + "|",
    ]
    for row in one["rows"]:
        alpha = "" if row["alpha"] is None else f"{row['alpha']:.2f}"
        tau = "" if row["tau"] is None else f"{row['tau']:.2f}"
        found = row["outputs"]
        same = "" if found is None else f"{found['divergences']} / {found['near_ties']} of {found['outputs']}"
        ratio = figure({"value": row["speedup"], "low": row["low"], "high": row["high"]})
        lines.append(f"| {row['contestant']} | {row['tokens_per_s']:.0f} | {ratio} | {alpha} | {tau} | {same} |")
    if one["compile_s"] is not None:
        lines += ["", f"Compilation and the first output took {one['compile_s']:.0f} s, which is in no figure."]
    else:
        lines += ["", f"Not compiled: {one['not_compiled']}."]
    return lines


def footer(kept: Kept) -> list[str]:
    """Where and with what."""
    hardware, versions, profile = kept["hardware"], kept["versions"], kept["profile"]
    said = f", which reads {profile['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s" if profile else ""
    notes = [model["note"] for model in kept["models"] if model["note"]]
    when = f"revision {str(kept['git'])[:12]}" + (" with changes" if kept["changed"] else "")
    return [
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads{said}; float32; torch "
        f"{versions['torch']}, transformers {versions['transformers']}; {when}; {kept['seconds']:.0f} s, load "
        f"{kept['load_before']:.1f} before.",
        *notes,
    ]
