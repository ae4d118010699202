"""Distillation against TRL's GKD trainer: trained answer tokens a second over whole optimizer steps.

    pip install trl==1.16.0                                   # beside this repository, in one environment
    python docs/benchmarks/distillation_peer.py               # writes distillation-peer-cpu.json
    python docs/benchmarks/distillation_peer.py --quick       # shows that everything runs, in a minute
    python docs/benchmarks/distillation_peer.py --table docs/benchmarks/distillation-peer-cpu.json

Same models, text, batches, order of rows, loss (KL(target || student), a mean over answer tokens), optimizer, precision
and threads. Blocks of steps take turns, each arm's place in the turn moving on by one with every repeat; ratios are of
totals with a 95 % interval over repeats. Model loading, preparation of the rows and the first steps are not timed.
Before that both trainers take the same few steps, and their losses are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from arguments import earlier_run, print_run, writable
from decoder_table import figure, verdict, words_of
from distillation_arms import BIG, SHIPPED, Block, Case, Settings, big, shipped, train, write

from eval.verdict.stats import speedup
from factory import provenance
from factory.files.atomic import write_atomically

KEPT = Path(__file__).with_name("distillation-peer-cpu.json")
TRL = "1.16.0"
FULL = {
    SHIPPED: Settings(steps=24, warm=4, layers=1),
    BIG: Settings(steps=6, warm=1, layers=2, remembered=False),
}
QUICK = {
    SHIPPED: Settings(steps=5, warm=1, layers=1, repeats=2, new_tokens=32),
    BIG: Settings(steps=3, warm=1, layers=1, repeats=2, batch=2, new_tokens=16, hidden=128, depth=3, ffn=256),
}
PEER, ONLINE, CACHED, REMEMBERED = "TRL GKD, lmbda = 0", "online", "from the cache", "online, hidden states remembered"
GOALS = {ONLINE: 1.1, CACHED: 2.0}
CHECKED = 3  # steps whose losses are compared


def check(case: Case, peer: Callable[..., Block], cache: Path) -> dict[str, Any]:
    """The losses of the same steps by each trainer; that of the first one is on the very same weights."""
    steps = min(CHECKED, case.settings.steps)
    theirs, ours = peer(case, steps=steps).losses, train(case, steps=steps).losses
    cached = train(case, cache=cache, steps=steps).losses
    rounding = 1e-2 if case.settings.half else 1e-4
    largest = max(abs(a - b) / abs(a) for a, b in zip(theirs, ours, strict=True))
    return {
        "what": "KL(target || student) in nats, mean over the batch's answer tokens, of each step from the first one",
        "trl": theirs,
        "online": ours,
        "cache, tokens beyond the top k as one outcome": cached,
        "first_step_relative_difference": abs(theirs[0] - ours[0]) / abs(theirs[0]),
        "largest_relative_difference": largest,
        "same": abs(theirs[0] - ours[0]) <= rounding * abs(theirs[0]) and largest <= 100 * rounding,
    }


def measured(case: Case, peer: Callable[..., Block], folder: Path) -> dict[str, Any]:
    """All arms of one pair in turn."""
    settings = case.settings
    written_s, cache_facts = write(case, folder / "checked")
    checked = check(case, peer, folder / "checked")
    print(f"{case.name}: {json.dumps(checked)}", file=sys.stderr, flush=True)
    turns: list[dict[str, Any]] = []
    for repeat in range(settings.repeats):
        cache = folder / f"repeat-{repeat}"
        written_s, _ = write(case, cache)
        arms: list[tuple[str, Callable[[], Block]]] = [
            (PEER, lambda: peer(case)),
            (ONLINE, lambda: train(case)),
            (CACHED, lambda cache=cache: train(case, cache=cache)),  # type: ignore[misc]
        ]
        if settings.remembered:
            arms.append((REMEMBERED, lambda: train(case, epochs=2)))
        moved = repeat % len(arms)
        blocks = {name: block().facts() for name, block in arms[moved:] + arms[:moved]}
        turns.append({"written_s": written_s, "blocks": blocks})
        print(f"{case.name} {repeat + 1}/{settings.repeats}: {json.dumps(turns[-1])}", file=sys.stderr, flush=True)
    return {**case.facts(), "check": checked, "cache": cache_facts, "turns": turns, "rows": rows_of(case, turns)}


def rows_of(case: Case, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ratios of tokens a second to TRL's, and what is counted in each."""
    settings, answers = case.settings, int(case.text.answer_mask.sum())

    def spread(turn: dict[str, Any], block: dict[str, Any], over: float) -> float:
        """Of the writing, what falls to the tokens of a block."""
        return float(turn["written_s"]) / over * block["tokens"] / answers

    def seconds(turn: dict[str, Any], name: str, how: str) -> float:
        block = turn["blocks"][name]
        added = {
            "as it is": 0.0,
            "writing": spread(turn, block, settings.candidates),
            "writing, epochs": spread(turn, block, settings.candidates * settings.epochs),
            "reading": block["before_s"] / settings.epochs * block["tokens"] / answers,
        }
        return float(block["seconds"]) + added[how]

    counted = [
        (ONLINE, "as it is", "online, one epoch: nothing is remembered", True),
        (CACHED, "writing", f"from the cache, one epoch, 1/{settings.candidates} of its writing added", True),
        (CACHED, "writing, epochs", f"the same with {settings.epochs} epochs to a cache", False),
        (CACHED, "as it is", "from the cache, its writing not counted", False),
        (REMEMBERED, "as it is", "online, later epochs, hidden states remembered", False),
        (REMEMBERED, "reading", f"online, {settings.epochs} epochs, the target's one reading added", False),
    ]
    rows = []
    for name, how, what, aimed in counted:
        if name not in turns[0]["blocks"]:
            continue
        totals = []
        for turn in turns:
            theirs, block = turn["blocks"][PEER], turn["blocks"][name]
            totals.append((theirs["seconds"], theirs["tokens"], seconds(turn, name, how), block["tokens"]))
        found = speedup(totals)
        sums = [sum(column) for column in zip(*totals, strict=True)]
        rows.append(
            {
                "what": what,
                "model": case.name,
                "goal": {"relation": ">=", "value": GOALS[name]} if aimed else None,
                "value": found.value,
                "low": found.low,
                "high": found.high,
                "tokens_per_s": sums[3] / sums[2],
                "trl_tokens_per_s": sums[1] / sums[0],
            }
        )
    return rows


