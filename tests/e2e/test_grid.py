"""Grids: what candidates share is made once, a killed build goes on, and neither order nor processes change a byte."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from factory.artifact import Artifact, list_artifacts
from factory.building.build import build
from factory.errors import FactoryError, UnsupportedModel
from factory.recipes.recipe import load
from factory.teaching.teacher_cache import TeacherCache

RECIPE = """\
name: tiny
target: {{model: {target}}}
data: {{prompts: bos, samples: 24, max_new_tokens: 16, batch: 8, held_out: 0.2}}
stages:
  - {{kind: drop_layers, keep: 2}}
  - {{kind: distill, epochs: {epochs}, batch: 4, checkpoint_every: 5}}
keep_raw: true
grid:
{grid}
"""
llama = pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)


def recipe(folder: Path, target: Path, *grid: str, epochs: int = 1) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(target=target, epochs=epochs, grid="\n".join(f"  {line}" for line in grid)))
    return path


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def hashes(artifacts: list[Artifact]) -> dict[str, str]:
    return {
        made.name: hashlib.sha256((made.model_folder / "model.safetensors").read_bytes()).hexdigest()
        for made in artifacts
    }


def start(path: Path, out: Path, *options: str, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    """The real command in a process group of its own, with one thread, as the builds of this process have."""
    command = [sys.executable, "-m", "factory.cli", "build", str(path), "--out", str(out), "--quiet", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts what runs in the background with it ignored
        if before is not None:
            before()

    return subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True, preexec_fn=prepare
    )


def alive(group: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        if process is not None and process.poll() is not None:
            return
        time.sleep(0.002)


@llama
def test_what_candidates_share_is_made_once(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = recipe(tmp_path, tiny_folder, "stages.0.keep: [1, 2]", "stages.1.lr: [1e-3, 3e-3]")
    said: list[str] = []
    made = build(load(path), out, lambda _done, _total, what: said.append(what))
    names = [f"tiny--keep{keep}-lr{lr}" for keep in (1, 2) for lr in (0.001, 0.003)]
    assert [artifact.name for artifact in made] == [name for pair in names for name in (pair, f"{pair}--raw")]
    assert len(list((out / ".cache" / "text").iterdir())) == 1
    assert len(list((out / ".cache" / "stages").iterdir())) == 2 + 4
    assert len([what for what in said if "the target writes" in what]) == 1 + 24 // 8
    found = hashes(made)
    assert len(set(found.values())) == 4 + 2  # the two that differ in lr alone share what is not yet trained
    assert [Artifact.open(out / f"{name}--raw").manifest["raw"] for name in names] == [True] * 4
    assert not any(Artifact.open(out / name).manifest["raw"] for name in names)
    resolved = load(out / names[2] / "resolved.yaml")
    assert [one.recipe.stages for one in resolved] == [load(path)[2].recipe.stages]  # its own values, and no grid
    assert (out / names[2] / "recipe.yaml").read_bytes() == path.read_bytes()
    said.clear()
    build(load(path), out, lambda _done, _total, what: said.append(what))
    assert set(said) <= {"reading prompts"}


@llama
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_teacher_cache_is_written_once_for_all_candidates(tiny_folder: Path, tmp_path: Path, jobs: int) -> None:
    out = tmp_path / "out"
    path = recipe(tmp_path, tiny_folder, "stages.0.keep: [1, 2]", "stages.1.lr: [1e-3, 3e-3]")
    loaded = load(path, ["stages.1.teacher=cache", "stages.1.top_k=8"])
    said: list[tuple[int, int, str]] = []
    build(loaded, out, lambda *shown: said.append(shown), jobs=jobs)
    (folder,) = (out / ".cache" / "teacher").iterdir()
    cache = TeacherCache.open(folder, {"temperature": 1.0, "top_k": 8})
    assert len(cache) == 24  # what is held out too
    assert 0 < cache.facts["alpha_bound"] < 1
    assert sum(shown[0] == 0 and shown[2].endswith("the teacher reads") for shown in said) == 1

    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (folder / "shard-00000.safetensors").write_bytes(b"damaged")
    build(load(path, ["stages.1.teacher=cache", "stages.1.top_k=8", "stages.1.lr=5e-3", "keep_raw=false"]), out, silent)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before  # made again, byte for byte
    assert [entry.name for entry in (out / ".cache" / "teacher").iterdir()] == [folder.name]


@llama
def test_processes_change_no_byte(tiny_folder: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_folder, "stages.1.lr: [1e-3, 3e-3]", "seed: [0, 1]")
    alone = build(load(path), tmp_path / "alone", silent)
    said: list[str] = []
    together = build(load(path), tmp_path / "together", lambda _done, _total, what: said.append(what), jobs=2)
    assert hashes(together) == hashes(alone)
    assert any("lr0.003-seed1: distilling" in what for what in said)  # a process's progress is shown by this one
    assert len(list((tmp_path / "together" / ".cache" / "text").iterdir())) == 2  # one for each seed


@llama
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_candidate_that_fails_does_not_cost_the_others(tiny_folder: Path, tmp_path: Path, jobs: int) -> None:
    out = tmp_path / "out"
    path = recipe(tmp_path, tiny_folder, "stages.1.lr: [1e-3, 1e30, 3e-3]", epochs=4)
    with pytest.raises(FactoryError) as caught:
        build(load(path), out, silent, jobs=jobs)
    assert str(caught.value).startswith(f"tiny--lr1e+30: {path}:")
    assert "stages.1.lr: distill: the loss is nan" in str(caught.value)
    raw = {f"tiny--lr{lr}--raw" for lr in ("0.001", "1e+30", "0.003")}
    assert {made.name for made in list_artifacts(out)} == {"tiny--lr0.001", "tiny--lr0.003", *raw}


@llama
def test_all_that_the_target_cannot_do_is_told_before_anything_starts(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = recipe(tmp_path, tiny_folder, "stages.0.keep: [1, 9, [0, 7]]", "seed: [0, 1]")
    with pytest.raises(UnsupportedModel) as caught:
        build(load(path), out, silent)
    assert str(caught.value).splitlines() == [
        f"{path}:9: grid: stages.0.keep: drop_layers: keep is 9, the model has 4 layers",
        f"{path}:9: grid: stages.0.keep: drop_layers: keep names layer 7, the model has 0 to 3",
    ]
    assert [entry.name for entry in out.iterdir()] == [".lock"]


@llama
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_any_moment_a_grid_goes_on_and_ends_byte_identical(
    tiny_folder: Path, tmp_path: Path, changes: Callable[[Path, set[tuple[str, int]]], int], jobs: int
) -> None:
    path = recipe(tmp_path, tiny_folder, "stages.1.lr: [1e-3, 2e-3, 3e-3]", epochs=20)
    undisturbed = hashes(build(load(path), tmp_path / "whole", silent))
    out = tmp_path / "cut"
    chance = random.Random(jobs)
    kills = 0
    for _ in range(4 if jobs == 1 else 2):
        seen: set[tuple[str, int]] = set()
        enough = changes(out, seen) + chance.randint(1, 40)  # so many things written or renamed, and a moment more
        process = start(path, out, "--jobs", str(jobs))
        wait_for(lambda enough=enough, seen=seen: changes(out, seen) >= enough, process)  # type: ignore[misc]
        time.sleep(chance.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        wait_for(lambda group=process.pid: not alive(group))  # type: ignore[misc]
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 1
    process = start(path, out, "--jobs", str(jobs), "--json")
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert [fact["name"] for fact in json.loads(said.splitlines()[-1])["artifacts"]] == list(undisturbed)
    assert hashes(list_artifacts(out)) == dict(sorted(undisturbed.items()))
    for made in list_artifacts(out):
        made.verify()


@llama
def test_after_ctrl_c_the_same_command_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    # long enough for a slow machine to be in time
    path = recipe(tmp_path, tiny_folder, "stages.1.lr: [1e-3, 3e-3]", epochs=240)
    out = tmp_path / "out"
    process = start(path, out, "--jobs", "2")
    wait_for(lambda: list(out.glob(".cache/stages/*.working/checkpoint.pt")), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    asked = shlex.join(process.args[3:])  # type: ignore[index,arg-type]
    assert errors.endswith(f"\ninterrupted: what is finished is kept; to go on from there: python -m factory {asked}\n")
    assert "Traceback" not in errors
    wait_for(lambda: not alive(process.pid))
    checkpoints = list(out.glob(".cache/stages/*.working/checkpoint.pt"))
    step = min(torch.load(file, weights_only=True)["step"] for file in checkpoints)
    steps: list[int] = []
    build(load(path), out, lambda done, _total, what: steps.append(done) if "distilling" in what else None)
    assert min(steps) in (0, step)  # one of them may not have begun


@llama
@pytest.mark.parametrize(
    ("largest_file", "jobs", "said", "options"),
    [
        (600, 1, "", ()),
        (40_000, 1, "", ()),
        (150_000, 1, "", ()),
        (150_000, 2, "", ()),
        (150_000, 1, ".cache/teacher/", ("stages.1.teacher=cache", "stages.1.top_k=128")),
    ],
    ids=["text", "stage", "checkpoint", "checkpoint of a process", "teacher cache"],
)
def test_a_full_disk_is_said_and_nothing_is_lost(
    tiny_folder: Path, tmp_path: Path, largest_file: int, jobs: int, said: str, options: tuple[str, ...]
) -> None:
    """A limit on the size of files fails where a full disk does: in Python, in safetensors and in torch's writer."""
    path = recipe(tmp_path, tiny_folder, "stages.1.lr: [1e-3, 3e-3]", epochs=3)
    out = tmp_path / "out"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    sets = [word for option in options for word in ("--set", option)]
    process = start(path, out, "--jobs", str(jobs), *sets, before=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert errors.count("make room there and run the same command again") == 1
    assert said in errors
    assert "Traceback" not in errors
    wait_for(lambda: not alive(process.pid))
    loaded = load(path, options)
    assert hashes(build(loaded, out, silent)) == hashes(build(loaded, tmp_path / "whole", silent))
