"""Artifacts damaged in each way that a disk, a copy or a hand can damage them, and what each command says to it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from factory.building.build import build
from factory.recipes.recipe import load

Run = Callable[..., tuple[int, str, str]]
RECIPE = "name: tiny\ntarget: {{model: {target}}}\nstages:\n  - {{kind: drop_layers, keep: 2}}\n"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_target: Callable[..., Path]) -> Path:
    """A folder with a real artifact, `d/tiny`, and its target, `model`."""
    folder = tmp_path_factory.mktemp("built")
    tiny_target("llama", folder / "model")
    (folder / "r.yaml").write_text(RECIPE.format(target=folder / "model"))
    build(load(folder / "r.yaml"), folder / "d", lambda *_: None)
    return folder


@pytest.fixture
def tiny(here: Path, built: Path) -> Path:
    """A copy of it to damage."""
    shutil.copytree(built / "d" / "tiny", here / "d" / "tiny")
    return here / "d" / "tiny"


def without(path: Path, *keys: str) -> None:
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in manifest.items() if key not in keys}))


def evaluated(tiny: Path, text: str) -> None:
    """An evaluation that says it is of this artifact, and nothing else that a card could be made of."""
    digest = hashlib.sha256((tiny / "manifest.json").read_bytes()).hexdigest()
    (tiny / "evals").mkdir()
    (tiny / "evals" / "x.json").write_text(text.replace("DIGEST", digest))
    (tiny / "README.md").unlink()


MANIFEST = "d/tiny/manifest.json: "
AGAIN = "; run its `factory build` again"
ANEW = "\nremove d/tiny and run its `factory build` again"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (
        lambda tiny: (tiny / "manifest.json").unlink(),
        f"d/tiny: no manifest.json, so not a finished artifact{AGAIN}",
    ),
    "an empty manifest": (
        lambda tiny: (tiny / "manifest.json").write_text(""),
        f"{MANIFEST}damaged (it is empty){AGAIN}",
    ),
    "a manifest cut short": (
        lambda tiny: (tiny / "manifest.json").write_text('{"name": "tiny",\n "dig'),
        f"{MANIFEST}damaged (not JSON from line 2, column 2 on){AGAIN}",
    ),
    "a manifest of other bytes": (
        lambda tiny: (tiny / "manifest.json").write_bytes(b"\xff\xfe{}"),
        f"{MANIFEST}damaged (not UTF-8 text){AGAIN}",
    ),
    "a manifest without end": (
        lambda tiny: (tiny / "manifest.json").write_text("[" * 100_000),
        f"{MANIFEST}damaged (nested too deeply){AGAIN}",
    ),
    "a manifest of another version": (
        lambda tiny: (tiny / "manifest.json").write_text('{"schema_version": 1}'),
        f"{MANIFEST}not a manifest of version 2; build it again with this version",
    ),
    "a manifest that is a list": (
        lambda tiny: (tiny / "manifest.json").write_text("[]"),
        f"{MANIFEST}not a manifest of version 2; build it again with this version",
    ),
    "a manifest without some of it": (
        lambda tiny: without(tiny / "manifest.json", "files", "shape"),
        f"{MANIFEST}damaged (without shape, files){AGAIN}",
    ),
    "no weights": (
        lambda tiny: (tiny / "model" / "model.safetensors").unlink(),
        f"d/tiny/model/model.safetensors: missing{ANEW}",
    ),
    "weights cut short": (
        lambda tiny: (tiny / "model" / "model.safetensors").write_bytes(b"short"),
        f"d/tiny/model/model.safetensors: damaged (its sha256 is not the manifest's){ANEW}",
    ),
    "another config and no recipe": (
        lambda tiny: ((tiny / "model" / "config.json").write_text("{}"), (tiny / "resolved.yaml").unlink()),
        "d/tiny/model/config.json: damaged (its sha256 is not the manifest's)\nd/tiny/resolved.yaml: missing" + ANEW,
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("command", ["show", "eval", "chat"])
def test_damage_is_told_before_anything_is_loaded(factory: Run, tiny: Path, command: str, name: str) -> None:
    damage, said = DAMAGES[name]
    damage(tiny)
    if command == "eval" and name == "no manifest":
        said = "d/tiny: no artifact there; `factory build RECIPE` makes one"
    quiet = ["--quiet"] if command == "eval" else []
    assert factory(command, "d/tiny", *quiet) == (2, "", f"{said}\n")


@pytest.mark.parametrize("name", [name for name, (_, said) in DAMAGES.items() if said.startswith(MANIFEST)])
def test_one_that_is_damaged_hides_no_other(factory: Run, tiny: Path, name: str) -> None:
    shutil.copytree(tiny, tiny.with_name("whole"))
    damage, said = DAMAGES[name]
    damage(tiny)
    code, stdout, stderr = factory("ls", "d")
    assert (code, stderr) == (2, f"{said}\n")
    assert stdout.startswith("tiny: 2 layers, ") and stdout.endswith("(d/whole)\n")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"manifest_sha256": "another"}'])
def test_an_evaluation_that_is_damaged_is_none(factory: Run, tiny: Path, text: str) -> None:
    evaluated(tiny, text)
    code, stdout, stderr = factory("show", "d/tiny")
    assert (code, stderr) == (0, "")
    assert stdout.endswith("every file is what the manifest says\n")


def test_an_evaluation_of_another_version_is_told(factory: Run, tiny: Path) -> None:
    evaluated(tiny, '{"manifest_sha256": "DIGEST"}')
    said = "d/tiny/evals: not all of it is what `factory eval` of this version writes; move it away, and judge the "
    assert factory("show", "d/tiny") == (2, "", f"{said}drafter again\n")


def test_a_card_of_other_bytes_is_shown_all_the_same(factory: Run, tiny: Path) -> None:
    (tiny / "README.md").write_bytes(b"a\xffb")
    code, stdout, stderr = factory("show", "d/tiny")
    assert (code, stderr, stdout[:3]) == (0, "", "a\ufffdb")


TARGETS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (
        lambda model: (model / "model.safetensors").unlink(),
        "HERE/model has no .safetensors file: save the model with transformers' save_pretrained",
    ),
    "weights cut short": (
        lambda model: (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-8]),
        "HERE/model/model.safetensors: cut short: SIZE bytes; download or copy it again",
    ),
    "a pointer in place of weights": (
        lambda model: (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "HERE/model/model.safetensors: a Git LFS pointer and not the weights; fetch them with `git lfs pull`",
    ),
    "a header without end": (
        lambda model: (model / "model.safetensors").write_bytes((50_000).to_bytes(8, "little") + b"[" * 50_000),
        "HERE/model/model.safetensors: damaged: its header cannot be read; download or copy it again",
    ),
    "no tokenizer": (
        lambda model: (model / "tokenizer.json").unlink(),
        "HERE/model has no tokenizer: save it there too, with its save_pretrained, or copy its files",
    ),
    "an index of nothing": (
        lambda model: (
            (model / "model.safetensors").unlink(),
            (model / "model.safetensors.index.json").write_text('{"weights": 1}'),
        ),
        "HERE/model/model.safetensors.index.json: damaged (it holds no weight_map); download or copy it again",
    ),
    "a config that is no JSON": (
        lambda model: (model / "config.json").write_text("{model_type: llama}"),
        "cannot load HERE/model: config.json: not JSON from line 1, column 2 on (the folder must hold config.json, "
        "*.safetensors and the tokenizer's files)",
    ),
    "sizes in words": (
        lambda model: (model / "config.json").write_text(
            (model / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size": "wide"')
        ),
        "r.yaml:2: target: its config.json holds sizes that are no whole numbers above 0; copy it again",
    ),
    "another family": (
        lambda model: (model / "config.json").write_text('{"model_type": "mamba"}'),
        "r.yaml:2: target: model type 'mamba' is not supported; "
        "supported: gpt2, gpt_neox, llama, mistral, opt, qwen2, qwen3",
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_target_is_told_before_work_begins(factory: Run, here: Path, built: Path, name: str) -> None:
    shutil.copytree(built / "model", here / "model")
    size = (here / "model" / "model.safetensors").stat().st_size
    damage, said = TARGETS[name]
    damage(here / "model")
    (here / "r.yaml").write_text(RECIPE.format(target="model"))
    code, _, stderr = factory("build", "r.yaml", "--out", "d", "--quiet")
    assert (code, stderr) == (2, said.replace("SIZE", f"{size - 8:,} of {size:,}") + "\n")
