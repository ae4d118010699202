"""The card of an artifact: what it is, how it was made, what was forecast and what was measured, as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factory.errors import RecipeError
from factory.files.documents import read
from factory.wording import count, hardware_words, size


def draw(
    made: dict[str, Any],
    evals: list[dict[str, Any]],
    recipe: str,
    folder: Path,
    certificate: dict[str, Any] | None = None,
) -> str:
    """The card of a manifest; `evals` oldest first, `recipe` as it ran, `folder` as a command would name it.

    `certificate` as `Artifact.certificate` gives it.
    """
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
        f"| heads | {heads(made['shape'])} (target {heads(made['target_shape'])}) |",
        f"| bytes on disk | {made['bytes_on_disk']:,} |",
        f"| weights | {format_words(made['weight_format'])} |",
        f"| target (weights, config, tokenizer) | sha256 {made['target']['identity'][:16]} |",
        "",
        *_loading(made["weight_format"]),
        "## Forecast",
        "",
        *_forecast_lines(made.get("forecast")),
        "",
        *training(made["facts"], recipe),
        "## Measured",
        "",
    ]
    lines += measured(evals, name) or [f"Not yet: `factory eval {folder}`"]
    lines += ["", "## Losslessness", "", _certified(certificate, folder)]
    return "\n".join([*lines, "", "## Recipe, as it ran", "", "```yaml", recipe.strip(), "```", ""])


def heads(shape: dict[str, Any]) -> str:
    """A shape's heads in words."""
    return f"{shape['heads']} on {shape['kv_heads']} key/value heads of {shape['head_dim']}"


def _kept(facts: list[dict[str, Any]]) -> str:
    """Which layers of the target stay, where one stage alone decided it."""
    kept = [stage["edit"]["keep_layers"] for stage in facts if (stage.get("edit") or {}).get("keep_layers")]
    return f": {', '.join(map(str, kept[0]))}" if len(kept) == 1 else ""


