"""What the parts of docs/benchmarks/gpu_check.py are measured on: sizes, the 7B shape with its drafters, its reader."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from decoder_pairs import (
    Pair,
    Settings,
    SkippedError,
    first_layers,
    its_first_layers,
    prompts_needed,
    random_llama,
    random_prompts,
    weaken,
)
from decoder_passes import Row, seconds
from transformers import PreTrainedModel

from eval.timing.bench import Stopwatch
from factory.data.blocks import TextBlocks
from factory.decoding.decoder import Limits
from factory.decoding.graphed import GraphedReader
from factory.decoding.reader import Reader
from factory.decoding.readers import ReaderKind, open_reader
from factory.decoding.wiring import why_not
from factory.errors import FactoryError
from factory.given import Given

SEVEN = "7B shape"
ROOT = Path(__file__).resolve().parents[2]
AGREEING = 0.75  # share of greedy tokens on which the arranged drafter is to agree at least
MOST_HALVINGS = 12
PROMPT = 32  # tokens of each: of one length, so that a peer's static cache is compiled for once
COPIED_BYTES = {"cuda": 4 << 30, "cpu": 256 << 20}
COPIES = 8

FULL = Settings(
    big_prompts=4,
    big_new_tokens=64,
    repeats=2,
    passes=30,
    batch=16,
    groups=2,
    batch_repeats=1,
    drafter_layers=2,
    hidden=4096,
    layers=32,
    ffn=11008,
    vocabulary=32000,
    head_dim=128,
    context=2048,
)
SMALL = replace(
    FULL,
    big_prompts=2,
    big_new_tokens=12,
    repeats=1,
    passes=4,
    hidden=256,
    layers=4,
    ffn=512,
    vocabulary=1000,
    head_dim=64,
    context=256,
)


@dataclass
class Bench:
    """What a part is handed: how large, where, for how long; and what it says beside its rows."""

    size: str  # full or small
    device: str
    seconds: float  # that the part may take
    work: Path  # a folder for what it makes
    drafters: list[Path] = field(default_factory=list)  # artifacts of the shipped target
    gpt_fast: Path | None = None  # a checkout
    facts: dict[str, Any] = field(default_factory=dict)
    left_out: list[dict[str, str]] = field(default_factory=list)  # what, status, reason
    begun_s: float = field(default_factory=time.monotonic)

    @property
    def full(self) -> bool:
        """Whether figures mean anything."""
        return self.size == "full"

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.startswith("cuda")

    @property
    def settings(self) -> Settings:
        """Of that size."""
        return FULL if self.full else SMALL

    @property
    def dtype(self) -> str:
        """bfloat16 on CUDA; float32 on a CPU, where small logits would tie in 16 bits."""
        return "bfloat16" if self.cuda else "float32"

    @property
    def left_s(self) -> float:
        """Seconds that are left of the part's."""
        return self.seconds - (time.monotonic() - self.begun_s)


# (what, the least seconds that it takes, how)
Item = tuple[str, float, Callable[[], Iterator[Row]]]


