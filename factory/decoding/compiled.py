"""The lean pass compiled by torch's inductor: fewer, fused kernels and no Python between them.

A pass of each batch and width is compiled once, which takes tens of seconds on first use; inductor
keeps what it made on disk, so the next process only loads it. Widths are rounded up to a few, and
the number of cached positions is left open, so that a handful of compilations serve a whole run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from factory.decoding.cache import RowCache
from factory.decoding.lean import LeanReader
from factory.decoding.network import Mask
from factory.decoding.wiring import ProductMaker, plain_products, rotary_of

WIDTHS = (1, 2, 5, 9, 17)  # tokens a row that a compiled pass reads; fewer are padded, more are a prompt
_PACKED: dict[str, Any] = {"memory_format": torch.contiguous_format}
_ROWS = 8  # a larger batch runs as in a LeanReader: Python is a small part of it, and each size would be compiled
_COMPILATIONS = 256  # (batch, width) pairs of a process, over all readers


def why_no_compiler() -> str | None:
    """Why nothing can be compiled here; None where it can."""
    if any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        return None
    return "no C++ compiler is on the path: install g++ to have passes compiled"


class CompiledReader(LeanReader):
    """A `LeanReader` whose short passes are compiled; prompts run as they do there.

    Raises what a LeanReader raises. `prepare` compiles ahead of use.
    """

    name = "compiled"

    def __init__(self, model: PreTrainedModel, make: ProductMaker = plain_products) -> None:
        super().__init__(model, make)
        self._cache = LayeredCache(model.config.num_hidden_layers)
        self._needs_mask = True  # its width says how much of the cache is read
        if self._has_rotary:
            self._rotary = rotary_of(model, self._network.width, self.context)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _COMPILATIONS)
        self._step: Callable[..., torch.Tensor] = torch.compile(self._pass, fullgraph=True, dynamic=False)

    def prepare(self, rows: int, widths: Sequence[int], tokens: int) -> None:
        """Compile passes up to the largest of these widths, for each batch up to `rows`; none for a large one."""
        for size in range(1, rows + 1 if rows <= _ROWS else 1):
            for width in WIDTHS[: 1 + _bucket(max(widths))]:
                self.start(size, 64)
                one = torch.ones(size, 1, dtype=torch.long, device=self.device)
                self.feed(one.expand(size, WIDTHS[-1] + 1))  # a prompt
                for _ in range(2):  # the second time, sizes that were left open differ
                    self.feed(one.expand(size, width))

    def feed(self, tokens: torch.Tensor, count: list[int] | None = None) -> torch.Tensor:
        """As every reader; what is fed is padded to the next of WIDTHS."""
        padded, count = self._padded(tokens, count)
        return super().feed(padded, count)[:, : tokens.shape[1]]

    def feed_last(self, tokens: torch.Tensor, count: list[int] | None = None) -> torch.Tensor:
        """As every reader; what is fed is padded to the next of WIDTHS."""
        return super().feed_last(*self._padded(tokens, count))

    def _padded(self, tokens: torch.Tensor, count: list[int] | None) -> tuple[torch.Tensor, list[int] | None]:
        rows, width = tokens.shape
        if width in WIDTHS or not 0 < width < WIDTHS[-1] or max(self.lengths) == 0 or rows > _ROWS:
            return tokens, count
        missing = WIDTHS[_bucket(width)] - width
        return torch.nn.functional.pad(tokens, (0, missing)), count or [width] * rows

    def _run(self, tokens: torch.Tensor, positions: torch.Tensor, mask: Mask, keep: int | torch.Tensor) -> torch.Tensor:
        if mask is None or tokens.shape[1] not in WIDTHS or len(tokens) > _ROWS:
            return super()._run(tokens, positions, mask, keep)
        cache = self._cache
        assert isinstance(cache, LayeredCache)
        slots = cache.written(tokens.shape[1])
        for part in mask.values() if isinstance(mask, dict) else (mask,):
            torch._dynamo.mark_dynamic(part, 3)
        # a compiled pass is bound to its inputs' strides: copies of a few numbers have always the same
        tokens, positions = torch.clone(tokens, **_PACKED), torch.clone(positions.expand(tokens.shape), **_PACKED)
        logits = self._step(tokens, positions, mask, slots, cache.keys, cache.values)
        if isinstance(keep, torch.Tensor):
            return logits[:, keep]
        return logits[:, -keep:] if keep else logits

    def _pass(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: Mask,
        slots: torch.Tensor,
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
    ) -> torch.Tensor:
        whole = next(iter(mask.values())) if isinstance(mask, dict) else mask
        assert whole is not None
        return self._network(tokens, positions, self._rotary, mask, _Placed(keys, values, slots, whole.shape[3]), 0)


class LayeredCache(RowCache):
    """A RowCache of one tensor a layer: a compiled pass writes each in place, and would copy two that shared memory."""

    keys: list[torch.Tensor]  # of each layer [B, heads, capacity, width]
    values: list[torch.Tensor]

    def written(self, width: int) -> torch.Tensor:
        """The slots that the next pass writes, [B or 1, T]."""
        if self._slots is not None:
            return self._slots
        return torch.arange(self._start, self._start + width, device=self.keys[0].device).unsqueeze(0)

    def grow(self, capacity: int) -> None:
        """Make room for that many slots per row, keeping what is stored."""
        if self._stored is not None:
            self.keys, self.values = (
                [_longer(stored, capacity) for stored in layers] for layers in (self.keys, self.values)
            )
        self.capacity = capacity

    def select(self, rows: list[int], used: int) -> None:
        """Keep these rows, in this order."""
        if self._stored is not None and rows != list(range(len(self.keys[0]))):
            self.keys, self.values = ([_open(stored[rows]) for stored in layers] for layers in (self.keys, self.values))

    def _allocate(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, _, key_width = key_states.shape
        shape = (rows, heads, self.capacity)
        self.keys = [_open(key_states.new_zeros(*shape, key_width)) for _ in range(self._layers)]
        self.values = [_open(value_states.new_zeros(*shape, value_states.shape[3])) for _ in range(self._layers)]
        self._stored = (key_states[:0], value_states[:0])  # that something is stored
        self._make_views()

    def _make_views(self) -> None:
        if self._stored is None:
            return
        self._read_keys = tuple(stored.narrow(2, 0, self._stop) for stored in self.keys)
        self._read_values = tuple(stored.narrow(2, 0, self._stop) for stored in self.values)
        if self._slots is None:
            width = self._stop - self._start
            self._write_keys = tuple(stored.narrow(2, self._start, width) for stored in self.keys)
            self._write_values = tuple(stored.narrow(2, self._start, width) for stored in self.values)
        else:
            self._write_keys = tuple(stored.transpose(1, 2) for stored in self.keys)
            self._write_values = tuple(stored.transpose(1, 2) for stored in self.values)


class _Placed:
    """What a compiled pass sees of the cache: whole tensors, and where in them to write and how far to read."""

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor], slots: torch.Tensor, stop: int) -> None:
        self._keys, self._values, self._slots, self._stop = keys, values, slots, stop

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As a RowCache's, in operations that can be compiled, and that inductor then does in place."""
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        rows, heads = keys.shape[:2]
        row = torch.arange(rows, device=keys.device).view(-1, 1, 1)
        head = torch.arange(heads, device=keys.device).view(1, -1, 1)
        where = (row, head, self._slots.unsqueeze(1))  # [B, heads, T]
        keys.index_put_(where, key_states)
        values.index_put_(where, value_states)
        return keys[:, :, : self._stop], values[:, :, : self._stop]


def _bucket(width: int) -> int:
    """Index of the first of WIDTHS that holds so many tokens."""
    return next((index for index, size in enumerate(WIDTHS) if width <= size), len(WIDTHS) - 1)


def _longer(stored: torch.Tensor, capacity: int) -> torch.Tensor:
    grown = stored.new_zeros(*stored.shape[:2], capacity, stored.shape[3])
    grown[:, :, : stored.shape[2]] = stored
    return _open(grown)


def _open(stored: torch.Tensor) -> torch.Tensor:
    """The tensor, whose number of slots a compiled pass is not to be bound to."""
    torch._dynamo.mark_dynamic(stored, 2)
    return stored
