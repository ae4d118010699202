"""Recipes: what a file says, where files are looked for, which orders make sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from loaded import FULL, load_one, recipe_of

from factory.errors import RecipeError
from factory.recipes.recipe import HubPrompts
from factory.stages import Distill, DropLayers


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
            "name: x\ndata: {prompts: bos}\nstages:\n  - {kind: gptq, bits: 4, group_size: 32}\n  - {kind: distill}\n",
            "r.yaml:4: stages.0: gptq must be the last stage: nothing can be pruned, trained or quantised behind it; "
            "move it to the end",
        ),
        (
            "name: x\ndata: {prompts: bos, held_out: 0}\nstages:\n  - {kind: distill, patience: 2}\n",
            "r.yaml:4: stages.0.patience: with `held_out: 0` there is nothing to look at; hold some text out, or "
            "remove it",
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
        "[{kind: drop_layers, keep: 2}, {kind: distill}, {kind: gptq}]",
        "[{kind: drop_layers, keep: 2}, {kind: gptq}]",
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
    assert load_one(path).recipe.target.model == str(here)
    beside = model_folder(path.parent / "target")
    loaded = load_one(path)
    assert loaded.recipe.target.model == str(beside)
    assert loaded.as_given.target.model == "target"
    assert loaded.target_config() == {"model_type": "llama"}
    assert load_one(path, target="target").recipe.target.model == str(here)  # typed here, so meant from here
    model_folder(path.parent / "beside")
    with pytest.raises(RecipeError, match=f"no such folder: looked for {tmp_path}/beside; mend the path$"):
        load_one(path, target="./beside")


def test_a_config_without_a_model_is_found_too(recipe_file: Callable[[str], Path]) -> None:
    path = recipe_file("name: x\ntarget: {config: sizes.json}\nstages: [{kind: drop_layers, keep: 2}]\n")
    with pytest.raises(RecipeError, match=r":2: target\.config: no such file: looked for "):
        load_one(path)
    (path.parent / "sizes.json").write_text('{"model_type": "llama"}')
    loaded = load_one(path)
    assert loaded.recipe.target.config == str(path.parent / "sizes.json")
    assert loaded.target_config() == {"model_type": "llama"}


def test_a_name_that_is_no_folder_is_a_name_on_the_hub(recipe_file: Callable[[str], Path]) -> None:
    loaded = load_one(recipe_file(FULL))
    assert (loaded.require_target(), loaded.target_config()) == ("some/model", None)


@pytest.mark.parametrize("target", ["./gone", "/gone/model", "a/b/c", "gone/"])
def test_a_path_that_leads_nowhere_is_told(recipe_file: Callable[[str], Path], target: str) -> None:
    path = recipe_file(FULL.replace("some/model", target))
    with pytest.raises(RecipeError) as caught:
        load_one(path)
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
        load_one(path)
    folder = path.parent
    assert str(caught.value).splitlines() == [
        f"{path}:3: target.model: {folder / 'empty'} holds no config.json; name a Hugging Face model folder",
        f"{path}:4: target.config: no such file: looked for {folder / 'sizes.json'} or {Path.cwd() / 'sizes.json'}; "
        "mend the path",
        f"{path}:6: data.prompts: must be `bos`, a .txt, .jsonl or .parquet file, {{dataset, split, column}} or "
        "{file, column}, not the text 'words.csv'",
    ]


def test_prompts_files_become_absolute_and_datasets_stay(recipe_file: Callable[[str], Path]) -> None:
    path = recipe_file(FULL.replace("prompts: bos", "prompts: p.jsonl"))
    (path.parent / "p.jsonl").write_text('{"prompt": "a"}\n')
    data = load_one(path).recipe.data
    assert data and data.prompts == str(path.parent / "p.jsonl")
    data = load_one(path, ["data.prompts={dataset: user/set, column: text}"]).recipe.data
    assert data and data.prompts == HubPrompts(dataset="user/set", column="text")


def test_target_option_replaces_what_described_the_old_target(
    recipe_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = recipe_file(FULL.replace("revision: main", "revision: main, dtype: bfloat16"))
    other = model_folder(tmp_path / "other")
    target = load_one(path, target=str(other)).recipe.target
    assert (target.model, target.revision, target.dtype) == (str(other), None, "bfloat16")
    with pytest.raises(RecipeError, match=r"^--target: target\.model: no such folder: looked for "):
        load_one(path, target="./gone")


def test_a_recipe_without_target_loads_and_asks_for_one_when_it_is_needed(recipe_file: Callable[[str], Path]) -> None:
    path = recipe_file(FULL.replace("target: {model: some/model, revision: main}\n", ""))
    loaded = load_one(path)
    with pytest.raises(RecipeError) as caught:
        loaded.require_target()
    fault = "target.model: the recipe names no target; give one with --target MODEL_OR_FOLDER"
    assert str(caught.value) == f"{path}:1: {fault}"
    assert load_one(path, target="user/model").require_target() == "user/model"


def test_the_source_is_kept_byte_for_byte_and_the_resolved_recipe_reads_back(
    recipe_file: Callable[[str], Path],
) -> None:
    path = recipe_file("# Idea.\r\n" + FULL)
    loaded = load_one(path, ["stages.0.keep=[0, 3]", "stages.1.lr=1e-5", "name='2e-4'"])
    assert loaded.source == path.read_bytes()
    assert recipe_of(loaded.recipe.to_yaml()) == loaded.recipe


def test_a_damaged_config_is_told(recipe_file: Callable[[str], Path]) -> None:
    path = recipe_file(FULL.replace("revision: main", "config: sizes.json"))
    sizes = path.parent / "sizes.json"
    sizes.write_text("[1]")
    with pytest.raises(RecipeError, match="it must hold an object"):
        load_one(path).target_config()
    sizes.write_text("{")
    with pytest.raises(RecipeError, match=r"no config\.json that can be read"):
        load_one(path).target_config()
