"""Recipes: where files are looked for, which orders make sense, what a digest covers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from factory.distillation.settings import OnPolicy, Selection
from factory.errors import RecipeError
from factory.files.documents import read, validate
from factory.recipes.grid import axes_of, points
from factory.recipes.recipe import MOST_CANDIDATES, HubPrompts, Loaded, Recipe, digests, load
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


def load_one(path: Path, *arguments: object, **options: object) -> Loaded:
    """The only candidate of a recipe without a grid."""
    (loaded,) = load(path, *arguments, **options)  # type: ignore[arg-type]
    assert (loaded.name, loaded.candidates) == (loaded.recipe.name, 1)
    return loaded


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
    assert loaded.target_as_given == "target"
    assert loaded.target_config() == {"model_type": "llama"}
    assert load_one(path, target="target").recipe.target.model == str(here)  # typed here, so meant from here
    model_folder(path.parent / "beside")
    with pytest.raises(RecipeError, match=f"no such folder: looked for {tmp_path}/beside$"):
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
        f"{path}:4: target.config: no such file: looked for {folder / 'sizes.json'} or {Path.cwd() / 'sizes.json'}",
        f"{path}:6: data.prompts: must be `bos`, a .txt, .jsonl or .parquet file, {{dataset, split, column}} or "
        "{file, column}",
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
    with pytest.raises(RecipeError, match=r"not a config\.json that can be read"):
        load_one(path).target_config()


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
        ("{kind: distill}]", "{kind: distill, clip: 0.7}]", 3),
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
    changed: dict[str, dict[str, object]] = {
        "drop_layers": {"keep": 3, "score": "first_last"},
        "prune_width": {
            **{"keep_ffn": 64, "keep_heads": 2, "keep_kv_heads": 1, "score": "magnitude", "multiple_of": 8},
        },
        "fresh": {"inherit": ("head",)},
        "distill": {
            **{"temperature": 2.0, "epochs": 2.0, "lr": 1.0, "warmup": 0.5, "final_lr": 0.5, "weight_decay": 0.5},
            **{"clip": 2.0, "batch": 9, "accumulate": 2, "checkpoint_every": 7, "loss": "tv", "method": "seq_kd"},
            **{
                "teacher": "cache",
                "top_k": 7,
                "drawn": 3,
                "on_policy": OnPolicy(share=0.5),
                "select": Selection(keep=0.5),
            },
            **{"optimizer": "muon", "ema": 0.9, "freeze": ("head",), "lora": 4, "pack": 64, "compile": True},
            **{
                "untie_head": True,
                "gradient_checkpointing": True,
                "precision": "float32",
                "check_every": 3,
                "patience": 2,
                "keep": "last",
            },
        },
        "gptq": {"bits": 3, "group_size": 64, "sym": False, "act_order": True, "samples": 7, "damp": 0.1},
    }
    base = recipe_of(
        "name: x\ndata: {prompts: bos, samples: 5}\nstages: [{kind: drop_layers, keep: 2}, "
        "{kind: prune_width, keep_ffn: 32}, {kind: fresh}, {kind: distill}, {kind: gptq}]\n"
    )
    assert [stage.kind for stage in base.stages] == list(changed)
    for place, stage in enumerate(base.stages):
        free = set(type(stage).model_fields) - {"kind", "backend"}
        assert set(changed[stage.kind]) == free, f"{stage.kind}: name every field here"
        for key, value in changed[stage.kind].items():
            stages = list(base.stages)
            stages[place] = stage.model_copy(update={key: value})
            other = digests(base.model_copy(update={"stages": stages}), "weights", "text")
            assert other[place] != digests(base, "weights", "text")[place], key


def test_what_is_drawn_follows_the_seed_without_text() -> None:
    drawn, counted = "{kind: prune_width, keep_ffn: 32, score: random}", "{kind: drop_layers, keep: 2}"
    for stage, differs in ((drawn, True), (counted, False)):
        one, two = (
            digests(recipe_of(f"name: x\nstages: [{stage}]\nseed: {seed}\n"), "weights", None) for seed in (0, 1)
        )
        assert (one != two) == differs


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


GRID = (
    FULL
    + """\
grid:
  stages.0.keep: [1, [0, 3], 0.5]
  stages.1.lr:
    - 1e-3
    - 0.00001
