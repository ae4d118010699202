"""Rows of a batch, each with its own length: feed tokens, get logits, rewind. How a pass runs is each reader's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from factory.decoding.cache import RowCache
from factory.decoding.sending import sent

SLIDING = "sliding_attention"


def right_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, list[int]]:
    """Token lists as one block [B, T] int64, padded with 0 on the right, and how many tokens of each row are real."""
    count = [len(row) for row in rows]
    width = max(count, default=0)
    padded = [[*row, *[0] * (width - len(row))] for row in rows]
    return sent(padded, device).view(len(rows), width), count


def added_to_scores(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask as what is added to attention's scores: 0 for what is seen, else the least number of that dtype."""
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return bias.masked_fill_(~seen, torch.finfo(dtype).min)


class Reader(ABC):
    """A model and its cache, over a batch whose rows have their own lengths.

    Rows start at position 0 and are padded on the right, so causal attention never sees padding.
    A pass over rows of equal length (batch 1 always is one) writes slices and needs no mask for a
    single token or a prompt; a ragged one scatters and carries a mask [B, 1, T, S]. Behind a sliding
    window every key stays in the cache and is masked: a cache that forgot could not be rewound.

    It does not know about sampling or drafts.
    """

    name: str
    why: str | None = None  # why this reader and no faster one; None where nobody asked for another

    def __init__(
        self,
        *,
        layers: int,
        context: int,
        vocabulary: int,
        device: torch.device,
        window: int | None = None,
        kinds: Sequence[str] = (),
        needs_mask: bool = False,
        mask_dtype: torch.dtype | None = None,
    ) -> None:
        """`kinds`: where layers differ in what they see, all of them; a mask is then a dict by kind.

        `mask_dtype`: what is added to the scores has it; None is a bool mask.
        """
        self.device = device
        self.context = context
        self.vocabulary = vocabulary
        self.lengths: list[int] = []  # tokens in the cache, per row
        self._window = window
        self._kinds = list(kinds)
        self._needs_mask = needs_mask  # also for a single token
        self._mask_dtype = mask_dtype
        self._cache = RowCache(layers)
        self._slots = torch.zeros(0, dtype=torch.long)  # [capacity] 0, 1, 2, ...
        self._positions = self._slots  # [capacity] the same, but within the context

    @abstractmethod
    def _run(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | dict[str, torch.Tensor] | None,
        keep: int | torch.Tensor,
    ) -> torch.Tensor:
        """One pass: tokens [B, T], positions [1 or B, T], mask [1 or B, 1, T, S] -> logits [B, kept, V].

        `keep` as transformers' logits_to_keep: 0 is all, 1 the last, a tensor those positions. Keys and
        values go through `self._cache`, which knows where they belong.
        """

    def start(self, rows: int, capacity: int) -> None:
        """An empty cache of that many rows, with room for `capacity` tokens each; it grows when needed."""
        self.lengths = [0] * rows
        self._cache.start(capacity)
        self._number(capacity)

    def prepare(self, rows: int, widths: Sequence[int], tokens: int) -> None:  # noqa: B027 - most make nothing
        """Make ahead of use what passes of these widths need, until texts of a batch of `rows` have `tokens` each.

        Batches that remain when rows have ended are among it. Whatever is in the cache is lost.
        """

    def feed(self, tokens: torch.Tensor, count: list[int] | None = None) -> torch.Tensor:
        """Logits [B, T, V] after each of these tokens [B, T]; the first count[b] of row b enter its cache.

        Logits behind count[b] mean nothing. Raises ValueError beyond the context.
        """
        return self._forward(tokens, count, 0)

    def feed_last(self, tokens: torch.Tensor, count: list[int] | None = None) -> torch.Tensor:
        """Like `feed`, but logits [B, V] after each row's last real token only: a long prompt's [B, T, V] is not made.

        The head runs once per distinct count; a row of count 0 gets logits that mean nothing.
        """
        if tokens.shape[1] == 1 or count is None or min(count) == tokens.shape[1]:
            return self._forward(tokens, count, 1)[:, 0]
        last = [max(number, 1) - 1 for number in count]
        distinct = sorted(set(last))
        logits = self._forward(tokens, count, sent(distinct, self.device))
        return logits[list(range(len(last))), [distinct.index(position) for position in last]]

    def rewind(self, lengths: list[int]) -> None:
        """Forget what is behind these lengths, one per row. Raises ValueError where one would grow."""
        if len(lengths) != len(self.lengths) or any(new > old for new, old in zip(lengths, self.lengths, strict=True)):
            raise ValueError(f"rewind can only lower lengths: {self.lengths} -> {lengths}")
        self.lengths = list(lengths)

    @torch.inference_mode()
    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order."""
        self._cache.select(rows, max(self.lengths, default=0))
        self.lengths = [self.lengths[row] for row in rows]

    @torch.inference_mode()
    def _forward(self, tokens: torch.Tensor, count: list[int] | None, keep: int | torch.Tensor) -> torch.Tensor:
        width = tokens.shape[1]
        shortest, longest = min(self.lengths), max(self.lengths)
        lengths = [old + new for old, new in zip(self.lengths, count or [width] * len(self.lengths), strict=True)]
        if max(lengths) > self.context:
            raise ValueError(f"{max(lengths)} tokens do not fit into a context of {self.context}")
        stop = longest + width
        if stop > self._cache.capacity:
            self._cache.grow(max(stop, 2 * self._cache.capacity))
            self._number(self._cache.capacity)
        windowed = self._window is not None and stop > self._window
        mask: torch.Tensor | dict[str, torch.Tensor] | None = None
        if shortest == longest:
            self._cache.place(longest, stop)
            position_ids = self._positions[longest:stop].unsqueeze(0)  # [1, T]
            # without one the causal mask is what attention does by itself
            if windowed or (longest > 0 and (width > 1 or self._needs_mask)):
                mask = self._mask(self._slots[longest:stop].unsqueeze(0), stop, windowed)
        else:
            slots = sent(self.lengths, self.device).unsqueeze(1) + self._slots[:width]  # [B, T]
            self._cache.scatter(slots, stop)
            position_ids = self._positions[slots]
            mask = self._mask(slots, stop, windowed)
        logits = self._run(tokens, position_ids, mask, keep)
        self.lengths = lengths
        return logits

    def _mask(
        self, queries: torch.Tensor, stop: int, windowed: bool
    ) -> torch.Tensor | dict[str, torch.Tensor]:  # [B, T] slots -> [B, 1, T, S]
        """What each query may see of the first `stop` slots; by kind of layer where they differ."""
        keys, queries = self._slots[:stop], queries.unsqueeze(2).unsqueeze(1)  # [S], [B, 1, T, 1]
        seen = keys <= queries
        near = seen & (keys > queries - (self._window or 0)) if windowed else seen
        if self._kinds:
            return {kind: self._attended(near if kind == SLIDING else seen) for kind in self._kinds}
        return self._attended(near)

    def _attended(self, seen: torch.Tensor) -> torch.Tensor:
        """A mask in the form that the model's attention takes: bool, or what is added to the scores."""
        return seen if self._mask_dtype is None else added_to_scores(seen, self._mask_dtype)

    def _number(self, capacity: int) -> None:
        self._slots = torch.arange(capacity, device=self.device)
        # padding may lie behind the context, where a learned position table has no row
        self._positions = self._slots.clamp(max=self.context - 1)
