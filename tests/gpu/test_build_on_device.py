"""Whole builds by the command line: text, scores, training in bfloat16, GPTQ; and one that is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from factory.artifact import Artifact
from factory.decoding.decoder import Limits, autoregressive, speculative
from factory.decoding.drafters import ModelDrafter
from factory.decoding.lean import LeanReader
from factory.decoding.readers import open_reader
from factory.decoding.sampling import Noise, Sampling
from factory.models.loading import load_model

Start = Callable[..., "subprocess.Popen[str]"]
GREEDY = Sampling()
WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # what GPTQ's groups of 32 divide

WHOLE = """\
name: tiny
target: {{model: {target}, dtype: bfloat16}}
data: {{prompts: bos, samples: 96, max_new_tokens: 24, batch: 32, held_out: 0.2}}
stages:
  - {{kind: drop_layers, keep: 2, score: block_influence}}
  - {{kind: distill, epochs: 20, lr: 0.003, batch: 8, teacher: cache, top_k: 24, drawn: 8, ema: 0.9}}
  {gptq}
"""
KILLED = """\
name: tiny
target: {{model: {target}, dtype: float32}}
data: {{prompts: bos, samples: 48, max_new_tokens: 12, batch: 12, held_out: 0.2}}
stages:
  - {{kind: drop_layers, keep: 2, score: even}}
  - {{kind: distill, epochs: 20, lr: 0.001, batch: 4, checkpoint_every: 3, keep: last, precision: float32}}
keep_raw: true
"""


def finished(process: subprocess.Popen[str]) -> None:
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("quantised", [False, True], ids=["bfloat16", "gptq"])
def test_a_whole_build(
    tiny_target: Callable[..., Path], tmp_path: Path, device: str, factory_on: Start, quantised: bool
) -> None:
    if quantised:
        pytest.importorskip("gptqmodel")
    target = tiny_target("llama", tmp_path / "target", **WIDTHS)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(WHOLE.format(target=target, gptq="- {kind: gptq, group_size: 32}" if quantised else ""))
    finished(factory_on("build", recipe, "--out", tmp_path / "out", "--yes"))
    artifact = Artifact.open(tmp_path / "out" / "tiny")
    artifact.verify()
    made = artifact.manifest
    trained = made["facts"][1]
    assert trained["held_out_after"]["overlap"] > trained["held_out_before"]["overlap"] + 0.02
    assert {tensor.dtype for name, tensor in stored(artifact).items() if "embed" in name} == {torch.bfloat16}
    if quantised:
        assert made["facts"][2]["device"] == device
        assert made["weight_format"]["bits"] == 4
        assert made["weight_format"]["kernel"]
        assert made["facts"][2]["reload"]["relative_error"] <= made["facts"][2]["reload"]["allowed"]

    reader = LeanReader(load_model(target, dtype=torch.float64, device=device))  # exact: no tie is near
    drafter = open_reader(artifact.load_model(torch.bfloat16, device))
    if device == "cuda":
        assert drafter.name == "graphed"
    prompts = [[1, 5, 9, 4], [7, 8], [20, 21, 22, 23, 24, 25, 26]]
    limits = Limits(max_new_tokens=60, eos=frozenset(), context=160)
    written = [
        autoregressive(reader, prompts, GREEDY, limits, Noise(0, range(3), device)),
        speculative(reader, ModelDrafter(drafter), prompts, 3, GREEDY, limits, Noise(0, range(3), device)),
    ]
    assert [one.tokens for one in written[1]] == [one.tokens for one in written[0]]
    assert sum(sum(one.accepted) for one in written[1]) > 5  # it does draft


def stored(artifact: Artifact) -> dict[str, torch.Tensor]:
    return dict(load_file(artifact.model_folder / "model.safetensors"))


def training_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "tiny" / "manifest.json").read_text())["facts"][1]
    return found


@pytest.mark.slow
def test_a_killed_build_goes_on(
    tiny_target: Callable[..., Path], tmp_path: Path, device: str, factory_on: Start
) -> None:
    recipe, whole, cut = tmp_path / "recipe.yaml", tmp_path / "whole", tmp_path / "cut"
    recipe.write_text(KILLED.format(target=tiny_target("llama", tmp_path / "target")))
    finished(factory_on("build", recipe, "--out", whole, "--yes"))
    process = factory_on("build", recipe, "--out", cut, "--yes")
    deadline_s = time.monotonic() + 200
    while not list(cut.glob(".cache/stages/*.working/checkpoint.pt")):
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (checkpoint,) = cut.glob(".cache/stages/*.working/checkpoint.pt")
    state = torch.load(checkpoint, weights_only=True)
    assert 0 < state["step"] < training_of(whole)["steps"]
    finished(factory_on("build", recipe, "--out", cut, "--yes"))

    assert training_of(cut)["steps"] == training_of(whole)["steps"] == len(training_of(cut)["losses"])
    begun, ended, resumed = (
        stored(Artifact.open(folder)) for folder in (whole / "tiny--raw", whole / "tiny", cut / "tiny")
    )
    if device == "cpu":
        assert all(torch.equal(resumed[name], tensor) for name, tensor in ended.items())
    for name, tensor in ended.items():  # CUDA adds up in no fixed order
        moved = (tensor - begun[name]).norm()
        assert (resumed[name] - tensor).norm() <= 0.1 * moved, name