"""
)


def test_every_combination_is_a_candidate_named_by_its_values(recipe_file: Callable[[str], Path]) -> None:
    path = recipe_file(GRID)
    found = load(path)
    assert [loaded.name for loaded in found] == [
        f"half--keep{keep}-lr{lr}" for keep in ("1", "0+3", "0.5") for lr in ("0.001", "1e-05")
    ]
    assert {loaded.candidates for loaded in found} == {6}
    stages = found[3].recipe.stages
    assert stages == [DropLayers(kind="drop_layers", keep=[0, 3]), Distill(kind="distill", lr=1e-5)]
    for loaded in found:
        assert loaded.source == path.read_bytes()
        resolved = recipe_of(loaded.recipe.to_yaml())
        assert resolved == loaded.recipe
        assert resolved.grid is None
    assert found[0].place(0) == f"{path}:8: grid: stages.0.keep"
    assert found[1].document.place(("stages", 1, "lr")) == f"{path}:11: grid: stages.1.lr"


def test_what_set_gives_is_no_longer_varied(recipe_file: Callable[[str], Path]) -> None:
    path = recipe_file(GRID)
    assert [loaded.name for loaded in load(path, ["stages.0.keep=2"])] == ["half--lr0.001", "half--lr1e-05"]
    assert [loaded.name for loaded in load(path, ["grid={seed: [0, 7]}"])] == ["half--seed0", "half--seed7"]
    assert load_one(path, ["grid={}"]).name == "half"


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        ("stages.0.keep: [1]\n  stages.1.keep: [2]", ["drop_layers.keep1-distill.keep2"]),
        ("stages.0.keep: [1]\n  stages.2.keep: [2]", ["stages.0.keep1-stages.2.keep2"]),
        ("data.prompts: [bos, 'a b/c--d.txt']", ["promptsbos", "promptsa_b_c-d.txt"]),
        ("keep_raw: [true, false]\n  seed: [3]", ["keep_rawtrue-seed3", "keep_rawfalse-seed3"]),
        ("stages.0: [{kind: drop_layers, keep: [0, 1]}]", ["stages.0drop_layers+0+1"]),
        ("name.x: []", []),
    ],
)
def test_names_stay_apart_and_legal(grid: str, names: list[str]) -> None:
    stages = "  - {kind: drop_layers, keep: 2}\n  - {kind: distill}\n  - {kind: drop_layers, keep: 1}\n"
    document = read(f"name: x\nstages:\n{stages}grid:\n  {grid}\n", "r.yaml")
    axes, _ = axes_of(document, set(Recipe.model_fields))
    assert [label for label, _ in points(document, axes) if label] == names


def test_a_long_name_is_cut_and_stays_its_own(recipe_file: Callable[[str], Path]) -> None:
    path = recipe_file(FULL + f"grid: {{stages.0.keep: [{list(range(60))}, {list(range(61))}]}}\n")
    long, longer = (loaded.name.removeprefix("half--") for loaded in load(path))
    assert len(long) == len(longer) == 100
    assert long != longer


def test_faults_of_a_grid_come_at_once_with_their_lines(recipe_file: Callable[[str], Path]) -> None:
    path = recipe_file(
        FULL.replace("samples: 10", "smaples: 10")
        + "grid:\n"
        + "  stages.0.keep: [1, 1.5, 0]\n"
        + "  stages.1.lrr: [1]\n"
        + "  name: [a, b]\n"
        + "  target.dtype: [float32, bfloat16]\n"
        + "  stages.7.keep: [1]\n"
        + "  stagse.0.keep: [1]\n"
        + "  seed: []\n"
        + "  stages.0.score: even\n"
        + "  stages.1: [{kind: distill}]\n"
        + "  data.samples: [5, 6, 5]\n"
    )
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert str(caught.value).splitlines() == [
        f"{path}:3: data.smaples: unknown key 'smaples'; did you mean 'samples'?",
        f"{path}:8: grid: stages.0.keep: a fraction must lie between 0 and 1, got 1.5; for a count write 2",
        f"{path}:8: grid: stages.0.keep: at least 1 layer must stay, got 0",
        f"{path}:9: grid: stages.1.lrr: unknown key 'lrr'; did you mean 'lr'?",
        f"{path}:10: grid.name: candidates are named by their values; remove it from the grid",
        f"{path}:11: grid.target.dtype: one grid is about one target; build once for each, with --target "
        "MODEL_OR_FOLDER",
        f"{path}:12: grid.stages.7.keep: stages is a list of 2; its entries are counted from 0",
        f"{path}:13: grid.stagse.0.keep: a recipe has no key 'stagse'; did you mean 'stages'?",
        f"{path}:14: grid.seed: no value to try; give at least one, or remove the key",
        f"{path}:15: grid.stages.0.score: must be a list of the values to try, such as [1, 2]",
        f"{path}:16: grid.stages.1: overlaps stages.1.lrr, which the grid varies too; keep one of them",
        f"{path}:17: grid.data.samples: 5 stands there twice; every value makes a candidate of its own",
    ]


def test_a_grid_that_is_none_and_parts_of_a_varied_value_are_refused(recipe_file: Callable[[str], Path]) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml:7: grid: must be keys with lists"):
        load(recipe_file(FULL + "grid: [1]\n"))
    path = recipe_file(FULL + "grid: {stages.0: [{kind: drop_layers, keep: 1}]}\n")
    with pytest.raises(RecipeError, match=r"grid\.stages\.0: --set stages\.0\.keep sets a part of it"):
        load(path, ["stages.0.keep=2"])
    path = recipe_file(FULL + "grid: {data.prompts: ['a/b.txt', a_b.txt]}\n")
    with pytest.raises(RecipeError, match=r"two candidates would be called 'promptsa_b\.txt'"):
        load(path)


def test_files_that_a_grid_names_are_looked_for_beside_the_recipe(
    recipe_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = recipe_file(FULL + "grid:\n  data.prompts: [a.txt, gone.txt]\n")
    (path.parent / "a.txt").write_text("once\n")
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert str(caught.value).startswith(
        f"{path}:8: grid: data.prompts: no such file: looked for {path.parent}/gone.txt"
    )
    (path.parent / "gone.txt").write_text("found\n")
    assert [loaded.recipe.data.prompts for loaded in load(path) if loaded.recipe.data] == [
        str(path.parent / name) for name in ("a.txt", "gone.txt")
    ]


def test_many_candidates_are_counted_before_any_is_made(recipe_file: Callable[[str], Path]) -> None:
    seeds = list(range(1000))
    path = recipe_file(FULL + f"grid:\n  seed: {seeds}\n  data.samples: {seeds[1:]}\n  stages.1.epochs: {seeds[1:]}\n")
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}:7: grid: 998,001,000 candidates; to build more than {MOST_CANDIDATES} say --yes, or vary fewer values"
    )
    path = recipe_file(FULL + f"grid:\n  seed: {seeds[:11]}\n  data.samples: {seeds[1:11]}\n")
    assert (len(load(path, many="sample")), len(load(path, many="all"))) == (11 + 9, 110)
    assert {loaded.candidates for loaded in load(path, many="sample")} == {110}
