"""The teacher cache against full logits: its size, and the overlap read from it.

    factory build recipes/demo/quick.yaml --out artifacts/demo
    python docs/benchmarks/teacher_cache.py --drafter artifacts/demo/quick     # writes teacher-cache-cpu.json
    python docs/benchmarks/teacher_cache.py --target FOLDER --drafter FOLDER --prompts FILE --to FILE
    python docs/benchmarks/teacher_cache.py --quick                            # shows that everything runs
    python docs/benchmarks/teacher_cache.py --table docs/benchmarks/teacher-cache-cpu.json

Size: caches really written for random models of three vocabularies, over what float16 logits of every position would
take. Overlap: sum_v min(p, q) of target and drafter on text that the target wrote, from full logits and from caches of
several sizes, each with all tokens the likeliest ones and with a quarter of them drawn from the others. What a drafter
trained from a cache loses is in distillation.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from arguments import earlier_run, print_run, writable
from decoder_table import verdict, words_of
from distillation_arms import TARGET
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from eval.suites import load_suite
from factory import provenance
from factory.data.blocks import TextBlocks, text_blocks
from factory.data.prompts import read_prompts
from factory.data.scribe import write_text
from factory.distillation.judge import Judge
from factory.distillation.student import Student
from factory.files.atomic import write_atomically
from factory.given import CacheSettings
from factory.limits import JUDGED_ROWS
from factory.models.loading import context_length, load_model, load_tokenizer
from factory.teaching.teacher import CachedTeacher, OnlineTeacher, Teacher
from factory.teaching.teacher_cache import TeacherCache, write_cache

KEPT = Path(__file__).with_name("teacher-cache-cpu.json")
SIZE_GOAL, ALPHA_GOAL = 0.01, 0.005


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    vocabularies: tuple[int, ...] = (32_000, 50_257, 128_256)
    size_ks: tuple[int, ...] = (16, 32, 64, 128)
    size_rows: int = 8
    size_tokens: int = 129  # of which the first is the prompt
    ks: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    judged_rows: int = JUDGED_ROWS
    new_tokens: int = 112


QUICK = Settings((1_000, 2_000), (16,), 2, 9, (16, 64), 4, 8)


def silent(_done: int, _total: int, _what: str) -> None:
    """Progress that nobody looks at."""


def written(target: PreTrainedModel, text: TextBlocks, kept: int, drawn: int, folder: Path) -> TeacherCache:
    """A cache, written and opened."""
    key = {"target": "benchmark", "text": f"{len(text)} rows", "dtype": str(target.dtype)}
    write_cache(target, text, CacheSettings(1.0, kept - drawn, drawn), folder=folder, key=key, progress=silent)
    return TeacherCache.open(folder)


def sizes(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """Bytes of a position on disk, and over 2 V bytes."""
    found = []
    for vocabulary in settings.vocabularies:
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 1}
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=256, **shape)
        target = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
        ids = torch.randint(vocabulary, (settings.size_rows, settings.size_tokens)).tolist()
        text = text_blocks([(row, 1) for row in ids])
        for top_k in settings.size_ks:
            begun_s = time.perf_counter()
            facts = written(target, text, top_k, top_k // 4, folder / f"{vocabulary}-{top_k}").facts
            kept = {name: facts[name] for name in ("positions", "bytes", "bytes_per_position")}
            share = facts["share_of_full_float16"]
            seconds = time.perf_counter() - begun_s
            found.append({"vocabulary": vocabulary, "top_k": top_k, **kept, "share": share, "seconds": seconds})
    return found


def text_of(target: PreTrainedModel, prompts: Sequence[Sequence[int]], rows: int, settings: Settings) -> TextBlocks:
    """Rows that the target writes at temperature 1."""
    with TemporaryDirectory() as folder:
        made = write_text(
            lambda: target,
            prompts,
            samples=rows,
            temperature=1.0,
            max_new_tokens=settings.new_tokens,
            batch=128,
            seed=0,
            folder=Path(folder),
            progress=silent,
        )
    return made.rows


def judged(drafter: PreTrainedModel, text: TextBlocks, teacher: Teacher) -> dict[str, Any]:
    """Mean forward KL and overlap by the stage's own judge."""
    found = Judge(text, teacher, 8, drafter.device)(Student(drafter))
    assert found is not None
    return found


def full(target: PreTrainedModel, text: TextBlocks) -> OnlineTeacher:
    """Full logits of the target."""
    return OnlineTeacher(target, text, 1.0, progress=silent)


