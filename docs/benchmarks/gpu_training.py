"""A drafter of the shipped target made entirely on the device by `factory build`: its time, its rate, its overlap."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from decoder_pairs import SkippedError
from decoder_passes import Row, row
from gpu_pairs import ROOT, Bench

from eval.stats import Interval
from factory.artifact import Artifact, artifact_folders
from factory.errors import FactoryError

RECIPE = ROOT / "recipes" / "demo" / "gpu.yaml"
# what a small run changes: enough text that some is left, too little to learn from
SMALL = {"data.samples": 48, "data.max_new_tokens": 40}
SMALL_STAGE: dict[str, Any] = {"epochs": 1}


def training(bench: Bench) -> Iterator[Row]:
    """One row for each drafter that the recipe makes. Raises SkippedError where there is no such recipe."""
    if not RECIPE.is_file():
        raise SkippedError(f"{RECIPE.relative_to(ROOT)} is not there")
    folder = made_in(bench)
    shutil.rmtree(folder, ignore_errors=True)
    begun_s = time.monotonic()
    command = [sys.executable, "-m", "factory", "build", str(RECIPE), "--out", str(folder), *changes(bench)]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    build_s = time.monotonic() - begun_s
    if done.returncode != 0:
        raise FactoryError(f"factory build ended with exit code {done.returncode}; its words are in the log")
    for made in artifact_folders(folder):
        artifact = Artifact.open(made)
        bench.facts[artifact.name] = stages = [
            json.loads(path.read_text()) for path in sorted((made / "stages").iterdir())
        ]
        for stage in stages:
            if stage["stage"]["kind"] == "distill":
                yield distilled(artifact.name, stage["facts"], build_s)
            elif stage["stage"]["kind"] == "gptq":
                yield quantised(artifact.name, stage["facts"])


def made_in(bench: Bench) -> Path:
    """Where the artifacts lie, for the parts that follow."""
    return bench.work / "training"


def changes(bench: Bench) -> list[str]:
    """Options that make a small run of the recipe."""
    if bench.full:
        return []
    stages = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["stages"]
    said: dict[str, Any] = dict(SMALL)
    for index, stage in enumerate(stages):
        if stage["kind"] == "distill":
            said |= {f"stages.{index}.{key}": value for key, value in SMALL_STAGE.items()}
    return [one for key, value in said.items() for one in ("--set", f"{key}={value}")]


def distilled(name: str, facts: dict[str, Any], build_s: float) -> Row:
    """Held-out overlap, which is acceptance."""
    return row(
        f"held-out overlap of {name}, made by one build",
        "shipped target",
        Interval(facts["held_out_after"]["overlap"], None, None),
        before=facts["held_out_before"]["overlap"],
        answer_tokens_per_s=facts["answer_tokens"] / facts["seconds"],
        steps=facts["steps"],
        training_s=facts["seconds"],
        whole_build_s=build_s,
        peak_gib=(facts["peak_memory_bytes"] or 0) / 2**30,
    )


def quantised(name: str, facts: dict[str, Any]) -> Row:
    """What rounding left of it."""
    return row(
        f"overlap of {name} in {facts['bits']} bits with itself unquantised",
        "shipped target",
        Interval(facts["divergence"]["overlap"], None, None),
        kernel=facts["kernel"],
        device=facts["device"],
        seconds_of_the_stage=facts.get("seconds"),
    )
