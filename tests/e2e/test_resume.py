"""Builds of every way to distil, killed again and again: each ends with the bytes of an undisturbed one."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.building.build import build
from factory.recipes.recipe import load

RECIPE = """\
name: tiny
target: {{model: {target}}}
data: {{prompts: bos, samples: 48, max_new_tokens: 12, batch: 12, held_out: 0.2}}
stages:
  - {{kind: drop_layers, keep: 2, score: even}}
  - {distill}
"""
# Imports once, then forks for each recipe and folder that it is given: as a killed build, without waiting for torch.
NURSERY = """\
import os, sys
from pathlib import Path
import torch
import factory.building.workshop, factory.distillation.distil
from factory.building.build import build
from factory.recipes.recipe import load
torch.set_num_threads(1)
for line in sys.stdin:
    recipe, out = line.split()
    child = os.fork()
    if not child:
        build(load(Path(recipe)), Path(out), lambda *_: None)
        os._exit(0)
    print("child", child, flush=True)
    print("code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def silent(_done: int, _total: int, _what: str) -> None:
    pass


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", NURSERY], env=environment, stdin=pipe, stdout=pipe, text=True)
    yield process
    process.communicate(timeout=30)


def told(nursery: subprocess.Popen[str], what: str) -> int:
    """The number after that word on the nursery's next line."""
    assert nursery.stdout is not None
    word, number = nursery.stdout.readline().split()
    assert word == what  # a number that is no child's must not be killed: 0 is this very group of processes
    return int(number)


def killed_build(
    nursery: subprocess.Popen[str], recipe: Path, out: Path, enough: Callable[[], bool], pause_s: float
) -> int:
    """The exit code of a build that is killed a moment after `enough`, if it has not ended before."""
    assert nursery.stdin is not None
    print(recipe, out, file=nursery.stdin, flush=True)
    child = told(nursery, "child")
    deadline_s = time.monotonic() + 120
    try:
        while not enough() and Path(f"/proc/{child}").exists():
            assert time.monotonic() < deadline_s
            time.sleep(0.003)
        time.sleep(pause_s)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        code = told(nursery, "code")
    return code


def outcome(out: Path) -> tuple[str, Any]:
    """The weights' hash, and what the manifest says of the training."""
    facts = json.loads((out / "tiny" / "manifest.json").read_text())["facts"][1]
    timeless = {key: value for key, value in facts.items() if not key.endswith(("_s", "seconds", "bytes"))}
    return hashlib.sha256((out / "tiny" / "model" / "model.safetensors").read_bytes()).hexdigest(), timeless


COMMON = {"kind": "distill", "epochs": 5, "lr": 0.003, "batch": 4, "checkpoint_every": 3, "check_every": 8}
MODES: dict[str, dict[str, Any]] = {
    "teacher cache": {"teacher": "cache", "top_k": 8, "pack": 40},
    "running mean and muon": {"ema": 0.9, "optimizer": "muon", "weight_decay": 0.1},
    "selection": {"select": {"keep": 0.5}, "gradient_checkpointing": True},
    "own text": {"on_policy": {"share": [[0, 0.2], [1, 0.8]], "new_tokens": 6, "decay": 0.8}, "ema": 0.9},
    "adapters": {"lora": 4, "freeze": ["embedding"], "accumulate": 2, "patience": 4},
}


@pytest.mark.parametrize("mode", MODES)
def test_killed_again_and_again_it_ends_byte_identical(
    tiny_target: Callable[..., Path],
    tmp_path: Path,
    nursery: subprocess.Popen[str],
    changes: Callable[[Path, set[tuple[str, int]]], int],
    mode: str,
) -> None:
    recipe, cut = tmp_path / "recipe.yaml", tmp_path / "cut"
    stage = json.dumps({**COMMON, **MODES[mode]})
    recipe.write_text(RECIPE.format(target=tiny_target("llama", tmp_path / "target"), distill=stage))
    build(load(recipe), tmp_path / "whole", silent)
    chance = random.Random(mode)
    codes, steps = [], set()
    for _ in range(5):
        seen: set[tuple[str, int]] = set()
        enough = changes(cut, seen) + chance.randint(10, 40)
        codes.append(
            killed_build(
                nursery,
                recipe,
                cut,
                lambda seen=seen, enough=enough: changes(cut, seen) >= enough,  # type: ignore[misc]
                chance.random() * 0.02,
            )
        )
        for checkpoint in cut.glob(".cache/stages/*.working/**/checkpoint.pt"):
            steps.add(torch.load(checkpoint, weights_only=True)["step"])
        if codes[-1] == 0:
            break
    assert codes.count(-signal.SIGKILL) >= 2, codes
    assert set(codes) <= {-signal.SIGKILL, 0}
    assert steps  # at least one kill was within the training
    build(load(recipe), cut, silent)
    assert outcome(cut) == outcome(tmp_path / "whole")
    assert not list(cut.glob(".cache/stages/*.working"))
