"""`from factory import build, load_drafter` and `from eval import evaluate`: docs/python.md, and what it leaves out."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from eval import Evaluation, evaluate
from factory import LoadedDrafter, build, load_drafter
from factory.artifact import Artifact
from factory.errors import ArtifactError, DataError, FactoryError, ModelError, RecipeError

ROOT = Path(__file__).resolve().parents[3]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(encoding="utf-8"), re.DOTALL)
DROP = {"name": "x", "stages": [{"kind": "drop_layers", "keep": 1}]}
SMALL = {"prompts": 2, "confirm_prompts": 2, "ks": [2], "temperatures": [0], "max_new_tokens": 6, "suites": ["stories"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_target: Callable[..., Path]) -> Iterator[Path]:
    """Where the page is read: a tiny model lies in it."""
    place = tmp_path_factory.mktemp("python")
    tiny_target("llama", place / "my-model")
    with chdir(place):
        yield place


@pytest.fixture(scope="module")
def page(folder: Path) -> dict[str, Any]:
    """The names that the page's blocks leave, executed one after another."""
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), names)
    return names


@pytest.fixture
def pair(page: dict[str, Any]) -> LoadedDrafter:
    found: LoadedDrafter = page["pair"]
    return found


def test_the_page_does_what_it_says(page: dict[str, Any], folder: Path) -> None:
    assert len(BLOCKS) == 4
    drafter, found, pair = page["drafter"], page["found"], page["pair"]
    assert isinstance(drafter, Artifact) and drafter.folder == Path("artifacts/mine")
    assert isinstance(found, Evaluation) and found.report.is_file() and found.folder == drafter.folder
    assert {row["artifact"] for row in found.rows} == {None, "mine"}
    assert pair.k in (1, 3)  # what the plan tried, and its evaluation found best
    written = page["written"]
    assert written.alpha is not None and 0 <= written.alpha <= 1 and written.tau >= 1


@pytest.mark.parametrize("name", ["factory", "eval"])
def test_importing_it_is_instant(name: str) -> None:
    names = "build, load_drafter, pull" if name == "factory" else "evaluate"
    code = f"import sys; from {name} import {names}; print('torch' in sys.modules, *dir(sys.modules['{name}']))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.startswith("False ") and all(part in told for part in names.split(", "))


def test_a_name_that_is_not_there(page: dict[str, Any]) -> None:
    with pytest.raises(ImportError, match="speedup"):
        exec("from factory import speedup")
    with pytest.raises(ImportError, match="speedup"):
        exec("from eval import speedup")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_depends_on_nothing_but_its_place(pair: LoadedDrafter, temperature: float) -> None:
    prompts = ["a", "some words", "b c", "d"]
    asked = {"max_new_tokens": 10, "temperature": temperature, "seed": 3, "k": 2}
    whole = pair.generate(prompts, **asked)
    assert [one.tokens for one in pair.generate(prompts, **asked, batch=3)] == [one.tokens for one in whole]
    ids = [one.prompt for one in whole]
    assert [one.text for one in pair.generate(ids, **asked)] == [one.text for one in whole]
    other = pair.generate(prompts, **{**asked, "seed": 4})
    assert ([one.tokens for one in other] == [one.tokens for one in whole]) == (temperature == 0)


def test_counts_are_those_of_the_rounds(pair: LoadedDrafter) -> None:
    (one,) = pair.generate("some words", 12, k=3)
    assert one.proposed >= one.accepted + one.rejected > 0
    assert one.tau == len(one.tokens) / one.target_passes
    (alone,) = pair.generate("some words", 12, k=0)
    assert (alone.alpha, alone.tau, alone.proposed) == (None, 1.0, 0)
    assert alone.tokens == one.tokens


