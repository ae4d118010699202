"""The decoder's measured goals: readers and loops against `generate`, against their own parts, against the forecast.

    factory build recipes/demo/quick.yaml --out artifacts/demo
    python docs/benchmarks/decoder.py                                   # all; writes decoder-cpu.json here
    python docs/benchmarks/decoder.py --only verify round               # some of it; prints, and writes only with --to
    python docs/benchmarks/decoder.py --table docs/benchmarks/decoder-cpu.json

Two models: the shipped target with the drafters given, and a 110M shape (12 layers x 768, FFN 2048, V 32000) with
random weights, whose acceptance is arranged. Every figure is a ratio measured in one run, its two sides taken in turn,
with a 95 % interval: over prompts where outputs are timed, over repeats where single passes are. Parts do not depend
on one another: one that fails says so, and the next one begins. What was measured is on disk after each part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from arguments import earlier_run, print_run, writable
from decoder_contests import TEMPERATURES, Contests, against_peers, auto_k, batches, best_speedup, forecasts
from decoder_pairs import BIG, QUICK, SHIPPED, Pair, Settings, SkippedError, big, shipped
from decoder_passes import Row, draft_steps, rounds, verification
from decoder_table import table

from factory import provenance
from factory.decoding.sampling import Sampling
from factory.files.atomic import write_atomically
from factory.forecasting.gauge import measured
from factory.forecasting.profile import DeviceProfile

KEPT = Path(__file__).with_name("decoder-cpu.json")
DRAFTER = Path("artifacts/demo/quick")
SCHEMA = 1
Measure = Callable[["Bench"], Iterator[Row]]


class Bench:
    """What parts share, made when first asked for."""

    def __init__(self, drafters: list[Path], settings: Settings, compile_too: bool) -> None:
        self.settings, self.compile_too = settings, compile_too
        self._drafters = drafters

    @cached_property
    def shipped(self) -> Pair:
        """The shipped target; without drafters where none is built."""
        return shipped(self._drafters, self.settings)

    @cached_property
    def big(self) -> Pair:
        """The 110M shape."""
        return big(self.settings)

    @cached_property
    def contests(self) -> Contests:
        """Our arms on the shipped target."""
        return Contests(self.shipped)

    @cached_property
    def profile(self) -> DeviceProfile:
        """This machine, as `factory doctor` measures it."""
        return measured("cpu", str(provenance.hardware("cpu")["cpu"]))

    def models(self) -> list[dict[str, Any]]:
        """Facts of those that were asked for."""
        return [vars(self)[name].facts() for name in ("shipped", "big") if name in vars(self)]


def _rounds(bench: Bench) -> Iterator[Row]:
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        yield rounds(bench.big, bench.big.drafter(), sampling)


# In the order in which they run: name, model, what is measured.
PARTS: list[tuple[str, str, Measure]] = [
    ("verify", BIG, lambda bench: verification(bench.big)),
    ("round", BIG, _rounds),
    ("speedup", SHIPPED, lambda bench: best_speedup(bench.contests)),
    ("forecast", SHIPPED, lambda bench: forecasts(bench.contests, bench.profile)),
    ("auto", SHIPPED, lambda bench: auto_k(bench.contests, TEMPERATURES)),
    ("auto", BIG, lambda bench: auto_k(Contests(bench.big), TEMPERATURES[:1])),
    ("batch", SHIPPED, lambda bench: batches(bench.shipped)),
    ("batch", BIG, lambda bench: batches(bench.big)),
    ("step", SHIPPED, lambda bench: draft_steps(bench.shipped, bench.shipped.drafter(), bench.profile)),
    ("step", BIG, lambda bench: draft_steps(bench.big, bench.big.drafter(), bench.profile)),
    ("peers", SHIPPED, lambda bench: against_peers(bench.shipped, bench.profile, bench.compile_too)),
    ("peers", BIG, lambda bench: against_peers(bench.big, bench.profile, bench.compile_too)),
]
NAMES = list(dict.fromkeys(name for name, _, _ in PARTS))


def changed() -> bool:
    """Whether the checkout differs from its revision."""
    folder = Path(__file__).resolve().parent
    shown = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return bool(shown.stdout.strip())


def run(bench: Bench, only: list[str], name: str, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measure the parts named; `keep` is handed the JSON after each."""
    kept: dict[str, Any] = {
        "schema_version": SCHEMA,
        "settings_name": name,
        "settings": bench.settings.facts(),
        "hardware": provenance.hardware("cpu"),
        "versions": provenance.versions(),
        "git": provenance.git_sha(),
        "changed": changed(),
        "load_before": os.getloadavg()[0],
        "rows": [],
        "parts": [],
    }
    began_s = time.monotonic()
    for part, model, measure in PARTS:
        if part not in only:
            continue
        begun_s, status, reason = time.monotonic(), "measured", None
        try:
            for row in measure(bench):
                kept["rows"].append({"part": part, **row})
        except SkippedError as why:
            status, reason = "skipped", str(why)
        except Exception as error:  # one part's failure is not another's
            status, reason = "failed", f"{type(error).__name__}: {error}"
            traceback.print_exc()
        taken_s = time.monotonic() - begun_s
        kept["parts"].append({"part": part, "model": model, "status": status, "reason": reason, "seconds": taken_s})
        profile = bench.profile.record() if "profile" in vars(bench) else None
        kept |= {"models": bench.models(), "profile": profile, "seconds": time.monotonic() - began_s}
        keep(kept)
        print(
            f"{taken_s:6.1f} s  {part}, {model}: {status}{f', {reason}' if reason else ''}", file=sys.stderr, flush=True
        )
    return kept


def main() -> int:
    """Measure and print, or print what was measured. 1 where a part failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="PART", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--drafter", nargs="+", type=Path, help=f"artifacts of the shipped target; {DRAFTER} if there")
    parser.add_argument("--draft-layers", type=int, choices=(1, 2), default=1, help="that draft for the 110M shape")
    parser.add_argument("--quick", action="store_true", help="tiny settings: shows that it runs")
    parser.add_argument("--no-compile", action="store_true", help="leave out `generate` with a compiled static cache")
    parser.add_argument("--to", type=writable, help=f"the JSON; {KEPT.name} here where all is measured in full")
    parser.add_argument("--table", type=earlier_run, metavar="JSON", help="only print the table of an earlier run")
    arguments = parser.parse_args()
    if arguments.table is not None:
        print_run(parser, table, arguments.table)
        return 0
    base = QUICK if arguments.quick else Settings()
    settings = Settings(**{**base.facts(), "drafter_layers": arguments.draft_layers})
    name = "quick" if arguments.quick else "full"
    to = arguments.to or (None if arguments.quick or arguments.only else KEPT)

    def keep(kept: dict[str, Any]) -> None:
        if to is not None:
            write_atomically(to, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")

    missing = [str(folder) for folder in arguments.drafter or () if not (folder / "manifest.json").is_file()]
    if missing:
        parser.error(f"--drafter {', '.join(missing)}: no artifact there; `factory build` makes one")
    drafters = arguments.drafter or [folder for folder in (DRAFTER,) if folder.is_dir()]
    bench = Bench(drafters, settings, not arguments.no_compile)
    kept = run(bench, arguments.only or NAMES, name, keep)
    print(table(json.loads(json.dumps(kept))))
    return int(any(part["status"] == "failed" for part in kept["parts"]))


if __name__ == "__main__":
    sys.exit(main())
