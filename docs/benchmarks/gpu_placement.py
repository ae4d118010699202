"""A target laid over two GPUs with its drafter on one of them: needs two, and is skipped by name elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch
from decoder_pairs import SkippedError
from decoder_passes import Row, row
from gpu_enlarged import drafter_of
from gpu_pairs import ROOT, Bench

from eval.verdict.stats import Interval
from factory.errors import FactoryError

PLAN = """\
suites: [code]
prompts: 4
confirm_prompts: 4
warmup_prompts: 1
max_new_tokens: 48
ks: [3]
temperatures: [0.0]
repeats: 1
confirm_repeats: 1
parity_prompts: 4
parity_new_tokens: 32
device_map: balanced
drafter_device: cuda:1
"""


def placement(bench: Bench) -> Iterator[Row]:
    """The evaluation of a drafter, its parity first, as docs/placement.md has it.

    Raises SkippedError with fewer than two GPUs, or without a drafter.
    """
    count = torch.cuda.device_count() if bench.cuda else 0
    if count < 2:
        raise SkippedError(f"needs two GPUs, and there {'is' if count == 1 else 'are'} {count or 'none'}")
    artifact, out = drafter_of(bench), bench.work / "placement"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    (out / "plan.yaml").write_text(PLAN, encoding="utf-8")
    command = [sys.executable, "-m", "factory", "eval", str(artifact.folder), "--out", str(out)]
    command += ["--plan", str(out / "plan.yaml")]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise FactoryError(f"factory eval ended with exit code {done.returncode}; its words are in the log")
    found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    bench.facts |= {"placement": found.get("placement"), "parity": found["parity"], "notes": found["notes"]}
    for one in found["rows"]:
        if one["drafter"] is not None and one["speedup"] is not None:
            yield row(
                f"speedup over two GPUs, {one['drafter']}, k = {one['k']}, {one['prompt_set']}",
                "shipped target",
                Interval(one["speedup"], one["speedup_low"], one["speedup_high"]),
                reader=one["baseline_reader"],
                drafter_reader=one["drafter_reader"],
                alpha=one["alpha"],
                lossless=str(one["matches_target"]),
            )
