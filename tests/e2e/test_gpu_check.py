"""docs/benchmarks/gpu_check.py as `make gpu-check` runs it, at small size on a CPU. No figure is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs" / "benchmarks" / "gpu_check.py"

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


def test_parts_run_at_small_size_and_what_needs_more_is_skipped_by_name(tmp_path: Path) -> None:
    done = run("--only", "rounds", "gpt-fast", "placement", "--to", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = {
        part: json.loads((tmp_path / f"cuda-{part}.json").read_text()) for part in ("rounds", "gpt-fast", "placement")
    }
    assert {part: one["status"] for part, one in kept.items()} == {
        "rounds": "measured",
        "gpt-fast": "skipped",
        "placement": "skipped",
    }
    assert "GPT_FAST=DIR" in kept["gpt-fast"]["reason"] and "two GPUs" in kept["placement"]["reason"]
    rounds = kept["rounds"]
    assert rounds["size"] == "small" and rounds["left_out"] == [] and rounds["dtype"] == "float32"
    assert rounds["facts"]["reader"] == "graphed"  # rehearsed
    for row in rounds["rows"]:
        assert row["value"] > 0 and row["seconds"] >= 0 and row["met"] is None and row["hardware"]
    begins = {"a round / (4", "our speculative decode /", "modelled / measured"}
    assert all(any(row["what"].startswith(one) and row["goal"] for row in rounds["rows"]) for one in begins)

    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[-3:]] == [
        ["rounds", "measured"],
        ["gpt-fast", "skipped"],
        ["placement", "skipped"],
    ]
    shown = run("--table", str(tmp_path), cwd=tmp_path)
    assert shown.returncode == 0 and shown.stdout == (tmp_path / "cuda.md").read_text()
    assert "nothing else" in shown.stdout and "waits for a GPU; last run: skipped" in shown.stdout

    full = run("--size", "full", "--to", str(tmp_path / "full"), cwd=tmp_path)
    assert full.returncode == 2 and "needs a CUDA device" in full.stderr and not (tmp_path / "full").exists()
