"""Where a plan puts target and drafters: what is refused, and evaluations whose target lies on several devices."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.lossless.certify import certify
from eval.plan import EvalPlan, load_plan
from eval.report.writing import TOKENS
from eval.timing.placing import placement_of, require_devices
from eval.timing.together import Order, open_bench, words
from factory.artifact import Artifact
from factory.errors import RecipeError, UnsupportedModel
from factory.models.placement import Placement
from factory.processes import ALONE, Processes

Judge = Callable[..., dict[str, Any]]
TWO = Processes(0, 2)


@pytest.fixture
def faults(tmp_path: Path) -> Callable[..., list[str]]:
    """`faults(text, together)` is what is wrong with a plan of that text, without the file's name."""

    def found(text: str, together: Processes = ALONE) -> list[str]:
        path = tmp_path / "plan.yaml"
        path.write_text(text)
        with pytest.raises(RecipeError) as caught:
            require_devices(load_plan(path), together)
        return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]

    return found


def test_keys_that_contradict_each_other(faults: Callable[..., list[str]]) -> None:
    assert faults("device: cuda:3\ndevice_map: auto\ntensor_parallel: true\n") == [
        "2: device_map: divides the target over GPUs, and `device: cuda:3` is one device",
        "3: tensor_parallel: a target with a device_map is divided already: write one of the two",
        "3: tensor_parallel: each process has a device of its own, and `device: cuda:3` is one",
    ]
    assert faults("device: cpu\ndevice_map: balanced\n") == [
        "2: device_map: divides the target over GPUs, and `device: cpu` is one device"
    ]
    assert faults("seed: 1\nmax_memory: {0: 9GiB}\n") == [
        "2: max_memory: bounds what device_map may use: write `device_map: auto` too"
    ]


def test_values_that_are_none(faults: Callable[..., list[str]]) -> None:
    assert faults("device_map: auto\nmax_memory: {0: 9 gigs, cpu: -4}\n") == [
        "2: max_memory.0: 9 gigs is no size; write bytes, or text such as 9GiB",
        "2: max_memory.cpu: -4 is no size; write bytes, or text such as 9GiB",
    ]
    assert faults("device_map: auto\nmax_memory: {gpu: 4GiB}\n") == [
        "2: max_memory: 'gpu' is no device here: write a GPU's number, such as 0, or cpu"
    ]
    said = faults("device_map: automatic\ndrafter_device: gpu\ntensor_parallel: auto\n")
    assert [line.split(":")[:2] for line in said] == [
        ["1", " device_map"],
        ["2", " drafter_device"],
        ["3", " tensor_parallel"],
    ]
    assert said[1].endswith("'gpu' is no device here: write auto, cpu, cuda, or one GPU such as cuda:1")
    assert "did you mean 'auto'?" in said[0]


def test_devices_that_are_not_there(faults: Callable[..., list[str]]) -> None:
    said = faults("drafter_device: cuda:97\ndevice_map: sequential\nmax_memory: {98: 9GiB}\n")
    assert [line.split(": torch finds")[0] for line in said] == [
        "1: drafter_device: cuda:97 is not there",
        "3: max_memory: cuda:98 is not there",
    ]
    assert faults("device: cuda:99\n")[0].startswith("1: device: cuda:99 is not there: torch finds ")


def test_what_does_not_go_with_the_launched_processes(faults: Callable[..., list[str]]) -> None:
    alone = "1: tensor_parallel: divides the target over several launched processes, and this is one alone: start it as"
    assert faults("tensor_parallel: true\n") == [f"{alone} torchrun --nproc_per_node 2 -m factory eval ..."]
    said = faults("device_map: auto\ndrafter_device: cuda:97\n", TWO)
    assert said[1:] == [
        "1: device_map: 2 processes were launched, and each would lay its target over the same devices: "
        "start one alone",
        "2: drafter_device: 2 processes were launched, and each drafts on a device of its own, not cuda:97: "
        "write cpu or auto",
    ]
    with pytest.raises(RecipeError, match="plan: tensor_parallel: certifying is one process's work"):
        certify([], EvalPlan(tensor_parallel=True), target=None, prompts_file=None, progress=lambda *_: None)


def test_a_plan_says_how_the_target_is_laid_out() -> None:
    plan = EvalPlan(device_map="balanced", max_memory={"0": "9GiB", "cpu": 1 << 30})
    assert placement_of(plan, ALONE) == Placement("balanced", {0: "9GiB", "cpu": 1 << 30})
    assert placement_of(EvalPlan(), TWO) == Placement()  # a whole target in each
    assert placement_of(EvalPlan(tensor_parallel=True), TWO) == Placement(processes=2)


@pytest.mark.parametrize("tiny_folder", ["gpt2", "llama"], indirect=True)
def test_what_cannot_be_divided_over_processes_is_told_before_anything_is_loaded(built: Artifact) -> None:
    from eval.timing.arms import entries

    plan = EvalPlan(tensor_parallel=True)
    family = "gpt2" if built.manifest["target_shape"]["positions"] else "llama"
    expected = {
        "gpt2": "transformers cannot divide a gpt2 over processes: write `device_map: auto` in one process, or leave",
        "llama": "4 heads with 2 for keys and values cannot be divided over 3 processes: launch as many as divide both",
    }
    with pytest.raises(UnsupportedModel) as caught:
        open_bench(Order(entries([built], plan), plan, None, 160), lambda: None, Processes(0, 3))
    assert expected[family] in str(caught.value)


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_a_map_that_divides_nothing_is_told(built: Artifact) -> None:
    from eval.timing.arms import entries

    plan = EvalPlan(device_map="auto", max_memory={"cpu": "1GiB"})
    bench = open_bench(Order(entries([built], plan), plan, None, 160), lambda: None, ALONE)
    assert words(bench) == ["device_map: auto divided nothing: the whole target lies on cpu."]


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_a_target_in_parts_writes_the_same_and_the_results_say_where_it_lay(
    built: Artifact, judge: Judge, tmp_path: Path
) -> None:
    """What fits into no memory is read from disk in every pass, by the hooks that move it between GPUs."""
    changes: dict[str, Any] = {"dtype": "float64", "ks": (2,), "temperatures": (1.0,), "repeats": 1}
    whole = judge(built, tmp_path / "whole", reader="eager", **changes)
    placed = {"device": "auto", "device_map": "auto", "max_memory": {"cpu": 200_000}}
    parts = judge(built, tmp_path / "parts", **placed, **changes)

    def lines(out: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in (tmp_path / out / TOKENS).read_text().splitlines()]
        return [line for line in found if line["prompt_set"] == "choose"]

    assert lines("parts") == lines("whole") and lines("whole")
    assert all(row["matches_target"] for row in parts["rows"])
    assert "the target runs by the reader eager: its layers lie on cpu and disk" in parts["notes"]
    assert parts["placement"] == {
        "processes": 1,
        "tensor_parallel": 1,
        "target_devices": ["cpu"],
        "drafter_devices": ["cpu"],
    }
    assert whole["placement"] == parts["placement"] and not [note for note in whole["notes"] if "disk" in note]
