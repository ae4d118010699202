"""What docs/benchmarks/distillation_peer.py trains, and our side of it: two pairs, and `distill` in each of its ways.

A block is a training of its own, from the same untrained student, by the stage as a build calls it. A step lasts from
the end of the one before it to its own end: rows, teacher, student, clipping and optimizer are all in it.
"""

from __future__ import annotations

import copy
import gc
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from factory.anatomy.families import shape_from_config
from factory.data.blocks import TextBlocks, text_blocks
from factory.data.prompts import read_prompts
from factory.data.scribe import write_text
from factory.distillation.rows import Order
from factory.given import CacheSettings, Given
from factory.models.loading import context_length, load_model, load_tokenizer
from factory.stages import Distill
from factory.stages.drop_layers import DropLayers
from factory.surgery.carving import carve_module
from factory.teaching.teacher_cache import TeacherCache, write_cache

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "demo"
TARGET = DEMO / "target"
SHIPPED, BIG = "shipped target", "110M shape"
ENDLESS = 10**9  # steps between checkpoints: none is written, as none is by the peer


@dataclass(frozen=True)
class Settings:
    """How much of a pair is trained and timed."""

    steps: int  # optimizer steps of a block: one pass over the text
    warm: int  # the first of them, which are not timed
    layers: int  # of the student
    repeats: int = 5
    batch: int = 8
    new_tokens: int = 112
    half: bool = False  # the target in bfloat16, the student's products too over float32 weights; by both trainers
    remembered: bool = True  # also with the target's hidden states kept over epochs
    epochs: int = 5  # of that arm, by arithmetic: what one later epoch takes, and the reading once
    top_k: int = 48
    drawn: int = 16
    candidates: int = 8  # that one cache's writing is spread over
    lr: float = 1e-3
    seed: int = 0
    # Of the random target.
    hidden: int = 768
    depth: int = 12
    ffn: int = 2048
    vocabulary: int = 32000
    prompt_tokens: int = 16

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """A target, an untrained student of it, and the text that both trainers learn from."""

    name: str
    target: PreTrainedModel
    student: PreTrainedModel
    text: TextBlocks
    settings: Settings
    note: str

    def order(self, epoch: int = 0) -> list[list[int]]:
        """The rows of each step of an epoch, as the stage takes them."""
        order, settings = Order(len(self.text), self.settings.seed), self.settings
        return [order.batch(epoch * settings.steps + step, settings.batch) for step in range(settings.steps)]

    def answers(self, epoch: int = 0) -> list[int]:
        """Answer tokens that each of those steps learns from."""
        counts = self.text.answer_mask.sum(-1)
        return [int(counts[rows].sum()) for rows in self.order(epoch)]

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "model": self.name,
            "note": self.note,
            "target": asdict(shape_from_config(self.target.config.to_dict())),
            "target_parameters": self.target.num_parameters(),
            "student_parameters": self.student.num_parameters(),
            "attention": self.target.config._attn_implementation,
            "rows": len(self.text),
            "tokens": int(self.text.length.sum()),
            "answer_tokens": int(self.text.answer_mask.sum()),
            "longest_row": int(self.text.length.max()),
            "settings": self.settings.facts(),
        }


@dataclass(frozen=True)
class Block:
    """One training, timed."""

    seconds: float  # of the steps that count
    tokens: int  # answer tokens learned from in them
    losses: list[float]  # of every step
    before_s: float = 0.0  # what came before the first step and belongs to the arm: the target's reading

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {"seconds": self.seconds, "tokens": self.tokens, "before_s": self.before_s}


def first_layers(target: PreTrainedModel, count: int) -> PreTrainedModel:
    """The target's first layers with its embedding, last norm and head."""
    stage = DropLayers(kind="drop_layers", keep=list(range(count)))
    return carve_module(target, stage.decide(shape_from_config(target.config.to_dict()), {}))


