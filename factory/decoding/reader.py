"""A model and its cache: feed tokens, get logits, rewind."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from factory.decoding.cache import RowCache
from factory.errors import UnsupportedModel
from factory.models import context_length

_SLIDING = "sliding_attention"


def right_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, list[int]]:
    """Token lists as one block [B, T] int64, padded with 0 on the right, and how many tokens of each row are real."""
    count = [len(row) for row in rows]
    width = max(count, default=0)
    padded = [[*row, *[0] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.long, device=device).view(len(rows), width), count


class EagerReader:
    """Runs a transformers model as it is, over a batch whose rows have their own lengths.

    Rows start at position 0 and are padded on the right, so causal attention never sees padding.
    A pass over rows of equal length (batch 1 always is one) writes slices and needs no mask for a
    single token or a prompt; a ragged one scatters and carries a mask [B, 1, T, S]. Behind a sliding
    window every key stays in the cache and is masked: a cache that forgot could not be rewound.

    It does not know about sampling or drafts. Raises UnsupportedModel for a model whose state
    cannot be cut by length or whose positions cannot be given per row.
    """

    name = "eager"

    def __init__(self, model: PreTrainedModel) -> None:
        _refuse_what_cannot_be_rewound(model)
        self.model = model
        self.device: torch.device = model.device
        self.context = context_length(model)
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self.lengths: list[int] = []  # tokens in the cache, per row
        self._adds_mask = model.config._attn_implementation == "eager"
        kinds = set(getattr(model.config, "layer_types", None) or ())
        self._kinds = sorted(kinds) if _SLIDING in kinds else []  # such a model takes one mask a kind
        self._window = _window(model)
        # transformers 5.17 makes OPT a mask of its own, of the new tokens only, where none is given
        self._needs_mask = model.config.model_type == "opt"
        self._cache = RowCache(model.config.num_hidden_layers)
        self._slots = torch.zeros(0, dtype=torch.long)  # [capacity] 0, 1, 2, ...
        self._positions = self._slots  # [capacity] the same, but within the context

    def start(self, rows: int, capacity: int) -> None:
        """An empty cache of that many rows, with room for `capacity` tokens each; it grows when needed."""
        self.lengths = [0] * rows
        self._cache.start(capacity)
        self._number(capacity)

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
        logits = self._forward(tokens, count, torch.tensor(distinct, device=self.device))
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
            slots = torch.tensor(self.lengths, device=self.device).unsqueeze(1) + self._slots[:width]  # [B, T]
            self._cache.scatter(slots, stop)
            position_ids = self._positions[slots]
            mask = self._mask(slots, stop, windowed)
        output = self.model(
            input_ids=tokens,
            position_ids=position_ids,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        self.lengths = lengths
        logits: torch.Tensor = output.logits
        return logits

    def _mask(
        self, queries: torch.Tensor, stop: int, windowed: bool
    ) -> torch.Tensor | dict[str, torch.Tensor]:  # [B, T] slots -> [B, 1, T, S]
        """What each query may see of the first `stop` slots; by kind of layer where they differ."""
        keys, queries = self._slots[:stop], queries.unsqueeze(2).unsqueeze(1)  # [S], [B, 1, T, 1]
        seen = keys <= queries
        near = seen & (keys > queries - (self._window or 0)) if windowed else seen
        if self._kinds:
            return {kind: self._attended(near if kind == _SLIDING else seen) for kind in self._kinds}
        return self._attended(near)

    def _attended(self, seen: torch.Tensor) -> torch.Tensor:
        """A mask in the form that the model's attention takes: bool, or what is added to the scores."""
        if not self._adds_mask:
            return seen
        bias = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
        return bias.masked_fill_(~seen, torch.finfo(bias.dtype).min)

    def _number(self, capacity: int) -> None:
        self._slots = torch.arange(capacity, device=self.device)
        # padding may lie behind the context, where a learned position table has no row
        self._positions = self._slots.clamp(max=self.context - 1)


def _window(model: PreTrainedModel) -> int | None:
    """Positions that a sliding layer looks back, its own counted; None where every layer sees everything."""
    width = getattr(model.config, "sliding_window", None)
    kinds = getattr(model.config, "layer_types", None)
    return None if width is None or (kinds and _SLIDING not in kinds) else int(width)


def _refuse_what_cannot_be_rewound(model: PreTrainedModel) -> None:
    config = model.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    other = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", _SLIDING})
    reason = None
    if config.is_encoder_decoder:
        reason = "it has an encoder; only decoder-only models are read"
    elif model._is_stateful or any("attention" not in kind for kind in other):
        reason = "it keeps a recurrent state, which cannot be rewound to an earlier token"
    elif other:
        reason = f"it has layers of {', '.join(other)}, which this reader does not mask"
    elif "position_ids" not in inspect.signature(model.forward).parameters:
        reason = "it takes no position ids, so rows of different lengths cannot be told apart"
    elif rope in ("dynamic", "longrope"):
        reason = f"its rope_type {rope} changes stored positions as the text grows"
    elif config._attn_implementation not in ("sdpa", "eager"):
        reason = f"its attention is {config._attn_implementation}; load it with attn_implementation='sdpa'"
    if reason:
        raise UnsupportedModel(f"{config.model_type} cannot be decoded here: {reason}")
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
