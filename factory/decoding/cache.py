"""Keys and values of a batch in which every row has its own length."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache


class RowCache(Cache):  # type: ignore[misc]
    """Static storage per layer, [B, heads, capacity, width], that takes new keys where it was told to.

    transformers' caches know one length for the whole batch; after a round of speculation the rows
    differ. Here the reader says once per forward pass where the new tokens go: `place` for rows of
    one length (slices, which is what batch 1 always uses), `scatter` for ragged rows. Stale entries
    behind a row's length are never cleared: the mask hides them until they are written over.

    It does not know the rows' lengths. `get_seq_length` is 0 because the reader passes position ids.
    """

    is_compileable = False

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._capacity = 0
        self._start = self._stop = 0
        self._slots: torch.Tensor | None = None  # [B, T], ragged passes only
        self._row: torch.Tensor | None = None  # [B, 1], ragged passes only

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self._capacity

    def start(self, capacity: int) -> None:
        """Forget everything; storage is made at the first pass, when each layer's shape is known."""
        self._keys, self._values, self._capacity = [], [], capacity

    def grow(self, capacity: int) -> None:
        """Make room for that many slots per row, keeping what is stored."""
        for stored in (self._keys, self._values):
            for layer, old in enumerate(stored):
                stored[layer] = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
                stored[layer][:, :, : self._capacity] = old
        self._capacity = capacity

    def place(self, start: int, stop: int) -> None:
        """The next pass writes slots start:stop of every row and reads all before stop."""
        self._start, self._stop, self._slots = start, stop, None

    def scatter(self, slots: torch.Tensor, stop: int) -> None:
        """The next pass writes slots[b] of row b, [B, T], and reads all before stop."""
        self._slots, self._stop = slots, stop
        self._row = torch.arange(len(slots), device=slots.device).unsqueeze(1)

    def select(self, rows: list[int], used: int) -> None:
        """Keep these rows, in this order. Only rows that move are copied, and only their used slots."""
        moving = [(to, row) for to, row in enumerate(rows) if to != row]
        for stored in (self._keys, self._values):
            for layer, old in enumerate(stored):
                if moving:
                    to, source = ([pair[side] for pair in moving] for side in (0, 1))
                    old[to, :, :used] = old[source, :, :used]
                stored[layer] = old[: len(rows)]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's new keys and values [B, heads, T, width]; returns all [B, heads, S, width]. Called by it."""
        if layer_idx == len(self._keys):
            rows, heads, _, width = key_states.shape
            self._keys.append(key_states.new_zeros(rows, heads, self._capacity, width))
            self._values.append(value_states.new_zeros(rows, heads, self._capacity, value_states.shape[3]))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._slots is None:
            width = self._stop - self._start
            keys.narrow(2, self._start, width).copy_(key_states)
            values.narrow(2, self._start, width).copy_(value_states)
        else:
            keys.transpose(1, 2)[self._row, self._slots] = key_states.transpose(1, 2)
            values.transpose(1, 2)[self._row, self._slots] = value_states.transpose(1, 2)
        return keys.narrow(2, 0, self._stop), values.narrow(2, 0, self._stop)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions come from the position ids."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """First position of the queries of a pass without a mask of ours."""
        return self._start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys in sight of a pass without a mask of ours, and the first one's position."""
        return self._stop, 0
