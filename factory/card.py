"""The card of an artifact: what it is, how it was made, what was forecast and what was measured, as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(made: dict[str, Any], evals: list[dict[str, Any]], recipe: str, folder: Path) -> str:
    """The card of a manifest; `evals` oldest first, `recipe` as it ran, `folder` as a command would name it."""
    name = str(made["name"])
    lines = [
        f"# {name}",
        "",
        f"A drafter for speculative decoding with `{made['target']['model']}`"
        + (", before any training (a control)." if made["raw"] else "."),
        "",
        "| what | value |",
        "| --- | --- |",
        f"| parameters | {made['parameters']:,} (target {made['target']['parameters']:,}) |",
        f"| layers | {made['shape']['layers']} (target {made['target_shape']['layers']}){_kept(made['facts'])} |",
        f"| FFN channels | {made['shape']['ffn']} (target {made['target_shape']['ffn']}) |",
        f"| heads | {_heads(made['shape'])} (target {_heads(made['target_shape'])}) |",
        f"| bytes on disk | {made['bytes_on_disk']:,} |",
        f"| weights | {_format_words(made['weight_format'])} |",
        f"| target (weights, config, tokenizer) | sha256 {made['target']['identity'][:16]} |",
        "",
        *_loading(made["weight_format"]),
        "## Forecast",
        "",
        *_forecast_lines(made.get("forecast")),
        "",
        "## Measured",
        "",
    ]
    lines += _measured(evals, name) or [f"Not yet: `factory eval {folder}`"]
    return "\n".join([*lines, "", "## Recipe, as it ran", "", "```yaml", recipe.strip(), "```", ""])


def _heads(shape: dict[str, Any]) -> str:
    return f"{shape['heads']} on {shape['kv_heads']} key/value heads of {shape['head_dim']}"


def _kept(facts: list[dict[str, Any]]) -> str:
    """Which layers of the target stay, where one stage alone decided it."""
    kept = [stage["edit"]["keep_layers"] for stage in facts if (stage.get("edit") or {}).get("keep_layers")]
    return f": {', '.join(map(str, kept[0]))}" if len(kept) == 1 else ""


def _measured(evals: list[dict[str, Any]], name: str) -> list[str]:
    """This drafter's own figures of the last evaluation, and that evaluation's verdict; empty where there is none."""
    if not evals:
        return []
    last = evals[-1]
    lines = [
        "| k | prompts | speedup, 95 % interval | forecast | alpha | a round, in target steps |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in last["candidates"]:
        if row["artifact"] == name:
            interval = "" if row["speedup_low"] is None else f" ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"
            forecast, alpha, cost = (row.get(key) for key in ("forecast_speedup", "alpha", "round_cost"))
            cells = [f"{value:.2f}" if value is not None else "" for value in (forecast, alpha, cost)]
            fresh = "fresh" if row["prompt_set"] == "confirm" else "to choose by"
            lines.append(
                f"| {row['k']} | {row['prompts']} {fresh} | {row['speedup']:.2f}x{interval} | {' | '.join(cells)} |"
            )
    hardware, target = last["hardware"], last["target"]
    where = hardware.get("gpu") or f"{hardware.get('cpu')}, {hardware.get('threads')} threads"
    suites = ", ".join(suite["name"] for suite in last["suites"])
    return [
        *lines,
        "",
        f"{where}; {target['dtype']}, reader {target['reader']}, batch 1; prompts: {suites}. The forecast is at the "
        "measured alpha.",
        "",
        f"Of all that took part: {last['verdict']['reason']}",
    ]


def _format_words(stored: dict[str, Any]) -> str:
    if stored["format"] != "gptq":
        return str(stored["format"])
    slow = f". {stored['only_saves_size']}" if stored["only_saves_size"] else ""
    return f"GPTQ, {stored['bits']} bits, groups of {stored['group_size']}; kernel {stored['kernel']}{slow}"


def _loading(stored: dict[str, Any]) -> list[str]:
    """How to load it where stock transformers cannot."""
    if stored["loader"] == "transformers":
        return []
    load = "`gptqmodel.GPTQModel.load(folder)`"
    return [f"This folder loads through gptqmodel only, {load}: {stored['why_loader']}.", ""]


def _forecast_lines(forecast: dict[str, Any] | None) -> list[str]:
    """What its sizes promised before anything was measured."""
    if forecast is None:
        return ["None was made for it."]
    ceiling, eager = (
        next(best for best in forecast["best"][kind] if best["alpha"] == 0.8)["speedup"] for kind in ("bytes", "time")
    )
    return [
        f"c {forecast['c_bytes']:.3f} in bytes and {forecast['c_time']:.3f} in time; at alpha .80 at best "
        f"{ceiling:.2f}x where only bytes count, {eager:.2f}x with eager transformers on {forecast['profile']['name']}."
    ]
