"""Keys and values that stay where they are: what a recorded pass writes and reads has fixed addresses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from factory.decoding.cache import RowCache
from factory.decoding.launching import power_of_two

_LEAST = 256  # slots a row, at least; a power of two
# Slots behind those that are used: so storage is always longer than what a pass reads of it, and a compiled layer,
# which is bound to whether both are equal, is compiled once. Eight, so that rows begin where vectors do.
_SPARE = 8


class StaticCache(RowCache):
    """A RowCache that is kept from batch to batch, one tensor a layer, with rows and slots in reserve.

    Rows and slots only ever grow, by powers of two; `generation` counts how often they were made anew, after which
    nothing recorded before may be replayed. It is used in two ways: by a pass of the reader's own, which `place` or
    `scatter` told where its tokens go, and by a recorded pass, which finds that in tensors (`RecordedStore`).
    """

    def __init__(self, layers: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.keys: list[torch.Tensor] = []  # of each layer [rows, heads, slots, width]
        self.values: list[torch.Tensor] = []
        self.generation = 0
        self._rows = 0  # of the batch that is being written
        self._heads, self._width = heads, width
        self._like = torch.empty(0, dtype=dtype, device=device)
        super().__init__(layers)

    def start(self, capacity: int) -> None:
        """As a RowCache's; `reserve` makes the room."""
        self.capacity = self._held()[1]
        self._start = self._stop = 0
        self._slots = None
        self._stored = self._like, self._like  # there is nothing to allocate by the first pass

    def reserve(self, rows: int, capacity: int) -> None:
        """Room for a batch of `rows`, `capacity` slots each. What is stored is lost where there was too little."""
        self._rows = rows
        held_rows, held_slots = self._held()
        if rows > held_rows or capacity > held_slots:
            size, slots = reserved(rows, capacity)
            self._make(max(size, held_rows), max(slots, held_slots))
        self.start(capacity)

    @torch.inference_mode()
    def grow(self, capacity: int) -> None:
        """Make room for that many slots per row, keeping what is stored."""
        old_keys, old_values, used = self.keys, self.values, self.capacity
        self._make(old_keys[0].shape[0], power_of_two(capacity))
        for old, new in zip((*old_keys, *old_values), (*self.keys, *self.values), strict=True):
            new[:, :, :used] = old[:, :, :used]
        self.capacity = self._held()[1]

    def select(self, rows: Sequence[int], used: int) -> None:
        """Keep these rows, in this order: those that move are copied, slot by used slot."""
        moves = [(to, row) for to, row in enumerate(rows) if to != row]
        safe = not {to for to, _ in moves} & {row for _, row in moves}  # nothing is written over that is yet to be read
        for stored in (*self.keys, *self.values):
            held = [stored[row, :, :used] if safe else stored[row, :, :used].clone() for _, row in moves]
            for (to, _), row in zip(moves, held, strict=True):
                stored[to, :, :used] = row
        self._rows = len(rows)

    @torch.inference_mode()  # always: a compiled layer is bound to what kind of tensor it gets
    def _make(self, rows: int, slots: int) -> None:
        self.keys, self.values = [], []  # before new ones are asked for
        shape = (rows, self._heads, slots + _SPARE, self._width)
        self.keys = [self._like.new_zeros(shape) for _ in range(self._layers)]
        self.values = [self._like.new_zeros(shape) for _ in range(self._layers)]
        self.generation += 1

    def _held(self) -> tuple[int, int]:
        """Rows and slots that there is storage for."""
        if not self.keys:
            return 0, 0
        rows, _, slots, _ = self.keys[0].shape
        return rows, slots - _SPARE

    def _make_views(self) -> None:
        rows, width = self._rows, self._stop - self._start
        keys, values = [one[:rows] for one in self.keys], [one[:rows] for one in self.values]
        self._read_keys = tuple(one.narrow(2, 0, self._stop) for one in keys)
        self._read_values = tuple(one.narrow(2, 0, self._stop) for one in values)
        if self._slots is None:
            self._write_keys = tuple(one.narrow(2, self._start, width) for one in keys)
            self._write_values = tuple(one.narrow(2, self._start, width) for one in values)
        else:
            self._write_keys = tuple(one.transpose(1, 2) for one in keys)
            self._write_values = tuple(one.transpose(1, 2) for one in values)


class RecordedStore:
    """One layer's part of a StaticCache as a recorded pass sees it: `slots` [B, T] to write, `stop` slots to read.

    Keys and values are of the rows that are written, no more.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, stop: int) -> None:
        self._keys, self._values, self._slots, self._stop = keys, values, slots, stop

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As a RowCache's, in operations that can be recorded and compiled. `layer_idx` says nothing here.

        Inductor writes in place what is indexed as it came in; of a transposed or cut tensor it copies the whole.
        """
        rows, heads = key_states.shape[:2]
        device = self._slots.device
        row = torch.arange(rows, device=device).view(-1, 1, 1)
        head = torch.arange(heads, device=device).view(1, -1, 1)
        where = (row, head, self._slots.unsqueeze(1))  # [B, heads, T]
        self._keys.index_put_(where, key_states)
        self._values.index_put_(where, value_states)
        return self._keys[:, :, : self._stop], self._values[:, :, : self._stop]


def reserved(rows: int, capacity: int) -> tuple[int, int]:
    """Rows and slots that such a batch's storage has."""
    return power_of_two(rows), max(power_of_two(capacity), _LEAST)
