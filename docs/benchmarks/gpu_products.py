"""The project's Triton kernels against cuBLAS, attention of torch, and a copy's speed: `cuda_kernels.py`, as a part."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from decoder_pairs import SkippedError
from decoder_passes import Row, row
from gpu_pairs import ROOT, SEVEN, Bench

from eval.verdict.stats import Interval
from factory.errors import FactoryError

SCRIPT = Path(__file__).with_name("cuda_kernels.py")


def products(bench: Bench) -> Iterator[Row]:
    """A step's products against the floor, by number of rows, then attention; all else is among the facts.

    In Triton's interpreter, where no time means anything, how far attention is off. Raises SkippedError.
    """
    if not SCRIPT.is_file():
        raise SkippedError(f"{SCRIPT.name} is not there")
    to = bench.work / "products.json"
    to.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--to", str(to)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    sys.stderr.write(done.stdout + done.stderr)
    said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    if not to.is_file():
        if bench.cuda or "Traceback" in done.stderr:
            raise FactoryError(f"{SCRIPT.name}: {said}")
        raise SkippedError(said)
    found: dict[str, Any] = json.loads(to.read_text(encoding="utf-8"))
    bench.facts["kernels"] = found
    for step in found["step"]:
        yield row(
            f"floor's time / all products of a step, {step['rows']} rows, the faster of our kernels",
            SEVEN,
            Interval(step["floor_ms"] / step["best_ms"], None, None),
            cublas=step["floor_ms"] / step["cublas_ms"],
            best_ms=step["best_ms"],
            cublas_ms=step["cublas_ms"],
        )
    for case in found["attention"]:
        ratio = case["sdpa_us"] / case["us"] if "us" in case else case["largest_difference"]
        what = (
            "torch's attention / ours" if "us" in case else "our attention in Triton's interpreter, largest difference"
        )
        sizes = ("batch", "kv", "group", "tokens", "used", "slots", "width")
        yield row(
            f"{what}, " + ", ".join(f"{size} {case[size]}" for size in sizes),
            SEVEN,
            Interval(ratio, None, None),
            **{name: value for name, value in case.items() if name not in sizes},
        )
    if done.returncode != 0:
        raise FactoryError(f"{SCRIPT.name}: a kernel was wrong or failed: {said}")