def training(facts: list[dict[str, Any]], recipe: str) -> list[str]:
    """What each distillation took and brought; nothing for a drafter that had none."""
    trained = [(place, stage) for place, stage in enumerate(facts) if "steps" in stage]
    if not trained:
        return []
    lines = [
        "## Training",
        "",
        "| stage | steps | tokens | held-out overlap | forward KL | loss | teacher |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    asked = _asked(recipe)
    for place, stage in trained:
        mine = asked[place] if place < len(asked) else {}
        loss = _loss(mine) if mine.get("kind") == stage["kind"] else ""
        before, after = stage.get("held_out_before"), stage.get("held_out_after")
        cells = [
            f"{place + 1}, {stage['kind']}",
            _steps(stage),
            count(stage["trained_tokens"]) if "trained_tokens" in stage else "",
        ]
        cells += [
            f"{before[key]:.3f} -> {after[key]:.3f}" if before and after else "" for key in ("overlap", "forward_kl")
        ]
        lines.append(f"| {' | '.join([*cells, loss, _teacher(stage)])} |")
    return [*lines, ""]


def _asked(recipe: str) -> list[dict[str, Any]]:
    """What it asks of each stage; nothing where the file was changed into something else."""
    try:
        return [stage if isinstance(stage, dict) else {} for stage in read(recipe).data["stages"]]
    except (RecipeError, KeyError, TypeError):
        return []


def _steps(stage: dict[str, Any]) -> str:
    """How many; of how many, where it ended early, and which weights were kept, where not the last."""
    steps, planned, kept = (stage.get(key, stage["steps"]) for key in ("steps", "planned_steps", "kept_step"))
    early = f" of {planned}, stopped early" if steps < planned else ""
    return f"{steps}{early}" + (f"; kept: {kept}" if kept != steps else "")


def _loss(asked: dict[str, Any]) -> str:
    """The method's name or the loss's kind; of a mix its kinds with their weights."""
    loss, method = asked.get("loss"), asked.get("method")
    if isinstance(loss, list):
        loss = " + ".join(f"{_weight(term.get('weight', 1.0))} {term['kind']}" for term in loss)
    return " with ".join(str(one) for one in (method, loss) if one) or "forward_kl"


def _weight(weight: float | list[list[float]]) -> str:
    """A number; of a schedule where it begins and ends."""
    return f"({weight[0][1]:g} to {weight[-1][1]:g})" if isinstance(weight, list) else f"{weight:g}"


def _teacher(stage: dict[str, Any]) -> str:
    """Online, or the cache: how large it is, and the most that it can be wrong by."""
    cache = stage.get("teacher_cache")
    if cache is None:
        return "online"
    bound = cache.get("alpha_bound")
    often = " in 95 cases of 100" if cache.get("drawn") else ""
    wrong = f", which moves the mean overlap by at most {bound:.2g}{often}" if bound is not None else ""
    return f"a cache of {size(cache.get('bytes'))}{wrong}"


def measured(evals: list[dict[str, Any]], name: str) -> list[str]:
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
    suites = ", ".join(suite["name"] for suite in last["suites"])
    batch = last["verdict"].get("batch") or 1  # evaluations of earlier versions have none
    return [
        *lines,
        "",
        f"{hardware_words(hardware)}; {target['dtype']}, reader {target['reader']}, batch {batch}; prompts: {suites}. "
        "The forecast is at the measured alpha.",
        "",
        f"Of all that took part: {last['verdict']['reason']}",
    ]


def _certified(certificate: dict[str, Any] | None, folder: Path) -> str:
    """One paragraph; of an older manifest only that there is one."""
    again = f"`factory eval {folder} --certify`"
    if certificate is None:
        return f"Not certified: {again}"
    if not certificate["current"]:
        return f"The certificate that lies here is of an older build, and says nothing about this one: {again}"
    return " ".join(certified(certificate))


def certified(certificate: dict[str, Any]) -> list[str]:
    """What a certificate found, sentence by sentence."""
    said, ks = certificate["verdict"], ", ".join(map(str, certificate["ks"]))
    head = "Lossless" if said["lossless"] else "NOT lossless"
    return [
        f"{head} at k = {ks}: {said['reason']}.",
        *([f"{said['not_run'][0].upper()}{said['not_run'][1:]}."] if said["not_run"] else []),
        *_compared(certificate),
        _sampled(certificate["sampling"]),
        _made_with(certificate),
    ]


def _compared(certificate: dict[str, Any]) -> list[str]:
    """Greedy outputs: in float64 where that was run, and as served."""
    prompts, served, exact = (certificate[part] for part in ("prompts", "served", "float64"))
    origins = {"suite": "of the suites", "cut": "cut from them", "written_by_target": "written by the target"}
    sources = ", ".join(f"{count} {origins[name]}" for name, count in prompts["sources"].items() if count)
    lines = [f"Greedy, on {prompts['distinct']} distinct prompts ({sources}), {prompts['new_tokens']} new tokens each:"]
    if exact["ran"]:
        wrong = sum(row["divergences"] for row in exact["rows"])
        readers = " and ".join(dict.fromkeys(row["reader"] for row in exact["rows"]))
        lines.append(
            f"in float64 (reader {readers}) {wrong} of {sum(row['outputs'] for row in exact['rows'])} outputs differ, "
            "those of plain decoding from transformers' own uncached argmax and the others from plain decoding;"
        )
    rows = served["rows"]
    bounds = [row["near_tie_bound"] for row in rows if row["near_tie_bound"] is not None]
    bound = f", with a measured bound of {max(bounds):.2g}" if bounds else ""
    lines.append(
        f"in {served['dtype']} (reader {served['reader']}) {sum(row['divergences'] for row in rows)} of "
        f"{sum(row['outputs'] for row in rows)} differ, {sum(row['near_ties'] for row in rows)} of them at near-ties"
        f"{bound}."
    )
    return lines


def _sampled(sampling: dict[str, Any]) -> str:
    """Sampled texts against the target's exact law."""
    rows = sampling["rows"]
    widest = max(rows, key=lambda row: float(row["total_variation"] - row["total_variation_expected"]))
    return (
        f"Sampled: {len(rows)} chi-square tests of {sampling['draws']} texts each against the exact joint law of the "
        f"first k + 2 tokens (computed in {sampling['reference']}), smallest p after Holm "
        f"{min(row['p_adjusted'] for row in rows):.2g} at level {sampling['level']}; total variation at worst "
        f"{widest['total_variation']:.3f}, where as many exact draws have {widest['total_variation_expected']:.3f} on "
        f"average and plain decoding's had {widest['plain_total_variation']:.3f}."
    )


def _made_with(certificate: dict[str, Any]) -> str:
    hardware, versions = certificate["hardware"], certificate["versions"]
    suites = ", ".join(
        f"{suite['name']} {'version ' + str(suite['version']) if suite['version'] else 'of the user'} "
        f"(sha256 {suite['sha256'][:12]})"
        for suite in certificate["suites"]
    )
    return (
        f"Prompts: {suites}; seed {certificate['seed']}; {hardware_words(hardware)}; torch {versions['torch']}, "
        f"transformers {versions['transformers']}; drafter-factory {versions['drafter-factory']}."
    )


def format_words(stored: dict[str, Any]) -> str:
    """How weights are stored, and what runs them."""
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
        f"{ceiling:.2f}x where only bytes count, {eager:.2f}x with this engine on {forecast['profile']['name']}."
    ]