def in_order(bench: Bench, items: Sequence[Item]) -> Iterator[Row]:
    """The rows of all items. One that fails, or for which no time is left, is named and costs no other."""
    for what, least_s, measure in items:
        if bench.left_s < least_s:
            reason = f"{bench.left_s:.0f} s are left, and it takes {least_s:.0f} or more"
            bench.left_out.append({"what": what, "status": "skipped", "reason": reason})
            continue
        try:
            yield from measure()
        except SkippedError as why:
            bench.left_out.append({"what": what, "status": "skipped", "reason": str(why)})
        except Exception as error:  # whatever a kernel or a compiler says
            bench.left_out.append({"what": what, "status": "failed", "reason": first_line(error)})
            traceback.print_exc(file=sys.stderr)
            if bench.cuda:
                with contextlib.suppress(Exception):  # after some errors the device answers nothing but them
                    torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """Its kind, and what it says first."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def reader_of(model: PreTrainedModel) -> Reader:
    """The reader that is judged: CUDA graphs, and on a CPU the same passes run one by one. Raises UnsupportedModel."""
    if model.device.type == "cuda" or why_not(model) is not None:
        return open_reader(model, "graphed")
    return GraphedReader(model)


def opened(model: PreTrainedModel, kind: ReaderKind = "auto") -> Reader:
    """As `open_reader`, but `auto` is the one that is judged."""
    return reader_of(model) if kind == "auto" else open_reader(model, kind)


def prepared(reader: Reader, widths: Sequence[int], tokens: int) -> float:
    """Have compiled and recorded what passes of those widths need, up to `tokens` in the cache; the seconds of it."""
    return seconds(partial(reader.prepare, 1, widths, tokens), str(reader.device))


def seven(bench: Bench) -> Pair:
    """A Llama of 32 layers x 4096, FFN 11008, V 32000 with random weights, made on the device; and two drafters.

    Its first two layers draft with an acceptance that is arranged, its first one is there for its cost.
    """
    settings = bench.settings
    target = random_llama(settings, bench.dtype, bench.device)
    keep = settings.drafter_layers
    drafter = its_first_layers(target, keep)
    note = arrange(target, drafter, keep)
    return Pair(
        SEVEN if bench.full else f"{SEVEN}, small",
        target,
        {first_layers(keep): drafter, first_layers(1): its_first_layers(target, 1)},
        random_prompts(settings, [PROMPT] * prompts_needed(settings)),
        [],
        Limits(settings.big_new_tokens, frozenset(), settings.context),
        settings,
        note,
        dtype=bench.dtype,
        opened=opened,
    )


def longest(pair: Pair) -> int:
    """Tokens of the longest text, guesses behind its end among them."""
    return max(len(prompt.ids) for prompt in pair.prompts) + pair.limits.max_new_tokens + pair.settings.k + 1


def recordings(reader: Reader) -> dict[str, Any] | None:
    """How many CUDA graphs there are and what they took; None for a reader without."""
    if not isinstance(reader, GraphedReader):
        return None
    return {"graphs": reader.graphs, "seconds": reader.compile_s}


@torch.inference_mode()
def agreement(target: PreTrainedModel, drafter: PreTrainedModel) -> float:
    """Share of positions of random text at which both have the same largest logit."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, target.config.vocab_size, (4, 96), generator=generator).to(target.device)
    said = [model(input_ids=ids, use_cache=False).logits.argmax(dim=-1) for model in (target, drafter)]
    return float((said[0] == said[1]).float().mean())


def arrange(target: PreTrainedModel, drafter: PreTrainedModel, keep: int) -> str:
    """Halve what the layers behind the first `keep` add until the drafter agrees often enough; says how it went.

    Halving is exact in every dtype, and each tensor keeps its size: it is read and multiplied as any other.
    """
    halvings, found = 0, agreement(target, drafter)
    while found < AGREEING and halvings < MOST_HALVINGS:
        weaken(target, keep, 0.5)
        halvings, found = halvings + 1, agreement(target, drafter)
    return (
        f"Random weights; what the layers behind the drafter's {keep} add was halved {halvings} times, until both "
        f"agreed on {found:.0%} of the greedy tokens of random text: acceptance is arranged, only costs and ratios are "
        "meant."
    )


def given(text: TextBlocks, work: Path) -> Given:
    """That text, for a stage that needs nothing else."""

    def no_target() -> PreTrainedModel:
        raise FactoryError("rounding needs no target")

    return Given(no_target, text, None, 0, work / "checkpoint", lambda *_: None)


def copy_bandwidth(device: str) -> float:
    """Bytes/s of copies on the device, bytes read and bytes written both counted; the best of five runs.

    Of less than 4 GiB, on a GPU, where not so much is free.
    """
    kind = "cuda" if device.startswith("cuda") else "cpu"
    size = COPIED_BYTES[kind]
    if kind == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    to, watch = torch.empty_like(source), Stopwatch(device)
    found_s = []
    to.copy_(source)
    for _ in range(5):
        begun_s = watch.now_s()
        for _ in range(COPIES):
            to.copy_(source)
        found_s.append((watch.now_s() - begun_s) / COPIES)
    return 2 * source.numel() * 4 / min(found_s)


def product_rate(device: str, dtype: str) -> float:
    """FLOP/s of a square matrix product of random numbers (zeros and ones run faster on a GPU); the best of five."""
    width = 8192 if device.startswith("cuda") else 512
    a, b = (torch.randn(width, width, device=device).to(getattr(torch, dtype)) for _ in range(2))
    watch, found_s = Stopwatch(device), []
    torch.matmul(a, b)
    for _ in range(5):
        begun_s = watch.now_s()
        torch.matmul(a, b)
        found_s.append(watch.now_s() - begun_s)
    return 2 * width**3 / min(found_s)


def peak_bytes(device: str) -> int | None:
    """The most that torch held on the GPU; None on a CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.startswith("cuda") else None
