"""The model card of a published drafter: what it is, what was measured, how to run it, how it was made, what is not.

The Hub reads the metadata at its head, people the rest. Every figure is the last evaluation's. The same artifact gives
the same bytes, so that publishing again what is published changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from eval.verdict.rows import interval, mode
from factory.artifact import Artifact
from factory.card import certified, format_words, heads, measured, training
from factory.evidence import rows_at
from factory.publishing.gate import Standing, prompts_words
from factory.publishing.metadata import metadata, suite_words
from factory.publishing.origin import Origin
from factory.publishing.places import places
from factory.publishing.running import Recommended, how_to_run
from factory.wording import hardware_words, size

_HOW = (
    "Speedup is wall time from prompt in to last token out, plain decoding over speculative, both in one engine and in "
    "turns on the same prompts; intervals are 95 % bootstrap intervals over prompts. alpha is the share of examined "
    "guesses that were accepted. Fresh prompts had no part in choosing k."
)


class Drawn(Protocol):
    """A picture as the report draws it."""

    @property
    def title(self) -> str:
        """What it shows."""

    @property
    def name(self) -> str:
        """Its file without the ending."""

    @property
    def words(self) -> str:
        """What it shows, for those who cannot see it."""


def model_card(
    artifact: Artifact, standing: Standing, origin: Origin, name: str, pictures: Sequence[Drawn], *, settled: bool
) -> str:
    """README.md of the repository `name`. `settled`: its generation_config.json carries k."""
    manifest = artifact.manifest
    shown = origin.base_model or Path(manifest["target"]["model"]).name or "a folder"  # that was typed as a dot
    run = Recommended(name, origin.base_model, origin.revision, standing.row["k"], settled, manifest["weight_format"])
    recipe = (artifact.folder / "resolved.yaml").read_text(encoding="utf-8")
    for place in sorted(places(artifact), key=len, reverse=True):  # where a folder lies is nobody's business
        recipe = recipe.replace(place, Path(place).name)
    lines = [
        "---",
        metadata(artifact, standing, origin, name.partition("/")[2]),
        "---",
        f"# {artifact.name}: a drafter for {_linked(shown, origin)}",
        "",
        *_verdict(standing),
        "## What it is",
        "",
        *_what(artifact, origin, shown),
        "## Measured",
        "",
        *measured([standing.results], artifact.name),
        "",
        *_by_suite(artifact, standing),
        _HOW,
        "",
        *[line for one in pictures for line in _picture(one)],
        "## How to run it",
        "",
        *how_to_run(run),
        "",
        "## How it was made",
        "",
        "By drafter-factory, out of the target itself. The recipe as it ran:",
        "",
        "```yaml",
        recipe.strip(),
        "```",
        "",
        *[line.replace("## Training", "### Training") for line in training(manifest["facts"], recipe)],
        *_provenance(artifact, standing),
        *_limits(artifact, standing, shown),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _picture(one: Drawn) -> list[str]:
    words = f"{one.title}. {one.words}".replace("[", "(").replace("]", ")")
    return [f"![{' '.join(words.split())}](plots/{one.name}.png)", ""]


def _linked(shown: str, origin: Origin) -> str:
    return f"[{shown}](https://huggingface.co/{shown})" if origin.base_model else f"`{shown}`"


def _verdict(standing: Standing) -> list[str]:
    """The first thing that a reader is told, good or bad."""
    row = standing.row
    where = f"k = {row['k']}, {prompts_words(row)}, {_hardware(standing)}"
    if standing.faster:
        said = f"**{row['speedup']:.2f} times as fast as the target alone**, with the target's own output"
        return [f"{said}: 95 % interval {row['speedup_low']:.2f} to {row['speedup_high']:.2f}; {where}.", ""]
    return [
        f"**Not shown to be faster than the target alone.** It measured {interval(row)}; {where}.",
        "",
        f"It is published all the same, because: {standing.excuse}",
        "",
    ]


def _hardware(standing: Standing) -> str:
    dtype = standing.results["target"]["dtype"]
    return f"{hardware_words(standing.results['hardware'])}, {dtype}, batch {standing.row.get('batch') or 1}"


def _what(artifact: Artifact, origin: Origin, shown: str) -> list[str]:
    made = artifact.manifest
    shape, target = made["shape"], made["target_shape"]
    here = (
        "A small model that proposes tokens for speculative decoding: the target checks them in one pass and keeps "
        "those that it would have written itself. "
    ) + (
        "Its shape was cut out of the target's, its weights were drawn anew, and it has the target's tokenizer."
        if any(fact["kind"] == "fresh" for fact in made["facts"])
        else "It is made of the target's own weights, and has its tokenizer."
    )
    unnamed = (
        f"The target, `{shown}`, is a folder of the publisher's and has no name on the Hub, so the metadata names no "
        "base model."
    )
    relation = (
        "The metadata calls it a finetune of its target, since the Hub has no word for a model that was cut out of "
        "another."
    )
    return [
        here,
        "",
        relation if origin.base_model else unnamed,
        "",
        "| what | this drafter | the target |",
        "| --- | --- | --- |",
        f"| parameters | {made['parameters']:,} | {made['target']['parameters']:,} |",
        f"| layers | {shape['layers']} | {target['layers']} |",
        f"| FFN channels | {shape['ffn']} | {target['ffn']} |",
        f"| heads | {heads(shape)} | {heads(target)} |",
        f"| weights | {size(made['bytes_on_disk'])}, {format_words(made['weight_format'])} | |",
        "",
    ]


def _by_suite(artifact: Artifact, standing: Standing) -> list[str]:
    """The recommended k, suite by suite and temperature by temperature."""
    suites = {suite["name"]: suite for suite in standing.results["suites"]}
    lines = [
        f"At k = {standing.row['k']}, suite by suite, on {prompts_words(standing.row).split(' ', 1)[1]}:",
        "",
        "| prompts | tokens chosen | speedup, 95 % interval | alpha | tokens a target pass | tokens/s | target alone |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows_at(standing.results, artifact.name, standing.row):
        figures = [f"{row[key]:.2f}" if row.get(key) is not None else "" for key in ("alpha", "tau")]
        speeds = [f"{row[key]:,.0f}" for key in ("tokens_per_s", "baseline_tokens_per_s")]
        cells = [suite_words(suites[row["suite"]]), mode(row["temperature"]), interval(row), *figures, *speeds]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _provenance(artifact: Artifact, standing: Standing) -> list[str]:
    made, results = artifact.manifest, standing.results
    rows = [
        ("made by", f"drafter-factory {made.get('factory_version')}{_at(made.get('git_sha'))}"),
        ("made with", _versions(made.get("versions"))),
        ("made on", _machine(made.get("hardware"))),
        ("seed of the recipe", made.get("seed")),
        ("digest of all that decides its weights", made.get("digest")),
        ("manifest", f"sha256 {artifact.manifest_digest()}, in `factory/manifest.json`, with every file's own"),
        ("target (weights, config, tokenizer)", f"sha256 {made['target']['identity']}"),
        ("target's revision", made["target"]["revision"]),
        ("measured by", f"drafter-factory {results['versions'].get('drafter-factory')}{_at(results.get('git'))}"),
        ("measured with", _versions(results["versions"])),
        ("measured on", _machine(results["hardware"])),
        ("seed of the evaluation", (results.get("plan") or {}).get("seed")),
        *((f"prompts `{one['name']}`", f"sha256 {one['sha256']}") for one in results["suites"]),
    ]
    found = [f"| {what} | {value} |" for what, value in rows if value not in (None, "")]
    return ["## Provenance", "", "| what | value |", "| --- | --- |", *found, ""]


def _at(git_sha: str | None) -> str:
    return f", revision {git_sha}" if git_sha else ""


def _versions(versions: dict[str, str] | None) -> str:
    return ", ".join(f"{name} {version}" for name, version in (versions or {}).items() if name != "drafter-factory")


def _machine(hardware: dict[str, Any] | None) -> str:
    told = hardware or {}
    return ", ".join(str(told[key]) for key in ("gpu", "cpu", "system") if told.get(key))


def _limits(artifact: Artifact, standing: Standing, shown: str) -> list[str]:
    """What is not shown, and where it does not help."""
    certificate = artifact.certificate()
    lossless = (
        " ".join(certified(certificate))
        if certificate and certificate["current"]
        else "Losslessness was checked on the prompts of the evaluation, in this engine; it was not certified."
    )
    best = (artifact.manifest.get("forecast") or {}).get("best", {}).get("bytes", [])
    ceiling = next((one["speedup"] for one in best if one["alpha"] == 0.8), None)
    elsewhere = f" Its sizes alone allow {ceiling:.2f}x at most, at an acceptance of .80." if ceiling else ""
    lines = [
        f"It speeds up `{shown}` with just these weights. A finetune of that model, or another revision, will accept "
        "fewer of its guesses.",
        "It is no language model to use alone: what it writes by itself is worse than what the target writes.",
        f"The figures are of {_hardware(standing)}, and of these prompts. Other hardware, batches, contexts and texts "
        f"give other figures, and may give none above 1.{elsewhere} `factory doctor` forecasts for a machine, "
        "`factory eval` measures on it.",
        lossless,
        "In other programs the output is the target's own as far as their verification is sound, which was not "
        "checked here.",
    ]
    return ["## Limits", "", *[f"- {line}" for line in lines]]
