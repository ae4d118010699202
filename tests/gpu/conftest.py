"""Each test here runs on a CUDA device, and in the same words on the CPU, so that it is known to work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the test runs."""
    found: str = request.param
    return found


@pytest.fixture
def factory_on(device: str, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """`factory_on("build", ...)`: the command line in a process that finds that device, and no other."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **hidden}
        command = [sys.executable, "-m", "factory", *map(str, arguments)]
        return subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    """float32 products are float32's: no TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
