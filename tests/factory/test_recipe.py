"""Recipes: where files are looked for, which orders make sense, what a digest covers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from factory.documents import read, validate
from factory.errors import RecipeError
from factory.recipe import HubPrompts, Recipe, digests, load
from factory.stages import Distill, DropLayers

FULL = """\
name: half
target: {model: some/model, revision: main}
data: {prompts: bos, samples: 10}
stages:
  - {kind: drop_layers, keep: 2}
  - {kind: distill, lr: 1}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "recipes" / "r.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def recipe_of(text: str) -> Recipe:
    return validate(read(text, "r.yaml"), Recipe)


def faults_of(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipe_of(text)
    return str(caught.value).splitlines()


def model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return path


def test_a_recipe_is_what_its_file_says() -> None:
    recipe = recipe_of(FULL)
    assert recipe.stages == [DropLayers(kind="drop_layers", keep=2), Distill(kind="distill", lr=1.0)]
    assert (recipe.target.model, recipe.target.dtype, recipe.seed, recipe.keep_raw) == ("some/model", "auto", 0, False)


def test_faults_of_a_recipe_with_their_lines() -> None:
    assert faults_of(
        "name: a--b\n"
        "target:\n"
        "  modle: x\n"
        "  dtype: float23\n"
        "data: {prompts: {datset: x, column: c}, samples: 0}\n"
        "stages:\n"
        "  - kind: drop_layers\n"
        "    keep: 1.5\n"
        "  - kind: distill\n"
        "    lr: 2e-4x\n"
        "sede: 1\n"
    ) == [
        "r.yaml:1: name: 'a--b' cannot name a drafter: begin with a letter or digit, then letters, digits, '.', '_', "
        "'-', 80 at most; '--' is kept for variants",
        "r.yaml:3: target.modle: unknown key 'modle'; did you mean 'model'?",
        "r.yaml:4: target.dtype: the text 'float23' is not known here; did you mean 'float32'?",
        "r.yaml:5: data.prompts.dataset: missing: its name on the Hub",
        "r.yaml:5: data.prompts.datset: unknown key 'datset'; did you mean 'dataset'?",
        "r.yaml:5: data.samples: must be greater than or equal to 1, not 0",
        "r.yaml:8: stages.0.keep: a fraction must lie between 0 and 1, got 1.5; for a count write 2",
        "r.yaml:10: stages.1.lr: must be a number, not the text '2e-4x'",
        "r.yaml:11: sede: unknown key 'sede'; did you mean 'seed'?",
    ]


@pytest.mark.parametrize("name", ["", ".x", "a/b", "a b", "a--raw", "x" * 81, "../x"])
def test_a_name_must_do_for_a_folder(name: str) -> None:
    (fault,) = faults_of(FULL.replace("half", f"'{name}'"))
    assert fault.startswith(f"r.yaml:1: name: '{name}' cannot name a drafter")


def test_orders_that_make_no_sense_are_told_all_at_once() -> None:
    assert faults_of(
        "name: x\nstages:\n"
        "  - {kind: distill}\n"
        "  - {kind: drop_layers, keep: 3, score: block_influence}\n"
        "keep_raw: true\n"
    ) == [
        "r.yaml:3: stages.0: distill needs text, and the recipe has no `data`; "
        "add `data: {prompts: bos, samples: 768}`",
        "r.yaml:4: stages.1: drop_layers after the last training stage leaves a damaged drafter; "
        "move it before stages.0, or train once more after it",
        "r.yaml:4: stages.1: drop_layers needs text, and the recipe has no `data`; "
        "add `data: {prompts: bos, samples: 768}`",
        "r.yaml:5: keep_raw: before its first training stage the drafter is a copy of the target; remove keep_raw",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name: x\nstages: []\n", "r.yaml:2: stages: must have at least 1 item, not 0"),
        (
            "name: x\nstages: [{kind: drop_layers, keep: 1}]\nkeep_raw: true\n",
            "r.yaml:3: keep_raw: no stage trains, so the drafter itself is the raw one; remove keep_raw",
        ),
        (
            FULL.replace("samples: 10", "written_by: none"),
            "r.yaml:3: data.written_by: `prompts: bos` is no text by itself; write `written_by: target`",
        ),
    ],
)
def test_what_cannot_work_is_refused(text: str, fault: str) -> None:
    assert faults_of(text) == [fault]


