"""What a build hands to a stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.processes import ALONE, Processes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from factory.data.blocks import TextBlocks


@dataclass(frozen=True)
class CacheSettings:
    """What decides a teacher cache beside target and text."""

    temperature: float
    top_k: int
    drawn: int = 0  # tokens drawn from all others


@dataclass(frozen=True)
class Given:
    """What a build hands to a stage."""

    target: Callable[[], PreTrainedModel]  # loads it at the first call: not every stage needs it
    text: TextBlocks | None  # the training part; None where the recipe has no data
    held_out: TextBlocks | None  # never trained on; what the reported overlap is measured on
    seed: int
    checkpoint: Path  # a folder of this stage's own, kept until the stage is done
    progress: Callable[[int, int, str], None]  # (done, total, what is being shown)
    cache: Path | None = None  # the finished teacher cache of the whole text, where the stage reads one
    modelled: Callable[[float], dict[str, Any]] | None = None  # alpha -> tau, speedup, k here
    half: bool = False  # whether the target runs in half precision
    processes: Processes = ALONE
    memory: dict[int, Tensor] | None = None  # the target's states on this text, by row: what one reads, all may use
