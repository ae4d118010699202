"""Which rows a step learns from, and how they are laid out for a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import PreTrainedModel

from factory.data.blocks import TextBlocks
from factory.decoding.eager import window_of
from factory.decoding.reader import SLIDING
from factory.errors import DataError


@dataclass(frozen=True)
class Order:
    """The rows of a text, anew in each epoch: a function of seed and position, so that a resumed run sees the same."""

    rows: int
    seed: int

    def batch(self, index: int, size: int) -> list[int]:
        """Row numbers of batch number `index`; it may span two epochs."""
        chosen = []
        for position in range(index * size, (index + 1) * size):
            epoch, offset = divmod(position, self.rows)
            chosen.append(_permutation(self.rows, self.seed, epoch)[offset])
        return chosen


@lru_cache(maxsize=4)
def _permutation(rows: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return [int(row) for row in torch.randperm(rows, generator=generator)]


@dataclass(frozen=True)
class Laid:
    """Rows as one forward pass reads them, and where in it their answers are predicted."""

    ids: torch.Tensor  # [B, T] int64
    positions: torch.Tensor  # [B, T] position of each token in its own row
    where: torch.Tensor  # [N] places in ids.flatten() whose next token is an answer's, row after row
    labels: torch.Tensor  # [N] those next tokens
    packed: bool = False  # several rows in one of B

    def to(self, device: torch.device) -> Laid:
        """The same on a device; to CUDA from pinned memory, so that no copy waits for what is queued there."""
        pinned = device.type == "cuda"
        ids, positions, where, labels = (
            (part.contiguous().pin_memory() if pinned else part).to(device, non_blocking=True)
            for part in (self.ids, self.positions, self.where, self.labels)
        )
        return Laid(ids, positions, where, labels, self.packed)


def lay(text: TextBlocks, pack: int | None = None) -> Laid:
    """Rows under one another, right-padded; or end to end in blocks of `pack` tokens, first fit, in the order given.

    A token sees only its own row in either, and padding stands where nothing looks back at it. Raises
    DataError for a row that is longer than a block.
    """
    answers = text.answer_mask
    row, column = answers.nonzero(as_tuple=True)
    labels = text.ids[row, column + 1] if len(row) else torch.zeros(0, dtype=torch.long)
    if pack is None:
        width = text.ids.shape[1]
        positions = torch.arange(width).expand(len(text), width)
        return Laid(text.ids, positions, row * width + column, labels)
    block, start = _first_fit(text.length.tolist(), pack)
    ids = torch.zeros((max(block, default=-1) + 1, pack), dtype=torch.long)
    # Padding counts from 0 again at every token, so that it is no part of any row before it.
    positions = torch.zeros_like(ids)
    for number, (place, offset) in enumerate(zip(block, start, strict=True)):
        length = int(text.length[number])
        ids[place, offset : offset + length] = text.ids[number, :length]
        positions[place, offset : offset + length] = torch.arange(length)
    places = torch.tensor(block, dtype=torch.long) * pack + torch.tensor(start, dtype=torch.long)
    return Laid(ids, positions, places[row] + column, labels, packed=True)


def packed_mask(model: PreTrainedModel, positions: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
    """What each token of packed rows sees: its own row, up to itself. [B, 1, T, T], or one for each kind of layer.

    transformers finds packed rows by their positions too, but not in every family (OPT).
    """
    row = (positions.diff(prepend=positions[:, :1] - 1) != 1).cumsum(-1)
    place = torch.arange(positions.shape[1], device=positions.device)
    seen = (row[:, :, None] == row[:, None, :]) & (place[None, :] <= place[:, None])
    window = window_of(model)
    near = seen if window is None else seen & (place[None, :] > place[:, None] - window)
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if SLIDING in kinds:
        return {kind: _attended(model, near if kind == SLIDING else seen) for kind in kinds}
    return _attended(model, near)


def _attended(model: PreTrainedModel, seen: torch.Tensor) -> torch.Tensor:
    """[B, T, T] -> [B, 1, T, T] as the model's attention takes it: bool, or what is added to the scores."""
    seen = seen.unsqueeze(1)
    if model.config._attn_implementation != "eager":
        return seen
    bias = torch.zeros(seen.shape, dtype=model.dtype, device=seen.device)
    return bias.masked_fill_(~seen, torch.finfo(bias.dtype).min)


def _first_fit(lengths: Sequence[int], pack: int) -> tuple[list[int], list[int]]:
    """Of each row its block, and where in it the row begins."""
    filled: list[int] = []
    block, start = [], []
    for length in lengths:
        if length > pack:
            raise DataError(f"distill: a row of {length} tokens is longer than `pack: {pack}`; write a larger `pack`")
        place = next((index for index, used in enumerate(filled) if used + length <= pack), len(filled))
        if place == len(filled):
            filled.append(0)
        block.append(place)
        start.append(filled[place])
        filled[place] += length
    return block, start
