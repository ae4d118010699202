"""The head of a model card, as the Hub reads it: base model, licence, tags, and the measurements as a model-index."""

from __future__ import annotations

from typing import Any

from eval.verdict.rows import mode
from factory.artifact import Artifact
from factory.evidence import Row, rows_at
from factory.files.documents import read
from factory.publishing.gate import Standing
from factory.publishing.origin import Origin

# Of what the Hub knows (adapter, merge, quantized, finetune) the one that is true of a model with weights of its own
# that were the base model's. "quantized" would list a drafter among the target's replacements.
RELATION = "finetune"
_METRICS = (
    ("speedup", "speedup", "speedup over the target alone"),
    ("speedup_low", "speedup_lower_bound", "lower bound of the speedup's 95 % interval"),
    ("alpha", "acceptance_rate", "alpha: share of examined guesses that were accepted"),
    ("tau", "tokens_per_target_pass", "tau: tokens per pass of the target"),
)


def metadata(artifact: Artifact, standing: Standing, origin: Origin, name: str) -> str:
    """The YAML between the card's two lines of dashes; `name` is the repository's."""
    from huggingface_hub import ModelCardData

    stored = artifact.manifest["weight_format"]
    named: dict[str, Any] = {**origin.license, **({"base_model_relation": RELATION} if origin.base_model else {})}
    gptq = ["gptq"] if stored["format"] == "gptq" else []
    data = ModelCardData(
        base_model=origin.base_model,
        library_name="transformers" if stored["loader"] == "transformers" else "gptqmodel",
        pipeline_tag="text-generation",
        tags=["speculative-decoding", "assisted-generation", "draft-model", "drafter-factory", *gptq],
        datasets=_datasets(artifact),
        model_name=name,
        eval_results=_results(artifact, standing),
        **named,
    )
    return str(data.to_yaml()).strip()


def _results(artifact: Artifact, standing: Standing) -> list[Any]:
    """One result a suite and temperature, at the k that is recommended."""
    from huggingface_hub import EvalResult

    suites = {suite["name"]: suite for suite in standing.results["suites"]}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=f"drafter-factory-{row['suite']}",
            dataset_name=suite_words(suites[row["suite"]]),
            dataset_config=mode(row["temperature"]),
            dataset_split="fresh" if row["prompt_set"] == "confirm" else "choose",
            dataset_revision=suites[row["suite"]]["sha256"],
            metric_type=kind,
            metric_value=round(row[key], 4),
            metric_name=f"{words}, k = {row['k']}",
        )
        for row in rows_at(standing.results, artifact.name, standing.row)
        for key, kind, words in _METRICS
        if row.get(key) is not None
    ]


def suite_words(suite: Row) -> str:
    """A suite of prompts by name and version."""
    return f"{suite['name']}, version {suite['version']}" if suite["version"] else f"{suite['name']}, of the publisher"


def _datasets(artifact: Artifact) -> list[str] | None:
    """The dataset on the Hub that its prompts came from, where they did."""
    recipe = read((artifact.folder / "resolved.yaml").read_text(encoding="utf-8")).data
    prompts = (recipe.get("data") or {}).get("prompts") if isinstance(recipe, dict) else None
    named = prompts.get("dataset") if isinstance(prompts, dict) else None
    return [named] if isinstance(named, str) and named.count("/") == 1 and not named.startswith((".", "/")) else None