def test_k_may_be_chosen_as_it_goes(pair: LoadedDrafter) -> None:
    (alone,) = pair.generate("some words", 8, k=0)
    assert pair.generate("some words", 8, k="auto")[0].tokens == alone.tokens
    assert pair.generate([], 8) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"k": 65}, "k: must be a whole number from 0 to 64, 'auto' or None, not 65"),
        ({"k": "many"}, "not 'many'"),
        ({"k": True}, "not True"),
        ({"max_new_tokens": 0}, "max_new_tokens: must be at least 1, not 0"),
        ({"batch": 0}, "batch: must be at least 1"),
        ({"temperature": -1.0}, "temperature must be a finite number >= 0, got -1.0"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"prompts": [[1, 999]]}, "prompt 1 has token ids outside the vocabulary, which are 0 to 127"),
        ({"prompts": [[]]}, "prompt 1 has no tokens"),
        ({"prompts": "x" * 400}, "leaves no room in a context of 160"),
    ],
)
def test_what_cannot_be_written(pair: LoadedDrafter, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        pair.generate(**{"prompts": "a", **changes})


def test_what_cannot_be_opened(page: dict[str, Any], folder: Path) -> None:
    with pytest.raises(ArtifactError, match="a model, not an artifact"):
        load_drafter("my-model")
    with pytest.raises(DataError, match="drafter_reader: must be one of"):
        load_drafter("artifacts/mine", drafter_reader="fast")
    with pytest.raises(ModelError, match="device gpu: must be auto, cpu, cuda, or one GPU"):
        load_drafter("artifacts/mine", device="gpu")
    with pytest.raises(ModelError, match="dtype half: must be auto, float64"):
        load_drafter("artifacts/mine", dtype="half")  # type: ignore[arg-type]


def test_without_an_evaluation_k_is_open(page: dict[str, Any], folder: Path) -> None:
    heard: list[str] = []
    again = build(
        {**page["recipe"], "name": "other"}, settings=["stages.0.keep=1"], progress=lambda *told: heard.append(told[2])
    )
    assert [one.name for one in again] == ["other"] and heard
    fresh = load_drafter(again[0].folder, dtype="float64", reader="eager")
    assert fresh.k is None and "float64 on cpu, reader eager" in fresh.notes[0]
    assert fresh.generate("a", 4)[0].tokens == fresh.generate("a", 4, k=0)[0].tokens


def test_the_same_build_again_does_nothing(page: dict[str, Any], folder: Path) -> None:
    before = (folder / "artifacts/mine/manifest.json").stat().st_mtime_ns
    (same,) = build(page["recipe"])
    assert same.manifest == page["drafter"].manifest
    assert (folder / "artifacts/mine/manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        (None, {}, "name a RECIPE, or give --target"),
        ({}, {}, "recipe: name: missing: what the drafter's folder is called"),
        ({**DROP, "stages": [{"kind": "distil"}]}, {}, "recipe: stages.0.kind: unknown kind 'distil'; did you mean"),
        ({**DROP, "stages": [{"kind": "drop_layers", "keep": {1}}]}, {}, "recipe: holds what no YAML file could"),
        (DROP, {}, "names no target"),
        (DROP, {"settings": ["seed"]}, "write KEY=VALUE"),
        ("no.yaml", {}, "no.yaml: no such file"),
        ({**DROP, "target": {"model": Path("my-model")}}, {"jobs": 0},
         "jobs: must be at least 1, not 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_built(folder: Path, recipe: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FactoryError, match=re.escape(said)):
        build(recipe, **changes)


def test_an_evaluation_of_a_mapping_elsewhere(page: dict[str, Any], folder: Path) -> None:
    (folder / "mine.txt").write_text("".join(f"prompt {number}\n" for number in range(6)))
    found = evaluate(["artifacts/mine"], plan=SMALL, out=folder / "out", prompts="mine.txt", target=folder / "my-model")
    assert found.folder == folder / "out" and found.report.is_file()
    assert found.results["suites"][0]["name"] == "mine"
    assert found.verdict["reason"]


@pytest.mark.parametrize(
    ("artifacts", "changes", "kind", "said"),
    [
        ([], {}, FactoryError, "no artifact there"),
        ("my-model", {}, FactoryError, "my-model: no artifact there; `factory build RECIPE` makes one"),
        ("nowhere", {}, ArtifactError, "nowhere: no such folder"),
        ("artifacts/mine", {"plan": {"k": [2]}}, RecipeError, "plan: k: unknown key 'k'"),
        ("artifacts/mine", {"plan": "fast"}, RecipeError, "plan fast: no such file; give a path, or one of: "),
        ("artifacts/mine", {"prompts": "no.txt"}, DataError, "no.txt: no such file"),
    ],
)
def test_what_cannot_be_judged(
    page: dict[str, Any], folder: Path, artifacts: Any, changes: dict[str, Any], kind: type[FactoryError], said: str
) -> None:
    with pytest.raises(kind, match=re.escape(said)):
        evaluate(artifacts, **{"plan": SMALL, **changes})


def test_an_editor_knows_the_names() -> None:
    """What `import factory` gives to a type checker is what it gives to a program."""
    for package in ("factory", "eval"):
        text = (ROOT / package / "__init__.py").read_text(encoding="utf-8")
        imports = re.findall(r"^    from \w+[.][\w.]+ import (.*)$", text, re.MULTILINE)
        stated = set(re.findall(r"\w+", " ".join(imports)))
        (listed,) = re.findall(r"__all__ = \[(.*)\]", text)
        assert stated == set(re.findall(r'"(\w+)"', listed)) - {"__version__"}
