"""Keys and values of a batch in which every row has its own length."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache


class RowCache(Cache):  # type: ignore[misc]
    """Static storage, [layers, B, heads, capacity, width], that takes new keys where it was told to.

    transformers' caches know one length for the whole batch; after a round of speculation the rows
    differ. Here the reader says once per pass where the new tokens go: `place` for rows of one
    length (batch 1 always is one), `scatter` for ragged rows. The views of all layers are then made
    at once, so that a layer only copies. Stale entries behind a row's length are never cleared: the
    mask hides them until they are written over.

    It does not know the rows' lengths, and all layers must have one shape.
    """

    is_compileable = False

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[])
        self._layers = layers
        self.start(0)

    def start(self, capacity: int) -> None:
        """Forget everything; storage is made by the first pass, which knows the shape of a layer."""
        self.capacity = capacity  # slots per row
        self._stored: tuple[torch.Tensor, torch.Tensor] | None = None
        self._start = self._stop = 0
        self._slots: torch.Tensor | None = None  # [B, T], ragged passes only

    def place(self, start: int, stop: int) -> None:
        """The next pass writes slots start:stop of every row and reads all before stop."""
        self._start, self._stop, self._slots = start, stop, None
        self._make_views()

    def scatter(self, slots: torch.Tensor, stop: int) -> None:
        """The next pass writes slots[b] of row b, [B, T], and reads all before stop."""
        self._slots, self._stop = slots, stop
        self._row = torch.arange(len(slots), device=slots.device).unsqueeze(1)
        self._make_views()

    def grow(self, capacity: int) -> None:
        """Make room for that many slots per row, keeping what is stored."""
        if self._stored is not None:
            grown = [old.new_zeros(*old.shape[:3], capacity, old.shape[4]) for old in self._stored]
            for old, new in zip(self._stored, grown, strict=True):
                new[:, :, :, : self.capacity] = old
            self._stored = (grown[0], grown[1])
        self.capacity = capacity

    def select(self, rows: list[int], used: int) -> None:
        """Keep these rows, in this order. Only rows that move are copied, and only their used slots."""
        if self._stored is None:
            return
        moves = [(to, row) for to, row in enumerate(rows) if to != row]
        if moves:
            to, source = [move[0] for move in moves], [move[1] for move in moves]
            for stored in self._stored:
                stored[:, to, :, :used] = stored[:, source, :, :used]
        keys, values = self._stored
        self._stored = keys[:, : len(rows)], values[:, : len(rows)]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store one layer's new keys and values [B, heads, T, width]; returns all that it may see [B, heads, S, width].

        The model calls it, layer by layer.
        """
        if self._stored is None:
            self._allocate(key_states, value_states)
        if self._slots is None:
            self._write_keys[layer_idx].copy_(key_states)
            self._write_values[layer_idx].copy_(value_states)
        else:
            self._write_keys[layer_idx][self._row, self._slots] = key_states.transpose(1, 2)
            self._write_values[layer_idx][self._row, self._slots] = value_states.transpose(1, 2)
        return self._read_keys[layer_idx], self._read_values[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions come from the position ids."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """First position of the queries, for a pass without a mask of the reader's."""
        return self._start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of keys and the first one's position, for a pass without a mask of the reader's."""
        return self._stop, 0

    def _allocate(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, _, key_width = key_states.shape
        shape = (self._layers, rows, heads, self.capacity)
        self._stored = (
            key_states.new_zeros(*shape, key_width),
            value_states.new_zeros(*shape, value_states.shape[3]),
        )
        self._make_views()

    def _make_views(self) -> None:
        if self._stored is None:
            return
        keys, values = self._stored
        self._read_keys = keys.narrow(3, 0, self._stop).unbind(0)
        self._read_values = values.narrow(3, 0, self._stop).unbind(0)
        if self._slots is None:
            width = self._stop - self._start
            self._write_keys = keys.narrow(3, self._start, width).unbind(0)
            self._write_values = values.narrow(3, self._start, width).unbind(0)
        else:  # [B, capacity, heads, width], so that row and slot are the indices that lead
            self._write_keys = keys.transpose(2, 3).unbind(0)
            self._write_values = values.transpose(2, 3).unbind(0)