def shipped(settings: Settings, folder: Path) -> Case:
    """The shipped target and text that it wrote; rows that it had written before are not written again.

    Raises FactoryError where the rows that are left do not fill one step.
    """
    target, tokenizer = load_model(TARGET, dtype=torch.float32), load_tokenizer(TARGET)
    room = context_length(target) - settings.new_tokens
    prompts = [tokenizer(text)["input_ids"] for text in read_prompts(DEMO / "prompts.jsonl")]
    prompts = [ids for ids in prompts if 0 < len(ids) <= room]
    wanted = settings.steps * settings.batch
    written = write_text(
        lambda: target,
        prompts,
        samples=wanted + wanted // 8,  # a few are dropped, since they say what another says
        temperature=1.0,
        max_new_tokens=settings.new_tokens,
        batch=128,
        seed=settings.seed,
        folder=folder,
        progress=lambda done, total, what: None,
    )
    if len(written.rows) < wanted:
        raise SystemExit(f"the target wrote only {len(written.rows)} different rows; take fewer --steps")
    note = "Trained weights; the target's own text, its prompts masked."
    return case_of(SHIPPED, target, written.rows.rows(range(wanted)), settings, note)


def big(settings: Settings) -> Case:
    """A Llama with random weights, seeded, and rows of random tokens: only costs are meant."""
    config = LlamaConfig(
        hidden_size=settings.hidden,
        intermediate_size=settings.ffn,
        num_hidden_layers=settings.depth,
        num_attention_heads=max(1, settings.hidden // 64),
        num_key_value_heads=max(1, settings.hidden // 64),
        vocab_size=settings.vocabulary,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        target = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (settings.steps * settings.batch, settings.prompt_tokens + settings.new_tokens)
    ids = torch.randint(3, settings.vocabulary, shape, generator=generator).tolist()
    text = text_blocks([(row, settings.prompt_tokens) for row in ids])
    note = "Random weights and random tokens, all rows equally long: nothing but costs is meant."
    return case_of(BIG, target, text, settings, note)


def case_of(name: str, target: PreTrainedModel, text: TextBlocks, settings: Settings, note: str) -> Case:
    """The pair with a student in float32."""
    student = first_layers(target, settings.layers)
    return Case(name, target.bfloat16() if settings.half else target, student, text, settings, note)


def write(case: Case, folder: Path) -> tuple[float, dict[str, Any]]:
    """Seconds that the teacher cache of the whole text takes to be written, and its facts."""
    gc.collect()
    settings, key = case.settings, {"target": case.name, "text": "benchmark", "dtype": str(case.target.dtype)}
    kept = CacheSettings(1.0, settings.top_k, settings.drawn)
    begun_s = time.perf_counter()
    write_cache(case.target, case.text, kept, folder=folder, key=key, progress=lambda done, total, what: None)
    return time.perf_counter() - begun_s, TeacherCache.open(folder).facts


def train(case: Case, *, cache: Path | None = None, epochs: int = 1, steps: int | None = None) -> Block:
    """A block of ours: online, or from `cache`; with two epochs the later one counts, and nothing else.

    `steps` cuts the first epoch short, for a look at its losses.
    """
    gc.collect()
    settings, student = case.settings, copy.deepcopy(case.student)
    total = steps or settings.steps * epochs
    stage = Distill(
        kind="distill",
        teacher="cache" if cache else "online",
        epochs=total / settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        warmup=0.0,
        final_lr=1.0,  # a constant rate, as the peer is given
        checkpoint_every=ENDLESS,
        keep="last",
    )
    ends, read = [], []

    def progress(_done: int, _total: int, what: str) -> None:
        (ends if what.startswith("distilling") else read).append(time.perf_counter())

    with TemporaryDirectory() as folder:
        given = Given(
            *(lambda: case.target, case.text, None, settings.seed, Path(folder), progress),
            cache=cache,
            half=settings.half,
            memory={} if epochs > 1 and cache is None else None,
        )
        begun_s = time.perf_counter()
        facts = stage.apply(student, given)
    first = settings.steps if epochs > 1 else min(settings.warm, total - 1)
    assert len(ends) == total == facts["steps"]
    tokens = [count for epoch in range(epochs) for count in case.answers(epoch)][first:total]
    return Block(ends[-1] - ends[first - 1], sum(tokens), facts["losses"], read[-1] - begun_s if read else 0.0)
