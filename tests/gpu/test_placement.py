"""Targets over several GPUs, and drafters beside them: what no CPU can rehearse."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from factory.decoding.decoder import Limits, autoregressive, speculative
from factory.decoding.drafters import ModelDrafter
from factory.decoding.readers import open_reader
from factory.decoding.sampling import Noise, Sampling
from factory.models.loading import load_model
from factory.models.placement import Placement, layer_devices

GPUS = torch.cuda.device_count()
needs_two = pytest.mark.skipif(GPUS < 2, reason=f"needs two CUDA devices, and {GPUS} are here")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 1, reason="needs a CUDA device")]

PROMPTS = [[1, 5, 9, 11], [1, 7], [3]]
LIMITS = Limits(20, frozenset([2]), 160)
WAYS = [Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, repetition_penalty=1.3)]


def noise(device: torch.device) -> Noise:
    return Noise(0, range(len(PROMPTS)), device)


@needs_two
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_a_target_over_two_gpus_writes_what_it_writes_on_one(
    tiny_target: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    folder = tiny_target(family, tmp_path / "target")
    whole = open_reader(load_model(folder, dtype=torch.float64, device="cuda:0"), "eager")
    placement = Placement("balanced", {0: "200KB", 1: "1GiB"})
    divided = load_model(folder, dtype=torch.float64, placement=placement)
    assert {str(device) for device in layer_devices(divided)} == {"cuda:0", "cuda:1"}
    reader = open_reader(divided)
    assert reader.why is not None and "cuda:0 and cuda:1" in reader.why
    for sampling in WAYS:
        expected, found = (autoregressive(one, PROMPTS, sampling, LIMITS, noise(one.device)) for one in (whole, reader))
        assert found == expected


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda:1", marks=needs_two)])
@pytest.mark.parametrize("kind", ["eager", "auto"])
def test_a_drafter_elsewhere_drafts_what_it_drafts_beside_the_target(
    tiny_target: Callable[..., Path], tmp_path: Path, place: str, kind: str
) -> None:
    folder = tiny_target("llama", tmp_path / "target")
    other = tiny_target("llama", tmp_path / "drafter", layers=2)
    target = open_reader(load_model(folder, dtype=torch.float64, device="cuda:0"), "eager")
    written = []
    for device in ("cuda:0", place):
        reader = open_reader(load_model(other, dtype=torch.float64, device=device), kind)  # type: ignore[arg-type]
        drafter = ModelDrafter(reader, device=target.device)
        written.append([speculative(target, drafter, PROMPTS, 3, way, LIMITS, noise(target.device)) for way in WAYS])
    assert written[0] == written[1]


@needs_two
def test_tensor_parallel_on_two_gpus_writes_what_one_writes(tiny_target: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_target("llama", tmp_path / "target")
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys, torch\n"
        "from factory.decoding.decoder import Limits, autoregressive\n"
        "from factory.decoding.leading import LeadingReader, follow\n"
        "from factory.decoding.readers import open_reader\n"
        "from factory.decoding.sampling import Noise, Sampling\n"
        "from factory.models.loading import load_model\n"
        "from factory.models.placement import Placement\n"
        "from factory.processes import launched\n"
        "together = launched()\n"
        "model = load_model(sys.argv[1], dtype=torch.float64, placement=Placement(processes=together.world))\n"
        "reader = open_reader(model)\n"
        "if together.first:\n"
        "    reader, limits = LeadingReader(reader, model, together.told), Limits(20, frozenset([2]), 160)\n"
        "    prompts, noise = [[1, 5, 9, 11], [1, 7], [3]], Noise(0, range(3), reader.device)\n"
        "    outputs = autoregressive(reader, prompts, Sampling(), limits, noise)\n"
        "    together.told(None)\n"
        "    print(json.dumps([one.tokens for one in outputs]))\n"
        "else:\n"
        "    follow(reader, model, together.told)\n"
        "together.end()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    made = subprocess.run(
        [*command, str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert made.returncode == 0, made.stderr
    whole = open_reader(load_model(folder, dtype=torch.float64, device="cuda:0"), "eager")
    expected = autoregressive(whole, PROMPTS, Sampling(), LIMITS, noise(whole.device))
    assert json.loads(made.stdout.splitlines()[-1]) == [one.tokens for one in expected]
