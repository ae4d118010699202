"""A grid's candidates: their names, their faults, their number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from loaded import FULL, load_one, recipe_of

from factory.errors import RecipeError
from factory.files.documents import read
from factory.recipes.grid import axes_of, points
from factory.recipes.recipe import MOST_CANDIDATES, Recipe, load
from factory.stages import Distill, DropLayers

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