def overlaps(
    target: PreTrainedModel, drafter: PreTrainedModel, text: TextBlocks, settings: Settings, folder: Path
) -> dict[str, Any]:
    """Overlap from full logits, and from a cache of each k."""
    exact = judged(drafter, text, full(target, text))
    rows = []
    for kept, drawn in [(count, part) for count in settings.ks for part in (0, count // 4)]:
        cache = written(target, text, kept, drawn, folder / f"{kept}-{drawn}")
        coarse, facts = judged(drafter, text, CachedTeacher(cache, text, drafter.device)), cache.facts
        names = ("bytes_per_position", "share_of_full_float16", "mean_tail", "mean_rounding", "alpha_bound")
        over = coarse["overlap"] - exact["overlap"]
        told = {name: facts[name] for name in names}
        rows.append({"kept": kept, "drawn": drawn, **coarse, "overstated": over, **told})
        rows[-1]["within_bound"] = abs(over) <= facts["alpha_bound"] + 1e-6
    return {"vocabulary": target.config.vocab_size, "full": exact, "caches": rows}


def table(kept: dict[str, Any]) -> str:
    """Markdown."""
    lines = []
    if kept["sizes"]:
        lines += ["| vocabulary | tokens kept | bytes a position | over float16 logits | goal | |", "| --- " * 6 + "|"]
    goal = {"relation": "<=", "value": SIZE_GOAL}
    for row in kept["sizes"]:
        said = verdict({"goal": goal, "value": row["share"], "low": row["share"], "high": row["share"]})
        lines.append(
            f"| {row['vocabulary']:,} | {row['top_k']} | {row['bytes_per_position']:,.0f} | 1/{1 / row['share']:,.0f} "
            f"| {words_of(goal)} | {said} |"
        )
    measured = kept["overlap"]
    if measured:
        exact = measured["full"]["overlap"]
        lines += ["", f"Overlap at V = {measured['vocabulary']:,}; from full logits {exact:.4f}.", ""]
        lines += [
            "| tokens kept | of them drawn | from the cache | overstated, points | bound, points | bytes a position | |"
        ]
        lines.append("| --- " * 7 + "|")
        for row in measured["caches"]:
            near = "within" if abs(row["overstated"]) <= ALPHA_GOAL else "beyond"
            lines.append(
                f"| {row['kept']} | {row['drawn']} | {row['overlap']:.4f} | {100 * row['overstated']:.3f} "
                f"| {100 * row['alpha_bound']:.2f} | {row['bytes_per_position']:,.0f} | {near} 0.5 points |"
            )
    hardware, versions = kept["hardware"], kept["versions"]
    lines += ["", f"{hardware['cpu']}, {hardware['threads']} threads; float32; torch {versions['torch']}."]
    return "\n".join(lines)


def drafter_in(folder: Path) -> PreTrainedModel:
    """Of an artifact, or of a model folder."""
    inner = folder / "model"
    return load_model(inner if inner.is_dir() else folder, dtype=torch.float32)


def encoded(texts: Sequence[str], folder: Path, room: int) -> list[list[int]]:
    """Prompts in the target's tokens that leave room for what is written."""
    tokenizer = load_tokenizer(folder)
    return [ids for ids in (tokenizer(text)["input_ids"] for text in texts) if 0 < len(ids) <= room]


def main() -> None:
    """Measure and write, or print tables that were measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", type=Path, default=TARGET)
    parser.add_argument("--drafter", type=Path, help="an artifact or a model folder; without it no overlap by k")
    parser.add_argument("--prompts", type=Path, help="what the judged text continues; without it the suite `code`")
    parser.add_argument("--no-sizes", action="store_true")
    parser.add_argument("--quick", action="store_true", help="small sizes; writes only with --to")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", type=earlier_run, help="print the tables of this JSON and measure nothing")
    parser.add_argument("--to", type=writable)
    arguments = parser.parse_args()
    if arguments.table is not None:
        print_run(parser, table, arguments.table)
        return
    torch.set_num_threads(arguments.threads)
    settings = QUICK if arguments.quick else Settings()
    kept: dict[str, Any] = {
        "quick": arguments.quick,
        "settings": asdict(settings),
        "hardware": provenance.hardware("cpu"),
        "versions": provenance.versions(),
        "git": provenance.git_sha(),
        "sizes": [],
        "overlap": None,
    }
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if not arguments.no_sizes:
            kept["sizes"] = sizes(settings, folder)
        if arguments.drafter:
            target = load_model(arguments.target, dtype=torch.float32)
            room = context_length(target) - settings.new_tokens
            texts = read_prompts(arguments.prompts) if arguments.prompts else load_suite("code").prompts
            held_out = text_of(target, encoded(texts, arguments.target, room), settings.judged_rows, settings)
            kept["overlap"] = overlaps(target, drafter_in(arguments.drafter), held_out, settings, folder)
    to = arguments.to or (None if arguments.quick else KEPT)
    if to is not None:
        write_atomically(to, json.dumps(kept, indent=1) + "\n")
    print(table(kept))


if __name__ == "__main__":
    main()
