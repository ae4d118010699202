import json
import os
from pathlib import Path

import pytest

from factory.artifact import Artifact, list_artifacts, write_manifest
from factory.errors import ArtifactError

FACTS = {
    "name": "x",
    "raw": False,
    "target": {"model": "m", "path": None, "revision": None, "identity": "ab" * 32, "parameters": 10},
    "dtype": "float32",
    "parameters": 5,
    "bytes_on_disk": 20,
    "weight_format": {"format": "float32", "loader": "transformers"},
    "shape": {"layers": 1, "ffn": 8, "heads": 2, "kv_heads": 1, "head_dim": 4},
    "target_shape": {"layers": 4, "ffn": 16, "heads": 4, "kv_heads": 2, "head_dim": 4},
    "facts": [{"kind": "drop_layers", "edit": {"keep_layers": [3]}}, {"kind": "prune_width", "edit": {}}],
}


def made(folder: Path) -> Artifact:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    (folder / "resolved.yaml").write_text("name: x\n")
    return write_manifest(folder, FACTS)


def test_a_finished_artifact_opens_and_verifies(tmp_path: Path) -> None:
    made(tmp_path / "x").verify()
    assert [a.name for a in list_artifacts(tmp_path)] == ["x"]
    assert [a.name for a in list_artifacts(tmp_path / "x")] == ["x"]


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    artifact = made(tmp_path / "x")
    (tmp_path / "x" / "model" / "model.safetensors").write_bytes(b"weightz")
    (tmp_path / "x" / "resolved.yaml").unlink()
    with pytest.raises(ArtifactError, match=r"(?s)model\.safetensors: damaged.*resolved\.yaml: missing"):
        artifact.verify()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [(None, "no manifest.json"), ("{", "damaged"), ('{"schema_version": 99}', "not a manifest of version 2")],
)
def test_what_is_not_a_finished_artifact_is_refused(tmp_path: Path, manifest: str | None, message: str) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(tmp_path)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        Artifact.open(tmp_path / "none")
    with pytest.raises(ArtifactError, match="no such folder"):
        list_artifacts(tmp_path / "none")


def test_an_eval_belongs_to_the_manifest_it_measured(tmp_path: Path) -> None:
    artifact = made(tmp_path / "x")
    figures = {"k": 2, "prompts": 8, "speedup": 1.5, "speedup_low": 1.25, "speedup_high": 1.75, "alpha": 0.625}
    mine = {**figures, "artifact": "x", "prompt_set": "confirm", "forecast_speedup": 1.75, "round_cost": 1.5}
    results = {
        "verdict": {"reason": "y is 1.9 times as fast"},
        "hardware": {"cpu": "a cpu", "threads": 2},
        "target": {"dtype": "float32", "reader": "eager"},
        "suites": [{"name": "code"}],
        "candidates": [mine, {**mine, "artifact": "y", "speedup": 1.9}],
    }
    path = artifact.write_eval(results)
    assert json.loads(path.read_text())["manifest_sha256"] == artifact.manifest_digest()
    card = (tmp_path / "x" / "README.md").read_text()
    assert "| 2 | 8 fresh | 1.50x (1.25 to 1.75) | 1.75 | 0.62 | 1.50 |" in card
    assert "1.90x" not in card  # its own figures only, and the verdict
    assert "Of all that took part: y is 1.9 times as fast" in card
    assert "a cpu, 2 threads; float32, reader eager, batch 1; prompts: code." in card
    assert "| layers | 1 (target 4): 3 |" in card and "| heads | 2 on 1 key/value heads of 4 (target" in card
    artifact.verify()  # evaluations and the card do not count as damage
    write_manifest(tmp_path / "x", {**FACTS, "parameters": 6})
    assert artifact.evals() == []


RECIPE = """\
name: x
stages:
  - {kind: drop_layers, keep: 1}
  - {kind: distill, method: f_distill, loss: reverse_kl}
  - kind: distill
    loss: [{kind: tv, weight: [[0.0, 0.0], [1.0, 1.5]]}, {kind: forward_kl, weight: 0.5}]
"""


def carded(folder: Path, recipe: str, *stages: dict[str, object]) -> str:
    """The card of an artifact whose stages reported that."""
    (folder / "model").mkdir(parents=True)
    (folder / "resolved.yaml").write_text(recipe)
    write_manifest(folder, {**FACTS, "facts": [FACTS["facts"][0], *stages]}).write_card()
    return (folder / "README.md").read_text()


def test_the_card_says_what_each_training_took_and_brought(tmp_path: Path) -> None:
    before, after = (
        {"forward_kl": kl, "overlap": overlap, "judged_tokens": 99} for kl, overlap in ((2, 0.25), (1, 0.5))
    )
    first = {"kind": "distill", "steps": 300, "planned_steps": 400, "kept_step": 200, "trained_tokens": 1234567}
    first |= {"held_out_before": before, "held_out_after": after}
    second = {"kind": "distill", "steps": 50, "planned_steps": 50, "kept_step": 50, "trained_tokens": 9000}
    second |= {"held_out_before": None, "held_out_after": None}
    second |= {"teacher_cache": {"bytes": 64e6, "alpha_bound": 0.00123, "top_k": 64, "drawn": 0}}
    card = carded(tmp_path / "x", RECIPE, first, second)
    assert (
        "| 2, distill | 300 of 400, stopped early; kept: 200 | 1.23 M | 0.250 -> 0.500 | 2.000 -> 1.000 "
        "| f_distill with reverse_kl | online |"
    ) in card
    assert (
        "| 3, distill | 50 | 9.00 k |  |  | (0 to 1.5) tv + 0.5 forward_kl "
        "| a cache of 64.0 MB, which moves the mean overlap by at most 0.0012 |"
    ) in card
    assert card.index("## Forecast") < card.index("## Training") < card.index("## Measured")
    second["teacher_cache"] |= {"drawn": 16}
    again = carded(tmp_path / "y", RECIPE, first, second)
    assert "| a cache of 64.0 MB, which moves the mean overlap by at most 0.0012 in 95 cases of 100 |" in again


def test_the_card_of_an_earlier_training_leaves_out_what_was_not_counted(tmp_path: Path) -> None:
    earlier = {"kind": "distill", "steps": 760, "rows": 608, "answer_tokens": 67206, "losses": [0.5]}
    plain = "stages: [{kind: drop_layers}, {kind: distill}]"
    for name, recipe, loss in (
        ("v", plain, "forward_kl"),
        ("w", "stages: 3", ""),
        ("x", "a: b", ""),
        ("y", "a: [", ""),
    ):
        card = carded(tmp_path / name, recipe, earlier)
        assert f"| 2, distill | 760 |  |  |  | {loss} | online |" in card
    assert "## Training" not in carded(tmp_path / "z", RECIPE)


def test_the_last_evaluation_is_the_one_that_was_kept_last(tmp_path: Path) -> None:
    artifact = made(tmp_path / "x")
    facts = {"hardware": {"cpu": "a"}, "target": {"dtype": "d", "reader": "r"}, "suites": [], "candidates": []}
    paths = [artifact.write_eval({**facts, "verdict": {"reason": str(n)}}) for n in range(3)]
    for n, path in enumerate(reversed(paths)):  # as copying leaves them
        os.utime(path, (n, n))
    assert [result["verdict"]["reason"] for result in artifact.evals()] == ["0", "1", "2"]
