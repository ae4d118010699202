"""`factory schema`: valid itself, right about every shipped file, and no milder than the loader about single keys."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from typer.testing import CliRunner

from eval.plan import PLANS, EvalPlan
from factory import cli
from factory.files.documents import read
from factory.files.schema import schema_of
from factory.recipes.recipe import Recipe

ROOT = Path(__file__).resolve().parents[3]
SCHEMAS = {"recipe": schema_of(Recipe, "recipe"), "plan": schema_of(EvalPlan, "plan")}
RECIPES = [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "docs/benchmarks").rglob("*recipe*.yaml")]
MODELS = {"recipe": Recipe, "plan": EvalPlan}

SOUND: dict[str, dict[str, Any]] = {
    "recipe": {
        "name": "x",
        "target": {"model": "folder"},
        "data": {"prompts": {"dataset": "user/name", "column": "text"}, "samples": 8},
        "stages": [
            {"kind": "drop_layers", "keep": 2},
            {"kind": "prune_width", "keep_ffn": 0.5},
            {"kind": "distill", "loss": [{"kind": "tv", "weight": [[0, 1.0], [1, 0.5]]}], "on_policy": {"share": 0.5}},
            {"kind": "gptq"},
        ],
    },
    "plan": {"ks": [2, 3], "device": "cuda:1", "device_map": None, "temperatures": [0, 1]},
}
WRONG: list[tuple[str, tuple[str | int, ...], Any]] = [
    ("recipe", ("name",), "-x"),
    ("recipe", ("name",), "a--b"),
    ("recipe", ("nam",), "x"),
    ("recipe", ("seed",), -1),
    ("recipe", ("seed",), "1"),
    ("recipe", ("stages",), []),
    ("recipe", ("stages", 0, "kind"), "drop_layer"),
    ("recipe", ("stages", 0, "keep"), 0),
    ("recipe", ("stages", 0, "keep"), 1.5),
    ("recipe", ("stages", 0, "keep"), [-1, 2]),
    ("recipe", ("stages", 0, "score"), "evenly"),
    ("recipe", ("stages", 1, "keep_ffn"), 0),
    ("recipe", ("stages", 1, "keep_head"), 0.5),
    ("recipe", ("stages", 2, "epochs"), 0),
    ("recipe", ("stages", 2, "loss"), "kl"),
    ("recipe", ("stages", 2, "loss", 0, "weight"), [[0, 1.0, 2.0]]),
    ("recipe", ("stages", 2, "on_policy", "share"), "half"),
    ("recipe", ("stages", 3, "bits"), 5),
    ("recipe", ("data", "samples"), 0.5),
    ("recipe", ("data", "written_by"), "me"),
    ("recipe", ("data", "prompts", "colum"), "text"),
    ("recipe", ("target", "dtype"), "fp16"),
    ("plan", ("ks",), []),
    ("plan", ("ks",), [65]),
    ("plan", ("temperatures",), [-1]),
    ("plan", ("repeats",), 0),
    ("plan", ("device",), "gpu"),
    ("plan", ("drafter_device",), "cuda:x"),
    ("plan", ("reader",), "fast"),
    ("plan", ("speed",), 1),
]


def faults(kind: str, data: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMAS[kind]).iter_errors(data)]


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
def test_it_is_a_schema_and_every_key_has_its_help(kind: str) -> None:
    made = SCHEMAS[kind]
    Draft202012Validator.check_schema(made)
    sections = {kind: made, **made.get("$defs", {})}
    bare = [
        f"{name}.{key}" for name, one in sections.items() for key, value in one["properties"].items()
        if not value.get("description")
    ]  # fmt: skip
    assert bare == []
    assert [name for name, one in sections.items() if one["additionalProperties"] is not False] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    assert faults("recipe", read(path).data) == []


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_plan_is_valid(path: Path) -> None:
    assert faults("plan", read(path).data) == []


@pytest.mark.parametrize("kind", sorted(SOUND))
def test_what_is_sound_is_so_to_both(kind: str) -> None:
    assert faults(kind, SOUND[kind]) == []
    MODELS[kind].model_validate_json(json.dumps(SOUND[kind]))


@pytest.mark.parametrize(
    ("kind", "path", "value"), WRONG, ids=[f"{'.'.join(map(str, path))}={value}" for _, path, value in WRONG]
)
def test_what_is_wrong_is_so_to_both(kind: str, path: tuple[str | int, ...], value: Any) -> None:
    data = copy.deepcopy(SOUND[kind])
    here: Any = data
    for part in path[:-1]:
        here = here[part]
    here[path[-1]] = value
    assert faults(kind, data) != []
    with pytest.raises(ValidationError):
        MODELS[kind].model_validate_json(json.dumps(data))


def test_a_grid_varies_keys_with_values() -> None:
    def of(grid: Any) -> list[str]:
        return faults("recipe", {**SOUND["recipe"], "grid": grid})

    assert of({"stages.0.keep": [1, 2], "data.samples": [8]}) == []
    for grid in ({"stages.0.keep": []}, {"stages.0.keep": 2}, {"target.model": ["x"]}, {"name": ["x"]}, {"a..b": [1]}):
        assert of(grid) != []


def test_the_command_prints_it_or_writes_it(tmp_path: Path) -> None:
    told = CliRunner().invoke(cli.app, ["schema", "plan"])
    assert json.loads(told.stdout) == SCHEMAS["plan"]
    out = tmp_path / "new" / "recipe.schema.json"
    told = CliRunner().invoke(cli.app, ["schema", "--out", str(out)])
    assert (told.exit_code, json.loads(out.read_text())) == (0, SCHEMAS["recipe"])
    assert f"# yaml-language-server: $schema={out}" in told.stdout


def test_the_command_needs_no_torch() -> None:
    code = "import sys; from factory.cli import app; app(['schema'], standalone_mode=False)"
    code += "; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
