"""What each choice in a distillation brings in acceptance: drafters of the shipped target, one choice changed each.

    python docs/benchmarks/distillation.py text
    python docs/benchmarks/distillation.py run --share 0/2 & python docs/benchmarks/distillation.py run --share 1/2
    python docs/benchmarks/distillation.py table     # writes docs/benchmarks/distillation-cpu.json, prints the tables

Every run distils a one- or two-layer drafter on the same number of texts with `factory.stages.Distill`, as a
build does, and keeps its last weights. It is judged by overlap, sum_v min(p, q), the probability that a guess is
accepted, on texts that the target wrote after prompts no run has seen. What is done is kept in `--folder`; a
second process takes another share of the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from distillation_data import Corpus, gather
from distillation_table import table
from transformers import PreTrainedModel

from factory.anatomy.shapes import Edit
from factory.data.blocks import TextBlocks
from factory.distillation.rows import lay
from factory.distillation.student import answer_states
from factory.given import Given
from factory.models import loading as models
from factory.stages import Distill, Fresh
from factory.surgery.carving import carve_module
from factory.teaching.teacher import Memory, OnlineTeacher
from factory.teaching.teacher_cache import write_cache
from factory.tensors.divergences import forward_kl, overlap

SEEDS = (0, 1, 2)
BASE = {"kind": "distill", "epochs": 3, "lr": 3.0e-3, "batch": 8, "keep": "last"}


@dataclass(frozen=True)
class Arm:
    """One way to distil. `against` is the arm that differs from it in one choice."""

    name: str
    against: str | None
    fields: dict[str, Any] = field(default_factory=dict)
    layers: int = 1
    fresh: bool = False
    corpus: bool = False  # text of the target's own training files, not written by it
    rounds: bool = False  # a third of the training with five layers first, then down to the first of them


def _loss(name: str, **settings: Any) -> Arm:
    return Arm(name, "forward_kl", {"loss": [{"kind": name, **settings}]})


ARMS = (
    Arm("forward_kl", None),
    _loss("lk_hybrid"),
    _loss("negative_log_acceptance"),
    _loss("tvd_plus_plus"),
    _loss("tv"),
    _loss("jsd"),
    _loss("reverse_kl"),
    _loss("cross_entropy"),
    Arm("forward_kl, then tv", "forward_kl", {
        "loss": [
            {"kind": "forward_kl", "weight": [[0.3, 1.0], [0.7, 0.0]]},
            {"kind": "tv", "weight": [[0.3, 0.0], [0.7, 4.0]]},
        ]
    }),
    Arm("corpus text", "forward_kl", corpus=True),
    Arm("corpus text, cross_entropy", "cross_entropy", {"loss": "cross_entropy"}, corpus=True),
    Arm("on-policy late, from anywhere", "forward_kl", {
        "on_policy": {"share": [[0.5, 0.0], [0.6, 0.5]], "begin": "anywhere", "new_tokens": 8, "decay": 0.8}
    }),
    Arm("on-policy late, from the prompt", "forward_kl", {
        "on_policy": {"share": [[0.5, 0.0], [0.6, 0.5]], "begin": "prompt", "new_tokens": 112}
    }),
    Arm("teacher cache, top 48 and 16 drawn", "forward_kl", {"teacher": "cache", "top_k": 48, "drawn": 16}),
    Arm("teacher cache, top 64", "forward_kl", {"teacher": "cache", "top_k": 64, "drawn": 0}),
    Arm("teacher cache, top 16", "forward_kl", {"teacher": "cache", "top_k": 16, "drawn": 0}),
    Arm("lora of rank 16", "forward_kl", {"lora": 16}),
    Arm("frozen embedding and head", "forward_kl", {"freeze": ["embedding", "head"]}),
    Arm("muon", "forward_kl", {"optimizer": "muon"}),
    Arm("ema", "forward_kl", {"ema": 0.995}),
    Arm("selection of half of the tokens", "forward_kl", {"select": {"keep": 0.5, "reference_epochs": 1.0}}),
    Arm("in two rounds, 20 to 5 to 1 layers", "forward_kl", rounds=True),
    Arm("fresh, 1 layer", "forward_kl", fresh=True),
    Arm("2 layers", None, layers=2),
    Arm("fresh, 2 layers", "2 layers", layers=2, fresh=True),
    Arm("2 layers, lk_hybrid", "2 layers", {"loss": "lk_hybrid"}, layers=2),
)  # fmt: skip


def run(arm: Arm, seed: int, corpus: Corpus, target: PreTrainedModel, memory: dict[bool, Memory]) -> dict[str, Any]:
    """Distil once, judge, return what is kept of it."""
    drafter = carve_module(target, Edit(keep_layers=tuple(range(5 if arm.rounds else arm.layers))))
    stage = Distill.model_validate_json(json.dumps({**BASE, **arm.fields}))
    text = corpus.given if arm.corpus else corpus.written
    with tempfile.TemporaryDirectory() as folder:
        place, cache = Path(folder), None
        if stage.cached is not None:
            settings = stage.cached
            cache = corpus.folder / f"cache-{stage.top_k}-{stage.drawn}"
            write_cache(target, corpus.whole, settings, folder=cache, key={"text": "written"}, progress=_silent)
        given = Given(lambda: target, text, None, seed, place, _silent, cache, memory=memory[arm.corpus])
        if arm.fresh:
            Fresh(kind="fresh").apply(drafter, given)
        began_s = time.monotonic()
        if arm.rounds:
            stage.model_copy(update={"epochs": stage.epochs / 3}).apply(drafter, given)
            (place / "checkpoint.pt").unlink()
            drafter = carve_module(drafter, Edit(keep_layers=(0,)))
            stage = stage.model_copy(update={"epochs": stage.epochs * 2 / 3})
        facts = stage.apply(drafter, given)
        seconds = time.monotonic() - began_s
    kept = ("steps", "trained_tokens", "losses", "teacher_cache")
    return {
        "arm": arm.name,
        "against": arm.against,
        "seed": seed,
        "stage": stage.model_dump(mode="json", exclude_defaults=True),
        "text": "corpus" if arm.corpus else "target",
        "fresh": arm.fresh,
        "layers": arm.layers,
        "seconds": round(seconds, 1),
        **{key: facts[key] for key in kept if key in facts and key != "losses"},
        "rows": judged(drafter, target, corpus.held_out),
    }


@torch.no_grad()
def judged(drafter: PreTrainedModel, target: PreTrainedModel, rows: TextBlocks) -> list[list[float]]:
    """For each held-out row: answer tokens, and sums over them of overlap, agreement of the likeliest token, and KL."""
    found, head = [], drafter.get_output_embeddings()
    teacher = OnlineTeacher(target, rows, 1.0, progress=_silent)
    for row in range(len(rows)):
        laid = lay(rows.rows([row]))
        log_q = head(answer_states(drafter, laid)).log_softmax(-1)
        log_p = teacher.predictions([row]).outcomes(0, len(log_q)).log_p
        same = (log_p.argmax(-1) == log_q.argmax(-1)).sum()
        sums = (overlap(log_p, log_q).sum(), same, forward_kl(log_p, log_q)[0].sum())
        found.append([len(log_q), *(round(float(value), 5) for value in sums)])
    return found


def _silent(_done: int, _total: int, _what: str) -> None:
    pass


def main() -> None:
    """Run a share of the arms, or print what they found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["text", "run", "table"])
    parser.add_argument("--folder", type=Path, default=Path("artifacts/distillation"))
    parser.add_argument("--share", default="0/1", help="i/n: every n-th run, from the i-th on")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--only", nargs="*", help="arms by name")
    arguments = parser.parse_args()
    if arguments.what == "table":
        table(arguments.folder, Path(__file__).with_name("distillation-cpu.json"))
        return
    if arguments.what == "run":
        torch.set_num_threads(1)
    share, of = map(int, arguments.share.split("/"))
    target = models.load_model(Path("recipes/demo/target"), dtype=torch.float32)
    corpus = gather(target, arguments.folder)
    if arguments.what == "text":
        return
    runs = [(arm, seed) for seed in arguments.seeds for arm in ARMS if not arguments.only or arm.name in arguments.only]
    memory: dict[bool, Memory] = {True: {}, False: {}}
    for arm, seed in runs[share::of]:
        path = arguments.folder / "runs" / f"{arm.name.replace(' ', '-').replace(',', '')}-{seed}.json"
        if path.is_file():
            continue
        found = run(arm, seed, corpus, target, memory)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(found))
        partial.replace(path)
        tokens, shared = (sum(row[place] for row in found["rows"]) for place in (0, 1))
        print(f"{arm.name}, seed {seed}: overlap {shared / tokens:.4f}, {found['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