def table(kept: dict[str, Any]) -> str:
    """Markdown."""
    lines = []
    if kept["quick"]:
        lines += ["**Quick settings: the figures show that everything runs, and nothing else.**", ""]
    lines += ["| what | model | goal | times TRL, 95 % interval | | tokens/s | TRL |", "| --- " * 7 + "|"]
    for case in kept["cases"]:
        for row in case["rows"]:
            lines.append(
                f"| {row['what']} | {row['model']} | {words_of(row['goal'])} | {figure(row)} "
                f"| {verdict(row) if row['goal'] else ''} | {row['tokens_per_s']:,.0f} "
                f"| {row['trl_tokens_per_s']:,.0f} |"
            )
    lines += ["", "| model | loss of the first step, TRL / ours / from the cache | largest difference later |"]
    lines.append("| --- " * 3 + "|")
    for case in kept["cases"]:
        first = case["check"]
        cached = first["cache, tokens beyond the top k as one outcome"][0]
        lines.append(
            f"| {case['model']} | {first['trl'][0]:.5f} / {first['online'][0]:.5f} / {cached:.5f} "
            f"| {first['largest_relative_difference']:.1e} |"
        )
    hardware, versions = kept["hardware"], kept["versions"]
    lines += [
        "",
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads; {kept['precision']}; torch "
        f"{versions['torch']}, transformers {versions['transformers']}, trl {versions['trl']}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write, or print a table that was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; writes only with --to")
    parser.add_argument("--only", choices=(SHIPPED, BIG), help="this pair alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--steps", type=int, help="optimizer steps of a block")
    parser.add_argument("--half", action="store_true", help="both trainers in bfloat16; writes only with --to")
    parser.add_argument("--text", type=Path, help="keep what the shipped target writes here")
    parser.add_argument("--table", type=earlier_run, help="print the table of this JSON and measure nothing")
    parser.add_argument("--to", type=writable)
    arguments = parser.parse_args()
    if arguments.table is not None:
        print_run(parser, table, arguments.table)
        return
    try:
        import distillation_trl
    except ImportError as error:
        raise SystemExit(f"{error}; the peer is TRL: pip install trl=={TRL}") from None
    torch.set_num_threads(arguments.threads)
    to = arguments.to or (None if arguments.quick or arguments.only or arguments.half else KEPT)
    kept: dict[str, Any] = {
        "quick": arguments.quick,
        "precision": "bfloat16 over float32 weights" if arguments.half else "float32",
        "hardware": provenance.hardware("cpu"),
        "versions": provenance.versions()
        | {name: metadata.version(name) for name in ("trl", "accelerate", "datasets")},
        "git": provenance.git_sha(),
        "load_before": os.getloadavg()[0],
        "peer": "trl.experimental.gkd.GKDTrainer by trainer.train(); steps timed from one on_step_end to a later one",
        "cases": [],
    }
    changes = {name: value for name in ("repeats", "steps") if (value := getattr(arguments, name))}
    with TemporaryDirectory() as scratch:
        for name, settings in (QUICK if arguments.quick else FULL).items():
            if arguments.only not in (None, name):
                continue
            settings = replace(settings, half=arguments.half, **changes)
            folder = Path(scratch) / name
            made = shipped(settings, arguments.text or folder / "text") if name == SHIPPED else big(settings)
            rows = distillation_trl.dataset(made)

            def peer(case: Case, steps: int | None = None, rows: Any = rows) -> Block:
                return distillation_trl.train(case, rows, steps)

            kept["cases"].append(measured(made, peer, folder))
            if to is not None:
                write_atomically(to, json.dumps(kept, indent=1) + "\n")
    print(table(kept))


if __name__ == "__main__":
    main()