@pytest.mark.parametrize(
    "stages",
    [
        "[{kind: drop_layers, keep: 1}]",
        "[{kind: drop_layers, keep: 4}, {kind: distill}, {kind: drop_layers, keep: 2}, {kind: distill}]",
        "[{kind: drop_layers, keep: 2, score: block_influence}, {kind: distill}]",
    ],
)
def test_orders_that_make_sense_pass(stages: str) -> None:
    assert recipe_of(f"name: x\ndata: {{prompts: bos}}\nstages: {stages}").stages


def test_a_relative_target_is_looked_for_beside_the_recipe_first(
    recipe_file: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe_file(FULL.replace("some/model", "target"))
    monkeypatch.chdir(tmp_path)
    here = model_folder(tmp_path / "target")
    assert load(path).recipe.target.model == str(here)
    beside = model_folder(path.parent / "target")
    loaded = load(path)
    assert loaded.recipe.target.model == str(beside)
    assert loaded.target_as_given == "target"
    assert loaded.target_config() == {"model_type": "llama"}
    assert load(path, target="target").recipe.target.model == str(here)  # typed here, so meant from here
    model_folder(path.parent / "beside")
    with pytest.raises(RecipeError, match=f"no such folder: looked for {tmp_path}/beside$"):
        load(path, target="./beside")


def test_a_name_that_is_no_folder_is_a_name_on_the_hub(recipe_file: Callable[[str], Path]) -> None:
    loaded = load(recipe_file(FULL))
    assert (loaded.require_target(), loaded.target_config()) == ("some/model", None)


@pytest.mark.parametrize("target", ["./gone", "/gone/model", "a/b/c", "gone/"])
def test_a_path_that_leads_nowhere_is_told(recipe_file: Callable[[str], Path], target: str) -> None:
    path = recipe_file(FULL.replace("some/model", target))
    with pytest.raises(RecipeError) as caught:
        load(path)
    beside = (path.parent / target).resolve()
    assert str(caught.value).startswith(f"{path}:2: target.model: no such folder: looked for {beside}")


def test_files_that_are_not_there_are_told_all_at_once(recipe_file: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "empty").mkdir()
    (tmp_path / "recipes" / "words.csv").write_text("a\n")
    path = recipe_file(
        "name: x\n"
        "target:\n  model: empty\n  config: sizes.json\n"
        "data:\n  prompts: words.csv\n"
        "stages: [{kind: distill}]\n"
    )
    with pytest.raises(RecipeError) as caught:
        load(path)
    folder = path.parent
    assert str(caught.value).splitlines() == [
        f"{path}:3: target.model: {folder / 'empty'} holds no config.json; name a Hugging Face model folder",
        f"{path}:4: target.config: no such file: looked for {folder / 'sizes.json'} or {Path.cwd() / 'sizes.json'}",
        f"{path}:6: data.prompts: must be `bos`, a .txt or .jsonl file, or {{dataset, split, column}}",
    ]


def test_prompts_files_become_absolute_and_datasets_stay(recipe_file: Callable[[str], Path]) -> None:
    path = recipe_file(FULL.replace("prompts: bos", "prompts: p.jsonl"))
    (path.parent / "p.jsonl").write_text('{"prompt": "a"}\n')
    data = load(path).recipe.data
    assert data and data.prompts == str(path.parent / "p.jsonl")
    data = load(path, ["data.prompts={dataset: user/set, column: text}"]).recipe.data
    assert data and data.prompts == HubPrompts(dataset="user/set", column="text")


def test_target_option_replaces_what_described_the_old_target(
    recipe_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = recipe_file(FULL.replace("revision: main", "revision: main, dtype: bfloat16"))
    other = model_folder(tmp_path / "other")
    target = load(path, target=str(other)).recipe.target
    assert (target.model, target.revision, target.dtype) == (str(other), None, "bfloat16")
    with pytest.raises(RecipeError, match=r"^--target: target\.model: no such folder: looked for "):
        load(path, target="./gone")


def test_a_recipe_without_target_loads_and_asks_for_one_when_it_is_needed(recipe_file: Callable[[str], Path]) -> None:
    path = recipe_file(FULL.replace("target: {model: some/model, revision: main}\n", ""))
    loaded = load(path)
    with pytest.raises(RecipeError) as caught:
        loaded.require_target()
    fault = "target.model: the recipe names no target; give one with --target MODEL_OR_FOLDER"
    assert str(caught.value) == f"{path}:1: {fault}"
    assert load(path, target="user/model").require_target() == "user/model"


def test_the_source_is_kept_byte_for_byte_and_the_resolved_recipe_reads_back(
    recipe_file: Callable[[str], Path],
) -> None:
    path = recipe_file("# Idea.\r\n" + FULL)
    loaded = load(path, ["stages.0.keep=[0, 3]", "stages.1.lr=1e-5", "name='2e-4'"])
    assert loaded.source == path.read_bytes()
    assert recipe_of(loaded.recipe.to_yaml()) == loaded.recipe


def test_a_damaged_config_is_told(recipe_file: Callable[[str], Path]) -> None:
    path = recipe_file(FULL.replace("revision: main", "config: sizes.json"))
    sizes = path.parent / "sizes.json"
    sizes.write_text("[1]")
    with pytest.raises(RecipeError, match="it must hold an object"):
        load(path).target_config()
    sizes.write_text("{")
    with pytest.raises(RecipeError, match=r"not a config\.json that can be read"):
        load(path).target_config()


BASE = (
    "name: x\ndata: {prompts: bos, samples: 5}\n"
    "stages: [{kind: drop_layers, keep: 2}, {kind: distill}, {kind: drop_layers, keep: 1}, {kind: distill}]\n"
)


@pytest.mark.parametrize(
    ("old", "new", "first_changed"),
    [
        ("keep: 2", "keep: 3", 0),
        ("keep: 2", "keep: 2, score: first_last", 0),
        ("keep: 2", "keep: [0, 1]", 0),
        ("{kind: distill}, {kind: drop", "{kind: distill, epochs: 2}, {kind: drop", 1),
        ("keep: 1", "keep: 0.5", 2),
        ("{kind: distill}]", "{kind: distill, chunk: 7}]", 3),
        ("samples: 5", "samples: 6", 1),
        ("samples: 5", "samples: 5, temperature: 0.5", 1),
        ("stages:", "seed: 1\nstages:", 1),
        ("stages:", "target: {dtype: bfloat16}\nstages:", 0),
        ("name: x", "name: y", 4),
        ("stages:", "keep_raw: true\nstages:", 4),
        ("stages:", "target: {model: other/place}\nstages:", 4),  # what it holds counts, not what it is called
        ("prompts: bos", "prompts: a.txt", 1),
    ],
)
def test_a_change_changes_the_digests_from_its_stage_on(old: str, new: str, first_changed: int) -> None:
    assert old in BASE
    before = digests(recipe_of(BASE), "weights", "text")
    after = digests(recipe_of(BASE.replace(old, new, 1)), "weights", "text")
    assert before[:first_changed] == after[:first_changed]
    assert not set(before[first_changed:]) & set(after)


def test_every_field_of_every_stage_enters_its_digest() -> None:
    changed = {
        "drop_layers": {"keep": 3, "score": "first_last"},
        "distill": {
            **{"temperature": 2.0, "epochs": 2.0, "lr": 1.0, "warmup": 0.5, "final_lr": 0.5, "weight_decay": 0.5},
            **{"clip": 2.0, "batch": 9, "accumulate": 2, "chunk": 7, "checkpoint_every": 7},
        },
    }
    base = recipe_of(BASE)
    for place, stage in enumerate(base.stages[:2]):
        free = set(type(stage).model_fields) - {"kind", "loss"}
        assert set(changed[stage.kind]) == free, f"{stage.kind}: name every field here"
        for key, value in changed[stage.kind].items():
            stages = list(base.stages)
            stages[place] = stage.model_copy(update={key: value})
            other = digests(base.model_copy(update={"stages": stages}), "weights", "text")
            assert other[place] != digests(base, "weights", "text")[place], key


def test_digests_cover_target_text_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(BASE)
    base = digests(recipe, "weights", "text")
    assert len(set(base)) == 4
    assert digests(recipe, "weights", "text") == base
    assert not set(digests(recipe, "others", "text")) & set(base)
    assert [a == b for a, b in zip(digests(recipe, "weights", "t"), base, strict=True)] == [True, False, False, False]
    monkeypatch.setattr(Distill, "version", Distill.version + 1)
    assert [a == b for a, b in zip(digests(recipe, "weights", "text"), base, strict=True)] == [
        True,
        False,
        False,
        False,
    ]


def test_the_place_of_a_prompts_file_is_not_in_the_digest() -> None:
    here, there = (recipe_of(BASE.replace("bos", f"{folder}/a.txt")) for folder in ("here", "there"))
    assert digests(here, "weights", "text") == digests(there, "weights", "text")
