"""What a build still has to do is what must fit: shared work once, finished work not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from factory.building import room
from factory.building.job import Job
from factory.building.tasks import tasks_of, wanted
from factory.errors import FactoryError
from factory.forecasting.estimate import Forecast, forecast_recipe
from factory.forecasting.profile import BUILT_IN
from factory.models.located import Located
from factory.recipes.recipe import load

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "max_position_embeddings": 160,
    "vocab_size": 512,
}
RECIPE = """\
name: x
target: {model: target}
data: {prompts: bos, samples: 64, max_new_tokens: 16}
stages:
  - {kind: drop_layers, keep: 2}
  - {kind: distill}
grid:
  stages.1.lr: [0.001, 0.002, 0.003]
"""
Machine = Callable[[int, int], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """`machine(memory, disk)`: bytes that there are."""

    def set_to(memory_bytes: int, disk_bytes: int) -> None:
        here = replace(BUILT_IN["cpu"], memory_bytes=memory_bytes)
        monkeypatch.setattr(room.profile, "load", lambda: here)
        monkeypatch.setattr(room, "free_bytes", lambda _folder: disk_bytes)

    return set_to


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "r.yaml").write_text(RECIPE)
    located = Located(tmp_path / "target", None)
    candidates = load(tmp_path / "r.yaml")
    return [Job(loaded, located, "id", CONFIG, tmp_path / "out", None, lambda *_: None) for loaded in candidates]


def require(jobs: list[Job], processes: int = 1) -> None:
    missing = {name: count for job in jobs for name, count in wanted(job).items()}
    room.require_room(tasks_of(jobs, missing), jobs, processes)


def forecast_of(job: Job) -> Forecast:
    found = forecast_recipe(job.loaded, BUILT_IN["cpu"], config=CONFIG)
    assert found is not None
    return found


def test_disk_is_summed_over_all_and_what_they_share_counts_once(jobs: list[Job], machine: Machine) -> None:
    found = forecast_of(jobs[0])
    text, cut, trained = (step.effort.disk_bytes for step in found.steps[1:] if step.effort)
    drafter = int(found.drafter.weight_bytes)
    checkpoint = trained - drafter
    # One text, one cut model; of each candidate its result and its artifact; one checkpoint at a time.
    needed = int(text + cut + 3 * 2 * drafter + checkpoint)
    machine(1 << 40, needed)
    require(jobs)
    machine(1 << 40, needed - 1)
    with pytest.raises(FactoryError, match=r"(?s)what is left to do needs about .* of disk, .*say --yes$"):
        require(jobs)
    machine(1 << 40, needed + int(2 * checkpoint) - 1)
    with pytest.raises(FactoryError, match="of disk"):
        require(jobs, processes=3)


def test_what_is_finished_is_not_charged_again(jobs: list[Job], machine: Machine) -> None:
    found = forecast_of(jobs[0])
    machine(1 << 40, int(found.drafter.weight_bytes))
    with pytest.raises(FactoryError, match="of disk"):
        require(jobs[:1])
    for count in (1, 2):
        model = jobs[0].stage_folder(count) / "model"
        model.mkdir(parents=True)
        (model.parent / "stage.json").write_text('{"files": {}}')
    require(jobs[:1])  # the artifact alone is left


def test_a_text_and_a_checkpoint_that_lie_there_count(jobs: list[Job], machine: Machine) -> None:
    found, job = forecast_of(jobs[0]), jobs[0]
    text, cut, trained = (int(step.effort.disk_bytes) for step in found.steps[1:] if step.effort)
    drafter = int(found.drafter.weight_bytes)
    machine(1 << 40, cut + drafter + trained - 1000)
    with pytest.raises(FactoryError, match="of disk"):
        require([job])
    shards = job.cache / "text" / job.text_digest
    shards.mkdir(parents=True)
    (shards / "shard-00000.parquet").write_bytes(b"x")
    (shards / "facts.json").write_text("{}")  # is written last: all of it is there
    working = job.stage_folder(2).with_name(job.stage_folder(2).name + ".working")
    working.mkdir(parents=True)
    (working / "checkpoint.pt").write_bytes(b"x" * 1000)
    assert text > 1000
    require([job])


def test_a_teacher_cache_is_written_once_for_all_and_counts_what_lies_there(tmp_path: Path, machine: Machine) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "r.yaml").write_text(
        RECIPE.replace("{kind: distill}", "{kind: distill, teacher: cache, top_k: 8, drawn: 0}")
    )
    located = Located(tmp_path / "target", None)
    candidates = load(tmp_path / "r.yaml")
    jobs = [Job(each, located, "id", CONFIG, tmp_path / "out", None, lambda *_: None) for each in candidates]
    found = forecast_of(jobs[0])
    text, cached, cut, trained = (int(step.effort.disk_bytes) for step in found.steps[1:] if step.effort)
    assert cached == 64 * 16 * (8 * 4 + 4)
    drafter = int(found.drafter.weight_bytes)
    needed = text + cached + cut + 3 * 2 * drafter + trained - drafter
    machine(1 << 40, needed)
    require(jobs)
    machine(1 << 40, needed - 1)
    with pytest.raises(FactoryError, match="of disk"):
        require(jobs)
    stage = jobs[0].recipe.stages[1]
    assert len({job.teacher_folder(job.recipe.stages[1]) for job in jobs}) == 1
    folder = jobs[0].teacher_folder(stage)
    folder.mkdir(parents=True)
    (folder / "shard-00000.safetensors").write_bytes(b"x" * 1000)
    machine(1 << 40, needed - 1000)
    require(jobs)
    (folder / "meta.json").write_text('{"key": {}, "files": {"shard-00000.safetensors": 1000}}')  # finished
    machine(1 << 40, needed - cached)
    require(jobs)
    (folder / "shard-00000.safetensors").write_bytes(b"x" * 999)
    with pytest.raises(FactoryError, match="of disk"):
        require(jobs)


def test_processes_at_once_each_need_their_memory(jobs: list[Job], machine: Machine) -> None:
    peak = int(forecast_of(jobs[0]).peak_memory_bytes) + 1
    machine(peak, 1 << 40)
    require(jobs)
    with pytest.raises(FactoryError, match=r"3 processes at once need about .* of memory, .* smaller --jobs"):
        require(jobs, processes=8)  # there are three candidates
    machine(3 * peak, 1 << 40)
    require(jobs, processes=8)
    machine(peak - 2, 1 << 40)
    with pytest.raises(FactoryError, match=r"x--lr0\.\d+: distill needs about .* of memory, and CPU as built in has"):
        require(jobs)


def test_launched_processes_share_a_cpus_memory(jobs: list[Job], machine: Machine) -> None:
    peak = int(forecast_of(jobs[0]).peak_memory_bytes) + 1
    tasks = tasks_of(jobs, {job.name: 2 for job in jobs})
    machine(2 * peak, 1 << 40)
    room.require_room(tasks, jobs, 1, together=2)
    with pytest.raises(FactoryError, match=r"3 processes need about .* of memory, .*; launch fewer"):
        room.require_room(tasks, jobs, 1, together=3)
