"""Which reader runs a model: the fastest that can, and why no faster one."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Literal, get_args

from transformers import PreTrainedModel

from factory.decoding.compiled import CompiledReader, why_no_compiler
from factory.decoding.eager import EagerReader
from factory.decoding.graphed import GraphedReader
from factory.decoding.lean import LeanReader
from factory.decoding.products import Now, int8_products, tuned_products, why_no_int8, why_no_packing
from factory.decoding.reader import Reader
from factory.decoding.tuned import tuned_cuda_products, why_no_kernels
from factory.decoding.wiring import plain_products, why_no_tracing, why_not
from factory.errors import UnsupportedModel
from factory.models.placement import why_divided

ReaderKind = Literal["auto", "eager", "lean", "packed", "packed-int8", "compiled", "graphed"]
KINDS: tuple[ReaderKind, ...] = get_args(ReaderKind)


def open_reader(model: PreTrainedModel, kind: ReaderKind = "auto", now_s: Now = time.perf_counter) -> Reader:
    """A reader of that kind for the model; its `name` says which it is, its `why` why not another.

    `eager` runs transformers' modules, `lean` the project's own forward pass. On CUDA `graphed` fuses that one's
    layers and replays passes and drafts as CUDA graphs. On a CPU `packed` runs it with the products that are fastest
    there (compared here, once, with the clock `now_s`), and `packed-int8` with 8-bit weights: for drafters only, since
    it changes what the model says. `compiled` compiles what `packed` does, for which it needs a C++ compiler and, once,
    minutes: it is taken only where asked for. `auto` takes the fastest other one that leaves the model as it is. A
    kind that cannot run falls back to one that can, with the reason. Raises UnsupportedModel for a model that no reader
    can rewind.
    """
    why = why_divided(model) or why_not(model)
    if kind == "eager" or why is not None:
        return _because(EagerReader(model), None if kind == "eager" else why)
    device = model.device.type
    if kind == "lean":
        return LeanReader(model)
    if device == "cuda":
        graphed = _graphed(model, now_s)
        return (
            graphed if kind in ("auto", "graphed") else _because(graphed, f"{kind} is for CPUs, not cuda", graphed.why)
        )
    if device != "cpu":
        return _because(LeanReader(model), f"no other reader is for {device}")
    if kind == "packed-int8":
        why = why_no_int8(model.dtype)
        return _because(LeanReader(model), why) if why else _named(LeanReader(model, int8_products), kind)
    why = why_no_packing(model.dtype)
    make = plain_products if why else partial(tuned_products, now_s=now_s)
    other = "CUDA graphs are for CUDA devices, not cpu" if kind == "graphed" else None
    if kind == "compiled":
        other = why_no_compiler() or why_no_tracing(model)
        if other is None:
            return CompiledReader(model, make)
    plain = LeanReader(model, make)
    return _because(plain if make is plain_products else _named(plain, "packed"), other, why)


def _graphed(model: PreTrainedModel, now_s: Now) -> Reader:
    """With the project's own kernels where they run, for products where they are faster."""
    why = why_no_kernels(model.device, model.dtype)
    choices: dict[str, Any] = {}
    make = plain_products if why else partial(tuned_cuda_products, now_s=now_s, choices=choices)
    reader = GraphedReader(model, make, kernels=why is None, now_s=now_s)
    return _because(reader, why or choices.get("why"), reader.why)


def require_target_reader(kind: ReaderKind) -> None:
    """Raises UnsupportedModel for a kind that would change the target's output."""
    if kind == "packed-int8":
        raise UnsupportedModel("reader packed-int8 rounds weights, so it is for drafters only: write `reader: packed`")


def _because(reader: Reader, *why: str | None) -> Reader:
    reader.why = "; ".join(reason for reason in why if reason) or None
    return reader


def _named(reader: Reader, name: str) -> Reader:
    reader.name = name
    return reader
