"""Which reader runs a model: the fastest that can, and why no faster one."""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedModel

from factory.decoding.eager import EagerReader
from factory.decoding.reader import Reader

ReaderKind = Literal["auto", "eager"]


def open_reader(model: PreTrainedModel, kind: ReaderKind = "auto") -> Reader:
    """A reader of that kind for the model. Raises UnsupportedModel where the model cannot be read by it."""
    return EagerReader(model)
