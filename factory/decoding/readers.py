"""Which reader runs a model: the fastest that can, and why no faster one."""

from __future__ import annotations

import time
from functools import partial
from typing import Literal, get_args

from transformers import PreTrainedModel

from factory.decoding.compiled import CompiledReader, why_no_compiler
from factory.decoding.eager import EagerReader
from factory.decoding.lean import LeanReader
from factory.decoding.products import Now, int8_products, tuned_products, why_no_int8, why_no_packing
from factory.decoding.reader import Reader
from factory.decoding.wiring import plain_products, why_not
from factory.errors import UnsupportedModel
from factory.placement import why_divided

ReaderKind = Literal["auto", "eager", "lean", "packed", "packed-int8", "compiled"]
KINDS: tuple[ReaderKind, ...] = get_args(ReaderKind)


def open_reader(model: PreTrainedModel, kind: ReaderKind = "auto", now_s: Now = time.perf_counter) -> Reader:
    """A reader of that kind for the model; its `name` says which it is, its `why` why not another.

    `eager` runs transformers' modules, `lean` the project's own forward pass, `packed` that one with
    the products that are fastest on this CPU (compared here, once, with the clock `now_s`), and
    `packed-int8` that one with 8-bit weights: for drafters only, since it changes what the model says.
    `compiled` compiles what `packed` does, for which it needs a C++ compiler and, once, minutes: it is
    taken only where asked for. `auto` takes the fastest other one that leaves the model as it is. A
    kind that cannot run falls back to `lean`, or to `eager` for a model of no supported family, with
    the reason. Raises UnsupportedModel for a model that no reader can rewind.
    """
    why = why_divided(model) or why_not(model)
    if kind == "eager" or why is not None:
        return _because(EagerReader(model), None if kind == "eager" else why)
    if kind == "lean":
        return LeanReader(model)
    if model.device.type != "cpu":
        return _because(LeanReader(model), f"packed and 8-bit weights are for CPUs, not {model.device.type}")
    if kind == "packed-int8":
        why = why_no_int8(model.dtype)
        return _because(LeanReader(model), why) if why else _named(LeanReader(model, int8_products), kind)
    why = why_no_packing(model.dtype)
    make = plain_products if why else partial(tuned_products, now_s=now_s)
    if kind == "compiled":
        missing = why_no_compiler()
        if missing is None:
            return CompiledReader(model, make)
        why = f"{missing}; {why}" if why else missing
    return (
        _because(LeanReader(model), why) if make is plain_products else _named(LeanReader(model, make), "packed", why)
    )


def require_target_reader(kind: ReaderKind) -> None:
    """Raises UnsupportedModel for a kind that would change the target's output."""
    if kind == "packed-int8":
        raise UnsupportedModel("reader packed-int8 rounds weights, so it is for drafters only: write `reader: packed`")


def _because(reader: Reader, why: str | None) -> Reader:
    reader.why = why
    return reader


def _named(reader: Reader, name: str, why: str | None = None) -> Reader:
    reader.name = name
    return _because(reader, why)
