"""Real evaluations by two launched processes: what comes out is what one alone finds, however they end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.evaluation import evaluate
from eval.plan import load_plan
from eval.report.writing import MAP, REPORT, RESULTS, TOKENS
from eval.timing.partial import FOLDER
from factory.artifact import Artifact
from factory.building.build import build
from factory.recipes.recipe import load

RECIPE = """\
name: tiny
target: {{model: {target}}}
data: {{prompts: bos, samples: 8, max_new_tokens: 8, batch: 8}}
stages: [{{kind: drop_layers, keep: 2, score: even}}]
"""
PLAN = """\
suites: [stories]
prompts: 5
confirm_prompts: 2
max_new_tokens: 12
ks: [2]
batches: [1, 2]
repeats: 2
confirm_repeats: 1
warmup_prompts: 1
parity_prompts: 2
parity_new_tokens: 8
device: auto
dtype: float64
threads: 1
"""
MAPPED = "map_batches: [1, 2]\nmap_contexts: [16]\nmap_samples: 3\nmap_new_tokens: 8\n"
ACCELERATE = [
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),  # on CPUs too
    *("--main_process_port", "0"),
]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# What no clock decides.
COUNTED = """artifact drafter suite k temperature batch prompts repeats prompt_set new_tokens target_passes rounds alpha
    tau matches_target divergences near_ties mean_k accepted_per_proposed repetition dtype"""

pytestmark = pytest.mark.slow


def launch(launcher: list[str], *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "-m", "factory", "eval", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[..., Path]], Path]:
    """`alone(save)` is a folder with an artifact, a plan and, in `alone`, what one process found; made once."""
    folder = tmp_path_factory.mktemp("evaluated")

    def made(save: Callable[..., Path]) -> Path:
        if not (folder / "alone").exists():
            recipe, plan = folder / "recipe.yaml", folder / "plan.yaml"
            recipe.write_text(RECIPE.format(target=save("llama", folder / "target")))
            plan.write_text(PLAN)
            (artifact,) = build(load(recipe), folder / "artifacts", lambda *_: None)
            evaluate(
                [artifact],
                load_plan(plan),
                target=None,
                out=folder / "alone",
                prompts_file=None,
                progress=lambda *_: None,
            )
        return folder

    return made


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / RESULTS).read_text())
    return found


def check_the_same(out: Path, alone: Path, rows: int) -> dict[str, Any]:
    """Rows, totals and outputs are one process's, but for seconds and what they decide; returns the results."""

    def chosen_from(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        lines = [json.loads(line) for line in (folder / TOKENS).read_text().splitlines()]
        found = [{key: row[key] for key in COUNTED.split()} for row in results(folder)["rows"]]
        return asked(found), asked(lines)

    def asked(things: list[dict[str, Any]]) -> list[dict[str, Any]]:
        plan = results(out)["plan"]
        here = (one for one in things if one["prompt_set"] == "choose")
        return [one for one in here if one["batch"] in plan["batches"] and one["temperature"] in plan["temperatures"]]

    assert chosen_from(out) == chosen_from(alone)
    assert len(chosen_from(out)[0]) == rows
    found = results(out)
    assert all(one["passed"] for one in found["parity"])
    assert not (out / FOLDER).exists() and (out / REPORT).is_file()
    return found


def test_two_processes_find_what_one_finds(
    tiny_target: Callable[..., Path], alone: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = alone(tiny_target), tmp_path / "out"
    process = launch(ACCELERATE, folder / "artifacts", "--plan", folder / "plan.yaml", "--out", out, "--json")
    said, shown = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    found = check_the_same(out, folder / "alone", 2 * 2 * 3)
    assert found["parity"] == results(folder / "alone")["parity"]
    assert found["placement"]["processes"] == 2
    note = "2 processes took part, each with target and drafters of its own and every second batch"
    assert said.count(note) == 1 and note in (out / REPORT).read_text()
    assert json.loads(said.splitlines()[-1])["verdict"] == found["verdict"]
    assert shown.count("parity with the target: 3/3") <= 1 and "process 1" not in shown
    assert len(Artifact.open(folder / "artifacts" / "tiny").evals()) == 2  # one alone and one together


def test_two_processes_that_hold_one_target_find_what_one_finds(
    tiny_target: Callable[..., Path], alone: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out, plan = alone(tiny_target), tmp_path / "out", tmp_path / "plan.yaml"
    plan.write_text(PLAN.replace("[1, 2]", "[2]") + "temperatures: [1]\ntensor_parallel: true\n")
    process = launch(TORCHRUN, folder / "artifacts", "--plan", plan, "--out", out, "--quiet")
    said, shown = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    found = check_the_same(out, folder / "alone", 3)
    assert (found["placement"]["processes"], found["placement"]["tensor_parallel"]) == (2, 2)
    assert "the target runs by the reader eager: its weights are divided over 2 processes" in said


def test_one_that_is_killed_ends_the_other_and_the_same_command_goes_on(
    tiny_target: Callable[..., Path],
    alone: Callable[..., Path],
    tmp_path: Path,
    processes_of: Callable[[subprocess.Popen[str]], dict[str, int]],
) -> None:
    folder, out = alone(tiny_target), tmp_path / "out"
    command = [folder / "artifacts", "--plan", folder / "plan.yaml", "--out", out, "--quiet"]
    process = launch(TORCHRUN, *command)
    while not list(out.glob(f"{FOLDER}/*/choose-*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    os.kill(processes_of(process)["1"], signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode != 0 and not (out / RESULTS).exists()
    process = launch(TORCHRUN, *command)
    said, shown = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    assert "goes on where an evaluation was interrupted" in shown
    check_the_same(out, folder / "alone", 2 * 2 * 3)
    assert "kept of an interrupted run:" in said


def test_a_map_by_two_processes_and_what_they_refuse(
    tiny_target: Callable[..., Path], alone: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out, plan = alone(tiny_target), tmp_path / "out", tmp_path / "plan.yaml"
    plan.write_text(PLAN + MAPPED)
    process = launch(TORCHRUN, folder / "artifacts", "--plan", plan, "--out", out, "--map", "--quiet")
    said, shown = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    mapped = json.loads((out / MAP).read_text())
    assert mapped["placement"]["processes"] == 2 and "2 processes took part" in said
    assert len(mapped["cells"]) == 4

    plan.write_text("device_map: auto\n" + PLAN)
    process = launch(TORCHRUN, folder / "artifacts", "--plan", plan, "--out", tmp_path / "none", "--quiet")
    said, shown = process.communicate(timeout=60)
    assert (
        process.returncode == 1 and said == ""
    )  # the launcher's own; what the first ended with stands in what it says
    assert shown.count(f"{plan}:1: device_map: 2 processes were launched, and each would lay its target over") == 1
    assert "exitcode  : 2" in shown and "a fault of this program" not in shown
    assert not (tmp_path / "none").exists()


def test_certifying_is_one_process_s_work(tmp_path: Path) -> None:
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "factory", "eval", str(tmp_path), "--certify"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    said = "--certify is one process's work: start it alone, without a launcher\n"
    assert (made.returncode, made.stdout, made.stderr) == (2, "", said)
