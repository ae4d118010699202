"""One part of docs/benchmarks/gpu_check.py in a process of its own: its rows are on disk as soon as they are measured.

python docs/benchmarks/gpu_parts.py PART --to FILE.json      # as gpu_check.py starts it
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

BEGUN_S = time.monotonic()  # before torch is imported: a part's seconds are those of its process
SCHEMA = 1
FEW = 3  # names in one line; the JSON has all
# name -> (module beside this one, its function: a Bench to an iterator of rows)
MEASURES = {
    "environment": ("gpu_environment", "environment"),
    "gptq": ("gpu_environment", "gptq"),
    "tests": ("gpu_tests", "tests"),
    "steps": ("gpu_steps", "steps"),
    "rounds": ("gpu_rounds", "speculation"),
    "training": ("gpu_training", "training"),
    "enlarged": ("gpu_enlarged", "enlarged"),
    "gpt-fast": ("gpu_fast", "gpt_fast"),
    "products": ("gpu_products", "products"),
    "placement": ("gpu_placement", "placement"),
}


def apart() -> Any:
    """A stream for the rows; what anything else prints goes where errors go, and so into the log."""
    rows = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return rows


def measure(arguments: argparse.Namespace, shown: Any) -> dict[str, Any]:
    """Run the part; what is on disk after each row says how far it came."""
    from decoder_pairs import SkippedError
    from decoder_table import figure, verdict, words_of
    from gpu_pairs import Bench, first_line, peak_bytes

    from factory import provenance
    from factory.files.atomic import write_atomically

    bench = Bench(
        arguments.size,
        arguments.device,
        arguments.seconds,
        arguments.work,
        arguments.drafter,
        arguments.gpt_fast,
        begun_s=BEGUN_S,
    )
    hardware = provenance.hardware(bench.device)
    kept: dict[str, Any] = {
        "schema_version": SCHEMA,
        "part": arguments.part,
        "size": bench.size,
        "status": "running",
        "reason": None,
        "hardware": hardware,
        "versions": provenance.versions(),
        "git": provenance.git_sha(),
        "dtype": bench.dtype,
        "rows": [],
    }

    def keep(**more: Any) -> None:
        more |= {"facts": bench.facts, "left_out": bench.left_out, "seconds": time.monotonic() - BEGUN_S}
        kept.update(more, peak_memory_bytes=peak_bytes(bench.device))
        write_atomically(arguments.to, json.dumps(kept, indent=1, ensure_ascii=False, default=str) + "\n")

    keep()
    status, reason, last_s = "measured", None, time.monotonic()
    try:
        module, name = MEASURES[arguments.part]
        for row in getattr(importlib.import_module(module), name)(bench):
            now_s = time.monotonic()
            made = {"hardware": hardware.get("gpu") or hardware["cpu"], "dtype": bench.dtype, "enlarged": None}
            made |= {
                **row,
                "seconds": round(now_s - last_s, 2),
                "met": verdict(row) if row["goal"] and bench.full else None,
            }
            kept["rows"].append(made)
            last_s = now_s
            keep()
            goal = f"  {words_of(row['goal'])}: {made['met'] or 'not judged at this size'}" if row["goal"] else ""
            shown.write(f"   {made['seconds']:6.1f} s  {row['what']}: {figure(row)}{goal}\n")
    except SkippedError as why:
        status, reason = "skipped", str(why)
    except Exception as error:  # said in the JSON; the next part begins
        status, reason = "failed", first_line(error)
        traceback.print_exc()
    failures = [one for one in bench.left_out if one["status"] == "failed"]
    if status == "measured" and failures:
        reason = f"{len(failures)} failed, the first: {failures[0]['what']}: {failures[0]['reason']}"
        status = "failed"
    elif status == "measured" and bench.left_out:
        names = [one["what"] for one in bench.left_out]
        reason = f"without {', '.join(names[:FEW])}" + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
    keep(status=status, reason=reason)
    return kept


def main() -> None:
    """Exit code 0 whenever the JSON says how it went."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=sorted(MEASURES))
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--size", choices=("full", "small"), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is made")
    parser.add_argument("--drafter", type=Path, action="append", default=[])
    parser.add_argument("--gpt-fast", type=Path)
    measure(parser.parse_args(), apart())


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # a library's threads must not keep a finished part alive
