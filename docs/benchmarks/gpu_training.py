"""A drafter of the shipped target made entirely on the device by `factory build`: its time, its rate, its overlap."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from decoder_pairs import TARGET, SkippedError
from decoder_passes import Row, row
from gpu_pairs import ROOT, Bench, given, in_order, opened
from gpu_text import written

from eval.verdict.stats import Interval
from factory.artifact import Artifact, artifact_folders
from factory.errors import FactoryError
from factory.models.loading import load_model
from factory.stages.gptq import Gptq

RECIPE = ROOT / "recipes" / "demo" / "gpu.yaml"
# What is changed in the recipe: less than its minutes at full size, and at small size too little to learn from.
DATA: dict[str, dict[str, Any]] = {
    "full": {"samples": 8192},
    "small": {"samples": 48, "max_new_tokens": 40, "batch": 16},
}
DISTILL: dict[str, dict[str, Any]] = {"full": {"epochs": 6}, "small": {"epochs": 1}}


def training(bench: Bench) -> Iterator[Row]:
    """One row for each drafter that the recipe makes. Raises SkippedError where there is no such recipe."""
    if not RECIPE.is_file():
        raise SkippedError(f"{RECIPE.relative_to(ROOT)} is not there")
    folder = made_in(bench)
    shutil.rmtree(folder, ignore_errors=True)
    begun_s = time.monotonic()
    bench.facts["changed in the recipe"] = changed = changes(bench)
    command = [sys.executable, "-m", "factory", "build", str(RECIPE), "--out", str(folder)]
    command += [one for key, value in changed.items() for one in ("--set", f"{key}={value}")]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    build_s = time.monotonic() - begun_s
    if done.returncode != 0:
        raise FactoryError(f"factory build ended with exit code {done.returncode}; its words are in the log")
    artifacts = [Artifact.open(made) for made in artifact_folders(folder)]
    for artifact in artifacts:
        stages = [
            json.loads(path.read_text(encoding="utf-8")) for path in sorted((artifact.folder / "stages").iterdir())
        ]
        bench.facts[artifact.name] = stages
        for stage in stages:
            if stage["stage"]["kind"] == "distill":
                yield distilled(artifact.name, stage["facts"], build_s)
    yield from in_order(bench, [(f"{one.name} in 4 bits", 10, partial(in_four_bits, bench, one)) for one in artifacts])


def in_four_bits(bench: Bench, artifact: Artifact) -> Iterator[Row]:
    """What rounding leaves of a drafter: its overlap with itself unquantised, on text of the target's."""
    to = bench.work / f"{artifact.name}-4bit"
    shutil.rmtree(to, ignore_errors=True)
    target = load_model(TARGET, dtype=getattr(torch, bench.dtype), device=bench.device)
    text = written(bench, opened(target))
    stage = Gptq(kind="gptq", bits=4, group_size=64, samples=len(text))
    begun_s = time.monotonic()
    facts = stage.quantize(artifact.model_folder, to, given(text, bench.work))
    yield row(
        f"overlap of {artifact.name} in 4 bits with itself unquantised",
        "shipped target",
        Interval(facts["divergence"]["overlap"], None, None),
        kernel=facts["kernel"],
        device=facts["device"],
        seconds_of_rounding=time.monotonic() - begun_s,
    )


def made_in(bench: Bench) -> Path:
    """Where the artifacts lie, for the parts that follow."""
    return bench.work / "training"


def changes(bench: Bench) -> dict[str, Any]:
    """What a run of this size changes in the recipe, by key."""
    stages = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["stages"]
    trainings = [index for index, stage in enumerate(stages) if stage["kind"] == "distill"]
    found = {f"data.{key}": value for key, value in DATA[bench.size].items()}
    return found | {f"stages.{index}.{key}": value for index in trainings for key, value in DISTILL[bench.size].items()}


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
