import json
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
    "shape": {"layers": 1},
    "target_shape": {"layers": 4},
}


def made(folder: Path) -> Artifact:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    (folder / "recipe.yaml").write_text("name: x\n")
    return write_manifest(folder, FACTS)


def test_a_finished_artifact_opens_and_verifies(tmp_path: Path) -> None:
    made(tmp_path / "x").verify()
    assert [a.name for a in list_artifacts(tmp_path)] == ["x"]
    assert [a.name for a in list_artifacts(tmp_path / "x")] == ["x"]


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    artifact = made(tmp_path / "x")
    (tmp_path / "x" / "model" / "model.safetensors").write_bytes(b"weightz")
    (tmp_path / "x" / "recipe.yaml").unlink()
    with pytest.raises(ArtifactError, match=r"(?s)model\.safetensors: damaged.*recipe\.yaml: missing"):
        artifact.verify()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [(None, "no manifest.json"), ("{", "damaged"), ('{"schema_version": 99}', "not a manifest of version 1")],
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
    results = {"verdict": {"reason": "x is 1.5 times as fast"}, "hardware": {"cpu": "a cpu"}}
    path = artifact.write_eval(results)
    assert json.loads(path.read_text())["manifest_sha256"] == artifact.manifest_digest()
    assert "x is 1.5 times as fast" in (tmp_path / "x" / "README.md").read_text()
    artifact.verify()  # evaluations and the card do not count as damage
    write_manifest(tmp_path / "x", {**FACTS, "parameters": 6})
    assert artifact.evals() == []
