"""A pass, and a draft of several, as a recording needs them: what differs from one to the next is in tensors.

Nothing here asks the host for a number or moves a tensor elsewhere, so that all of it can become one CUDA graph. The
layers can be compiled by inductor first: one function, which takes a layer's weights and its part of the cache as
inputs like any other, is compiled for each (rows, tokens) once and serves all layers and all lengths of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from factory.decoding.graphs import Outputs
from factory.decoding.kernels import MOST_TOKENS, decode_attention, takes_heads
from factory.decoding.network import Layer, Network, Rotary
from factory.decoding.reader import SLIDING, added_to_scores
from factory.decoding.sampling import PointMasses, Sampling, distribution, draw
from factory.decoding.static_cache import RecordedStore, StaticCache
from factory.decoding.vocabulary import fitted

_RECOMPILATIONS = 256  # of one function: (rows, tokens) of all models of a process
Turn = tuple[torch.Tensor, torch.Tensor] | None


class StaticPass:
    """A network on a StaticCache, by tensors alone. It does not know which rows and slots are in use."""

    def __init__(
        self,
        network: Network,
        cache: StaticCache,
        rotary: Rotary | None,
        *,
        context: int,
        vocabulary: int,
        window: int | None,
        kinds: Sequence[str],
        dtype: torch.dtype,
        kernels: bool = False,
    ) -> None:
        """`rotary` has all positions of the context; `window` and `kinds` as a Reader's.

        `kernels`: whether attention is the project's own kernel's (`kernels.decode_attention`).
        """
        self._network, self._cache, self._rotary = network, cache, rotary
        self._context, self._vocabulary = context, vocabulary
        self._window, self._kinds, self._dtype = window, kinds, dtype
        self.kernels = kernels and takes_heads(network.width)
        self.fused = False
        self._open, self._step, self._close = self._opened, self._layer, network.logits

    def fuse(self) -> None:
        """Have layers, and what is before and behind them, compiled when they are first run."""
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILATIONS)
        fused = partial(torch.compile, fullgraph=True, dynamic=False)
        self._open, self._step = fused(self._opened), fused(self._layer)
        self._close = fused(self._network.logits)
        self.fused = True

    def compiling(self) -> AbstractContextManager[object]:
        """Whatever is compiled in the body is compiled as meant here: with weights as inputs, no kernel searched for.

        gptqmodel's CPU kernel changes both for the whole process when it first runs, and each layer would be compiled.
        """
        if not self.fused:
            return nullcontext()
        import torch._inductor.config as inductor

        patched: AbstractContextManager[object] = inductor.patch(freezing=False, max_autotune=False)
        return patched

    def unfuse(self) -> None:
        """Run them as they are."""
        self._open, self._step, self._close = self._opened, self._layer, self._network.logits
        self.fused = False

    def read(self, tokens: torch.Tensor, lengths: torch.Tensor, *, stop: int, keep: int = 0) -> torch.Tensor:
        """Logits [B, kept, V] of tokens [B, T] behind `lengths` [B] cached ones, reading `stop` slots of the cache."""
        rows, cache = len(tokens), self._cache
        read = self._open_ended(torch.arange(stop, device=tokens.device), 0)
        x, slots, turn, masks = self._open(tokens, lengths, read)
        for shared in masks.values():
            self._open_ended(shared, 3)
        delta = None if self._network.joined else torch.zeros_like(x)
        for index, layer in enumerate(self._network.layers):
            mask = masks.get(layer.kind if self._kinds else "")
            keys = self._open_ended(cache.keys[index][:rows], 2)
            values = self._open_ended(cache.values[index][:rows], 2)
            x, delta = self._step(layer, x, delta, turn, slots, read, mask, keys, values)
        return self._close(x, delta, keep)

    def write(
        self,
        fed: torch.Tensor,
        lengths: torch.Tensor,
        numbers: torch.Tensor | None = None,
        *,
        k: int,
        stop: int,
        sampling: Sampling,
        vocabulary: int,
    ) -> Outputs:
        """The whole draft, fed [B, 2], lengths [B], numbers [B, k] -> tokens [B, k] and, unless greedy, q [B, k, V]."""
        if vocabulary > self._vocabulary:  # an id that the drafter has no row for is read as its last one
            fed = fed.clamp(max=self._vocabulary - 1)
        tokens: list[torch.Tensor] = []
        drawn_from: list[torch.Tensor] = []
        for guess in range(k):
            if guess:
                logits = self.read(tokens[-1], lengths + (1 + guess), stop=stop, keep=1)
            else:
                logits = self.read(fed, lengths, stop=stop, keep=1)
            q = distribution(fitted(logits[:, 0], vocabulary), sampling)
            tokens.append(draw(q, None if numbers is None else numbers[:, guess : guess + 1]).unsqueeze(1))
            if not isinstance(q, PointMasses):
                drawn_from.append(q)
        drafted = torch.cat(tokens, dim=1)
        return (drafted, torch.stack(drawn_from, dim=1)) if drawn_from else drafted

    def _open_ended(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        """The tensor, to whose length along that axis a compiled layer is not to be bound."""
        if self.fused:
            torch._dynamo.mark_dynamic(tensor, axis)
        return tensor

    def _opened(
        self, tokens: torch.Tensor, lengths: torch.Tensor, read: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Turn, dict[str, torch.Tensor]]:
        """What all layers share: x, slots [B, T], rotation, and masks by kind, unless attention goes by slots."""
        slots = lengths.unsqueeze(1) + torch.arange(tokens.shape[1], device=tokens.device)
        positions = slots.clamp(max=self._context - 1)  # padding may lie behind the context
        turn = None if self._rotary is None else self._rotary.at(positions)
        masks = {} if self._by_slots(tokens.shape[1]) else self._masks(slots, read)
        return self._network.embedded(tokens, positions), slots, turn, masks

    def _masks(self, slots: torch.Tensor, read: torch.Tensor) -> dict[str, torch.Tensor]:
        """[B, 1, T * groups, S] by kind of layer: the heads that share keys stand as so many queries of them."""
        groups = self._network.heads // self._network.kv_heads
        queries = slots.unsqueeze(2).expand(-1, -1, groups).reshape(len(slots), 1, -1, 1)
        seen = read <= queries
        near = seen if self._window is None else seen & (read > queries - self._window)
        if not self._kinds:
            return {"": added_to_scores(near, self._dtype)}
        return {kind: added_to_scores(near if kind == SLIDING else seen, self._dtype) for kind in self._kinds}

    def _layer(
        self,
        layer: Layer,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        turn: Turn,
        slots: torch.Tensor,
        read: torch.Tensor,
        mask: torch.Tensor | None,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        network = self._network
        attend = partial(self._folded, mask=mask)
        if self._by_slots(x.shape[1]):
            window = self._window if not self._kinds or layer.kind == SLIDING else None
            attend = partial(self._attended, slots=slots, window=window)
        store = RecordedStore(keys, values, slots, read.shape[0])
        return network.step(layer, x, delta, self._rotary, turn, store, 0, attend)

    def _by_slots(self, tokens: int) -> bool:
        """Whether so many tokens a row are attended by the project's own kernel, which needs no mask."""
        return self.kernels and tokens <= MOST_TOKENS

    def _attended(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """As `_folded`; it reads no more of the cache than there is."""
        return decode_attention(queries.transpose(1, 2), keys, values, slots, self._network.scale, window)

    def _folded(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attention of queries [B, T, heads, width] to [B, kv_heads, S, width]: [B, T, heads * width]."""
        rows, width, heads, size = queries.shape
        groups = heads // self._network.kv_heads
        folded = queries.view(rows, width, -1, groups, size).transpose(1, 2).reshape(rows, -1, width * groups, size)
        found = scaled_dot_product_attention(folded, keys, values, mask, scale=self._network.scale)
        return found.view(rows, -1, width, groups, size).transpose(1, 2).reshape(rows, width, heads * size)
