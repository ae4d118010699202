"""Keys and values of a model whose layers lie on several devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from factory.decoding.cache import RowCache


class SpreadCache(RowCache):
    """A row cache for each device, behind one face: a layer's keys and values lie where the layer computes.

    Where nothing is spread a RowCache alone is the same and does less.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        """`devices`: of each layer, in their order."""
        self._devices = list(devices)
        self._caches = {device: RowCache(self._devices.count(device)) for device in dict.fromkeys(self._devices)}
        self._within = [self._devices[:layer].count(device) for layer, device in enumerate(self._devices)]
        super().__init__(len(self._devices))

    def start(self, capacity: int) -> None:
        """Forget everything; each device's storage is made by the first pass."""
        self.capacity = capacity
        for cache in self._caches.values():
            cache.start(capacity)

    def place(self, start: int, stop: int) -> None:
        """The next pass writes slots start:stop of every row and reads all before stop."""
        for cache in self._caches.values():
            cache.place(start, stop)

    def scatter(self, slots: torch.Tensor, stop: int) -> None:
        """The next pass writes slots[b] of row b, [B, T], and reads all before stop."""
        for device, cache in self._caches.items():
            cache.scatter(slots.to(device), stop)

    def grow(self, capacity: int) -> None:
        """Make room for that many slots per row, keeping what is stored."""
        self.capacity = capacity
        for cache in self._caches.values():
            cache.grow(capacity)

    def select(self, rows: list[int], used: int) -> None:
        """Keep these rows, in this order."""
        for cache in self._caches.values():
            cache.select(rows, used)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store one layer's new keys and values [B, heads, T, width] on its device; returns all that it may see."""
        cache = self._caches[self._devices[layer_idx]]
        return cache.update(key_states, value_states, self._within[layer_idx])

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """First position of the queries, for a pass without a mask of the reader's."""
        return self._caches[self._devices[layer_idx]].get_query_offset()

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of keys and the first one's position, for a pass without a mask of the reader's."""
        return self._caches[self._devices[layer_idx]].get_mask_sizes(query_length, 0)
