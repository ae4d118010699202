"""What may be published, and what stock transformers makes of an artifact that was evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from factory.artifact import Artifact
from factory.errors import ArtifactError
from factory.evidence import best_row
from factory.publishing.gate import PublishError, standing

Measured = Callable[..., Artifact]


def row(k: object, prompt_set: str, low: float | None, speedup: float = 1.3, lossless: bool = True) -> dict[str, Any]:
    figures = {"speedup": speedup, "speedup_low": low, "speedup_high": 2.0, "prompts": 4, "mean_k": 2.0}
    return {"artifact": "tiny", "k": k, "prompt_set": prompt_set, "matches_target": lossless, **figures}


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([row(2, "choose", 1.1), row(3, "choose", 1.2)], (3, "choose")),
        ([row(2, "choose", 1.1), row(3, "choose", 1.2), row(3, "confirm", 0.9)], (3, "confirm")),
        # the first choice did not hold up on fresh prompts; the second did
        (
            [row(2, "choose", 1.1), row(3, "choose", 1.2), row(3, "confirm", 0.9), row(2, "confirm", 1.1)],
            (2, "confirm"),
        ),
        ([row(2, "choose", 1.1), row(3, "choose", 1.2, lossless=False)], (2, "choose")),
        ([row("auto", "choose", 1.5), row(2, "choose", 1.1)], (2, "choose")),  # only a fixed k can be recommended
        ([row(2, "choose", None), row(3, "choose", 0.4)], (3, "choose")),
    ],
)
def test_the_row_that_speaks_for_a_drafter(rows: list[dict[str, Any]], best: tuple[int, str]) -> None:
    found = best_row({"candidates": [*rows, {**row(9, "confirm", 3.0), "artifact": "other"}]}, "tiny")
    assert found is not None and (found["k"], found["prompt_set"]) == best
    assert best_row({"candidates": rows}, "nobody") is None


def changed(**figures: object) -> Callable[[dict[str, Any]], None]:
    def change(results: dict[str, Any]) -> None:
        for one in results["candidates"]:
            if one["artifact"] == "tiny":
                one |= figures

    return change


def test_a_drafter_that_is_surely_faster_passes(faster: Artifact) -> None:
    found = standing(faster, "needless")
    assert found.faster and found.excuse is None and found.row["speedup"] == 1.5


def test_one_that_is_not_shown_to_be_faster_needs_a_reason(measured: Measured) -> None:
    slow = {"speedup": 1.1, "speedup_low": 0.95, "speedup_high": 1.3, "prompts": 7, "prompt_set": "confirm", "k": 2}
    artifact = measured(changed(**slow))
    with pytest.raises(PublishError) as refused:
        standing(artifact)
    said = f"{artifact.folder}: its best row, k = 2 on 7 fresh prompts, measured 1.10x (0.95 to 1.30): "
    assert str(refused.value).startswith(f"{said}the lower bound 0.95 is not above 1")
    assert "--even-if-slower REASON" in str(refused.value)
    assert standing(artifact, "  for\n teaching ").excuse == "for teaching"
    with pytest.raises(PublishError, match="wants a reason"):
        standing(artifact, " ")
    measured(changed(speedup_low=None))
    with pytest.raises(PublishError, match="one observation, which has no interval"):
        standing(artifact)


def failed_parity(results: dict[str, Any]) -> None:
    next(one for one in results["parity"] if one["artifact"] == "tiny").update(passed=False, divergences=2)


def larger_batch_differs(results: dict[str, Any]) -> None:
    one = next(one for one in results["rows"] if one["artifact"] == "tiny" and one["k"] == 2)
    results["rows"].append({**one, "batch": 8, "matches_target": False})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(matches_target=False), "at k = 2, on .* not all outputs were the target's own"),
        (changed(matches_target=None), "it is not known whether outputs were the target's own"),
        (failed_parity, "at k = 2, 2 of . outputs in float64 were not the target's"),
        (lambda results: results.update(parity=[]), "parity was not checked"),
        (larger_batch_differs, "at k = 2, stories, greedy, batch 8, not all outputs were the target's own"),
    ],
)
def test_no_reason_lets_one_pass_that_is_not_lossless(
    faster: Artifact, measured: Measured, change: Any, message: str
) -> None:
    measured(change)
    with pytest.raises(PublishError, match=message):
        standing(faster, "whatever the reason")


def test_a_certificate_that_says_otherwise_is_heard(faster: Artifact) -> None:
    faster.certificate = lambda: {"current": True, "verdict": {"lossless": False, "reason": "two texts differ"}}  # type: ignore[method-assign]
    with pytest.raises(PublishError, match="its certificate says: two texts differ"):
        standing(faster)


def test_what_was_not_evaluated_is_not_published(artifact: Artifact, measured: Measured) -> None:
    measured(changed(k="auto"))
    with pytest.raises(PublishError, match="measured no fixed k"):
        standing(artifact)
    manifest = artifact.folder / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")  # as one that was built again: another digest
    with pytest.raises(PublishError, match="not evaluated yet, or only before it was built again"):
        standing(artifact)


def test_stock_transformers_drafts_as_it_was_measured(artifact: Artifact) -> None:
    artifact.verify()
    best = best_row(artifact.evals()[-1], "tiny")
    assert best is not None
    settings = GenerationConfig.from_pretrained(artifact.model_folder)
    assert settings.num_assistant_tokens == best["k"] and settings.num_assistant_tokens_schedule == "constant"
    assert settings.assistant_confidence_threshold == 0 and settings.eos_token_id == 2
    target = AutoModelForCausalLM.from_pretrained(str(artifact.target_folder()))
    drafter = AutoModelForCausalLM.from_pretrained(artifact.model_folder)
    asked: list[int] = []
    forward = target.forward
    target.forward = lambda *args, **kwargs: (asked.append(kwargs["input_ids"].shape[1]), forward(*args, **kwargs))[1]
    prompt = torch.tensor([[1, 40, 50, 60]])
    mine = target.generate(prompt, assistant_model=drafter, max_new_tokens=16, do_sample=False)
    assert max(asked[1:]) == best["k"] + 1  # the guesses and the token before them, never more
    assert mine.tolist() == target.generate(prompt, max_new_tokens=16, do_sample=False).tolist()


def test_only_k_may_differ_from_the_manifest(artifact: Artifact, measured: Measured) -> None:
    path = artifact.model_folder / "generation_config.json"
    measured(changed(k=3))
    assert json.loads(path.read_text())["num_assistant_tokens"] == 3
    artifact.verify()
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.5}, indent=2, sort_keys=True) + "\n")
    with pytest.raises(ArtifactError, match=r"generation_config\.json: damaged"):
        artifact.verify()
    assert artifact.generation_settings() is None
