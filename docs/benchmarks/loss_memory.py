"""Peak memory of the loss fused with the head against the naive form, at V = 128,256 and 2,048 positions.

    python docs/benchmarks/loss_memory.py                       # writes loss-memory-cpu.json; five minutes, 8 GB
    python docs/benchmarks/loss_memory.py --device cuda --precision bfloat16 --to loss-memory-cuda.json

The naive form holds both models' logits, both log-softmaxes, the divergence and its gradients over all positions. Each
form runs in processes of its own, one after the other in turn; a process makes one loss and its gradients, which is
what memory is read of, and then more that are timed. Memory is the process's peak (on CUDA: what torch allocated at
most) less what it held before, with weights and hidden states there. The head's gradient, which both must make, counts.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from arguments import earlier_run, print_run, writable
from torch.nn import functional as F

from factory import provenance
from factory.building.meter import metered
from factory.tensors.divergences import term
from factory.tensors.fused import CHUNK_BYTES, fused_loss
from factory.tensors.predictions import FullPredictions, TopPredictions

KEPT = Path(__file__).with_name("loss-memory-cpu.json")
GOAL = 0.25
VOCABULARY, POSITIONS, CHANNELS, TOP = 128_256, 2_048, 512, 64
FORMS = ("naive", "fused", "fused, mix of four", "fused, top 64")
MIX = (term("forward_kl"), term("jsd", 0.5), term("lk_hybrid", 0.5), term("cross_entropy", 0.1))


def loss_of(form: str, device: str, chunk_bytes: int, positions: int) -> Callable[[], torch.Tensor]:
    """A function that makes the loss with its graph, everything it starts from allocated."""
    torch.manual_seed(0)

    def drawn(*shape: int, spread: float = 1.0) -> torch.Tensor:
        return torch.empty(shape, device=device).normal_(std=spread)

    hidden, weight = drawn(positions, CHANNELS), drawn(VOCABULARY, CHANNELS, spread=0.05)
    teacher_hidden, teacher_weight = drawn(positions, CHANNELS), drawn(VOCABULARY, CHANNELS, spread=0.05)
    labels = torch.randint(VOCABULARY, (positions,), device=device)
    ids = torch.stack([torch.randperm(VOCABULARY, device=device)[:TOP] for _ in range(positions)])
    kept = drawn(positions, TOP + 1).log_softmax(-1)
    hidden.requires_grad_()
    weight.requires_grad_()

    def naive() -> torch.Tensor:
        with torch.no_grad():
            teacher_logits = F.linear(teacher_hidden, teacher_weight)
        log_p = F.log_softmax(teacher_logits.float(), -1)
        log_q = F.log_softmax(F.linear(hidden, weight).float(), -1)
        return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean()

    if form == "naive":
        return naive
    full = FullPredictions(teacher_hidden, lambda rows: F.linear(rows, teacher_weight))
    top = TopPredictions(ids, kept[:, :TOP].half(), kept[:, TOP].exp())
    mean = torch.full((positions,), 1 / positions, device=device)

    def fused() -> torch.Tensor:
        return fused_loss(
            hidden,
            weight,
            None,
            top if "top" in form else full,
            terms=MIX if "mix" in form else MIX[:1],
            labels=labels,
            position_weights=mean,
            chunk_bytes=chunk_bytes,
        ).loss

    return fused


def measured(form: str, device: str, precision: str, chunk_bytes: int, positions: int, repeats: int) -> dict[str, Any]:
    """One process's figures: bytes above what was held, the loss, seconds of each repeat."""
    make, seconds = loss_of(form, device, chunk_bytes, positions), []

    def step() -> float:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = make()
        loss.backward()
        return loss.item()

    with metered(device) as facts:
        value = step()
    held, peak = facts["was_held_bytes"], facts["peak_memory_bytes"]
    for _ in range(repeats):
        begun_s = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun_s)
    return {"held_bytes": held, "above_bytes": peak - held, "loss": value, "seconds": seconds}


def asked(form: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same from a process of its own."""
    settings = ("device", "precision", "chunk_bytes", "positions", "repeats")
    options = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in settings]
    run = subprocess.run([sys.executable, __file__, "--form", form, *options], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(run.stdout))


def table_of(facts: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| form | memory, GB | / naive | seconds | / naive |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {row['form']} | {row['above_bytes'] / 1e9:.2f} | {row['memory_ratio']:.3f} "
            f"| {row['seconds_median']:.2f} | {row['seconds_ratio']:.2f} |"
            for row in facts["forms"]
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    """All forms in turn, or one of them in this process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="of the products")
    parser.add_argument("--chunk-bytes", type=int, default=CHUNK_BYTES)
    parser.add_argument("--positions", type=int, default=POSITIONS)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each form")
    parser.add_argument("--repeats", type=int, default=1, help="timed losses in a process")
    parser.add_argument("--form", choices=FORMS, help="measure this one here and print it")
    parser.add_argument("--table", type=earlier_run, help="print the table of this JSON and measure nothing")
    parser.add_argument("--to", type=writable, default=KEPT)
    arguments = parser.parse_args()
    if arguments.table is not None:
        print_run(parser, table_of, arguments.table)
        return
    if arguments.form:
        settings = (arguments.chunk_bytes, arguments.positions, arguments.repeats)
        print(json.dumps(measured(arguments.form, arguments.device, arguments.precision, *settings)))
        return
    runs: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMS}
    for turn in range(arguments.rounds):
        for form in FORMS:
            runs[form].append(asked(form, arguments))
            print(f"{turn + 1}/{arguments.rounds} {form}: {json.dumps(runs[form][-1])}", file=sys.stderr, flush=True)
    memory = {form: max(run["above_bytes"] for run in each) for form, each in runs.items()}
    seconds = {form: statistics.median(s for run in each for s in run["seconds"]) for form, each in runs.items()}
    facts = {
        "vocabulary": VOCABULARY,
        "positions": arguments.positions,
        "channels": CHANNELS,
        "precision": arguments.precision,
        "chunk_bytes": arguments.chunk_bytes,
        "goal_memory_ratio": GOAL,
        "within": all(memory[form] <= GOAL * memory["naive"] for form in FORMS if form != "naive"),
        "forms": [
            {
                "form": form,
                "above_bytes": memory[form],
                "memory_ratio": memory[form] / memory["naive"],
                "seconds_median": seconds[form],
                "seconds_ratio": seconds[form] / seconds["naive"],
                "runs": runs[form],
            }
            for form in FORMS
        ],
        "hardware": provenance.hardware(arguments.device),
        "versions": provenance.versions(),
        "git": provenance.git_sha(),
    }
    arguments.to.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(table_of(facts))


if __name__ == "__main__":
    main()
