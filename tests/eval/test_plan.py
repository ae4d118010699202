import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from eval.plan import EvalPlan, load_plan, shipped_plans
from factory.decoding.readers import ReaderKind
from factory.decoding.sampling import Sampling
from factory.errors import RecipeError


def test_shipped_plans_load_and_compare_greedy_with_temperature_one() -> None:
    assert shipped_plans() == ["default", "demo", "smoke"]
    for name in shipped_plans():
        assert load_plan(name).temperatures == (0.0, 1.0)
    assert load_plan(None) == load_plan("default")


def test_a_plan_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("ks: [5]\ntemperatures: [0, 0.7]\ntop_p: 0.9\n")
    plan = load_plan(path)
    assert (plan.ks, plan.temperatures, plan.top_p) == ((5,), (0.0, 0.7), 0.9)


def test_a_plan_knows_the_readers_and_the_processors_that_there_are() -> None:
    assert EvalPlan.model_fields["drafter_reader"].annotation == ReaderKind
    of_target = get_args(EvalPlan.model_fields["reader"].annotation)
    assert set(get_args(ReaderKind)) - set(of_target) == {"packed-int8"}  # it changes what the model says
    for known in fields(Sampling):
        if known.name != "temperature":
            assert EvalPlan.model_fields[known.name].default == known.default


def test_a_plan_is_frozen() -> None:
    with pytest.raises(ValidationError):
        EvalPlan().seed = 1  # type: ignore[misc]


def test_all_faults_are_told_at_once_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("ks: [0]\nrepeets: 3\ntemperatures: [-1]\nprompts: 1\ndevice: gpu\nraw_ks: [2, 2]\n")
    with pytest.raises(RecipeError) as caught:
        load_plan(path)
    message = str(caught.value)
    for line, key in enumerate(("ks", "repeets", "temperatures", "prompts", "device", "raw_ks"), 1):
        assert f"bad.yaml:{line}: {key}" in message
    assert "repeats" in message


def test_an_unknown_plan_names_those_there_are() -> None:
    with pytest.raises(RecipeError, match="default, demo, smoke"):
        load_plan("fast")


def test_a_plan_is_loaded_without_torch() -> None:
    code = "import sys; from eval.plan import load_plan; load_plan(None); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
