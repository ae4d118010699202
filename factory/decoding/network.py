"""The forward pass of the supported families, with as little Python and as few tensor operations as it takes.

transformers' modules serve training, hooks, ten kinds of attention; at batch 1 what they add on the
host costs more than a small model's arithmetic. Here a pass is a loop over layers of about fifteen
tensor operations each. It computes what the modules compute, on their own weights: in float64 the
two agree to rounding, for every family.

What it does not know: where weights come from (`wiring`), what multiplies them (`products`), where
keys and values belong (the cache).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol, cast

import torch
import torch.nn.functional as F

# x [B, T, in] and B * T -> [B, T, out]
Product = Callable[[torch.Tensor, int], torch.Tensor]
Pointwise = Callable[[torch.Tensor], torch.Tensor]
PRODUCTS = ("qkv", "attention_out", "ffn", "ffn_out")  # of a Layer
Mask = torch.Tensor | dict[str, torch.Tensor] | None
# queries [B, T, heads, width], keys and values [B, kv_heads, S, width] -> [B, T, heads * width]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class JoiningProduct(Protocol):
    """A product that can take in what stands around it, as one kernel: a norm before, a residual or a gate behind."""

    joins: bool  # True

    def __call__(
        self,
        x: torch.Tensor,
        rows: int,
        *,
        norm: torch.Tensor | None = None,
        eps: float = 0.0,
        residual: torch.Tensor | None = None,
        gated: bool = False,
    ) -> torch.Tensor:
        """x [B, T, in] -> [B, T, out], or half of that: silu(gate) * up of a joined projection."""


@dataclass(frozen=True, slots=True)
class RootMeanSquare:
    """x over its root mean square, weighted (arXiv 1910.07467); in float32 as transformers has it for every dtype."""

    weight: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> the same."""
        return root_mean_square(x, self.weight, self.eps)


def root_mean_square(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """What a RootMeanSquare computes: one made within a compiled function cannot be called there (torch 2.11)."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(weight.dtype)


class Store(Protocol):
    """Where keys and values are kept."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep a layer's new keys and values [B, kv_heads, T, width]; returns what is seen, [B, kv_heads, S, width]."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. Its query, key and value projections are one product, and so are gate and up."""

    attention_norm: Pointwise
    qkv: Product  # -> [B, T, (heads + 2 kv_heads) * width]: queries, keys, values
    query_norm: Pointwise | None  # of each head, before the rotation
    key_norm: Pointwise | None
    attention_out: Product
    ffn_norm: Pointwise
    ffn: Product  # -> [B, T, F], or [B, T, 2 F] where gated: gate, up
    ffn_out: Product
    kind: str  # of attention, where masks differ by kind

    @property
    def joins(self) -> bool:
        """Whether its products take in its norms, its residuals and its gate."""
        products = (getattr(self, name) for name in PRODUCTS)
        norms = (self.attention_norm, self.ffn_norm)
        return all(getattr(one, "joins", False) for one in products) and all(
            isinstance(one, RootMeanSquare) for one in norms
        )


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotation of queries and keys by position: x * cos + swapped(x) * sin, where swapped exchanges each pair.

    `cos` and `sin` are [positions, width]; behind the `rotated` channels of a head they are 1 and 0,
    and the first half of a rotation's sin has the sign that rotate_half has (arXiv 2104.09864).
    """

    cos: torch.Tensor
    sin: torch.Tensor
    rotated: int

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin at positions [1 or B, T], [1 or B, T, 1, width] each."""
        return self.cos[positions].unsqueeze(2), self.sin[positions].unsqueeze(2)

    def swapped(self, x: torch.Tensor) -> torch.Tensor:
        """Channel i beside channel i + rotated / 2: [..., width] -> the same."""
        half = self.rotated // 2
        if self.rotated == x.shape[-1]:
            return x.roll(half, -1)
        parts = (x[..., half : self.rotated], x[..., :half], x[..., self.rotated :])
        return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class Network:
    """A decoder-only transformer as data: tables, layers, and how its parts are joined."""

    embedding: torch.Tensor  # [V, D]
    position_table: torch.Tensor | None  # [positions, D], row 0 for position 0; None: rotary
    layers: tuple[Layer, ...]
    final_norm: Pointwise
    head: Product
    heads: int
    kv_heads: int
    width: int  # of a head
    scale: float  # of the scores
    activation: Pointwise
    gated: bool
    parallel: bool  # attention and FFN read the same residual stream (GPT-NeoX)
    traceable: bool  # by a compiler: every product is an operator of torch, none a module of gptqmodel

    @cached_property
    def joined(self) -> bool:
        """Whether layers run by products that take in their norms, residuals and gates."""
        gate = self.gated and self.activation is F.silu
        return gate and not self.parallel and all(layer.joins for layer in self.layers)

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        rotary: Rotary | None,
        mask: Mask,
        cache: Store,
        keep: int | torch.Tensor,
    ) -> torch.Tensor:
        """Logits [B, kept, V] of tokens [B, T] at positions [1 or B, T]; the cache knows where they are stored.

        `mask` is added to the scores, [1 or B, 1, T, S]; without one a query sees all that the cache
        hands out where T is 1, and a prompt is read causally where T is larger. `keep` as
        transformers' logits_to_keep.
        """
        x = self.embedded(tokens, positions)
        turn = rotary.at(positions) if rotary is not None else None
        delta: torch.Tensor | None = None
        for index, layer in enumerate(self.layers):
            seen = mask[layer.kind] if isinstance(mask, dict) else mask
            x, delta = self.step(layer, x, delta, rotary, turn, cache, index, partial(self._attend, mask=seen))
        return self.logits(x, delta, keep)

    def embedded(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What the first layer reads, [B, T, D]."""
        x = F.embedding(tokens, self.embedding)
        return x if self.position_table is None else x + F.embedding(positions, self.position_table)

    def logits(self, x: torch.Tensor, delta: torch.Tensor | None, keep: int | torch.Tensor) -> torch.Tensor:
        """[B, kept, V] of what the last layer leaves."""
        if delta is not None:
            x = x + delta
        if isinstance(keep, torch.Tensor):
            x = x[:, keep]
        elif keep and x.shape[1] > keep:
            x = x[:, -keep:]
        return self.head(self.final_norm(x), x.shape[0] * x.shape[1])

    def step(
        self,
        layer: Layer,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        rotary: Rotary | None,
        turn: tuple[torch.Tensor, torch.Tensor] | None,
        cache: Store,
        index: int,
        attend: Attend,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One layer on the residual stream x + delta, [B, T, D] each; returns the stream and what is to be added to it.

        The sum is left to whoever reads it next: where layers are compiled one by one, it then is one kernel with the
        norm behind it. `turn` is the rotation at the tokens' positions, `index` the layer's place in the cache.
        """
        rows, width = x.shape[:2]
        count = rows * width
        if delta is not None:
            x = x + delta
        if self.joined:
            return self._joined_step(layer, x, rotary, turn, cache, index, attend), None
        qkv = layer.qkv(layer.attention_norm(x), count)
        queries, keys, values = self._turned(layer, qkv.view(rows, width, -1, self.width), rotary, turn)
        attended = layer.attention_out(
            attend(queries, *cache.update(keys.transpose(1, 2), values.transpose(1, 2), index)), count
        )
        before = x
        x = x + attended
        hidden = layer.ffn(layer.ffn_norm(before if self.parallel else x), count)
        if self.gated:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = self.activation(gate).mul_(up)
        else:
            hidden = self.activation(hidden)
        return x, layer.ffn_out(hidden, count)

    def _joined_step(
        self,
        layer: Layer,
        x: torch.Tensor,
        rotary: Rotary | None,
        turn: tuple[torch.Tensor, torch.Tensor] | None,
        cache: Store,
        index: int,
        attend: Attend,
    ) -> torch.Tensor:
        """The same, [B, T, D] -> [B, T, D], by products that take in what stands around them."""
        rows, width = x.shape[:2]
        count = rows * width
        qkv, out, ffn, ffn_out = (
            cast(JoiningProduct, one) for one in (layer.qkv, layer.attention_out, layer.ffn, layer.ffn_out)
        )
        before, behind = cast(RootMeanSquare, layer.attention_norm), cast(RootMeanSquare, layer.ffn_norm)
        projected = qkv(x, count, norm=before.weight, eps=before.eps)
        queries, keys, values = self._turned(layer, projected.view(rows, width, -1, self.width), rotary, turn)
        attended = attend(queries, *cache.update(keys.transpose(1, 2), values.transpose(1, 2), index))
        x = out(attended, count, residual=x)
        hidden = ffn(x, count, norm=behind.weight, eps=behind.eps, gated=True)
        return ffn_out(hidden, count, residual=x)

    def _turned(
        self,
        layer: Layer,
        qkv: torch.Tensor,  # [B, T, heads + 2 kv_heads, width]
        rotary: Rotary | None,
        turn: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [B, T, heads, width], [B, T, kv_heads, width] twice
        """Queries and keys, normed and rotated, and values."""
        heads, kv_heads = self.heads, self.kv_heads
        turned, values = torch.split(qkv, [heads + kv_heads, kv_heads], dim=2)
        if layer.query_norm is not None and layer.key_norm is not None:
            queries, keys = torch.split(turned, [heads, kv_heads], dim=2)
            turned = torch.cat((layer.query_norm(queries), layer.key_norm(keys)), dim=2)
        if rotary is not None and turn is not None:
            turned = torch.addcmul(turned * turn[0], rotary.swapped(turned), turn[1])
        queries, keys = torch.split(turned, [heads, kv_heads], dim=2)
        return queries, keys, values

    def _attend(
        self,
        queries: torch.Tensor,  # [B, T, heads, width]
        keys: torch.Tensor,  # [B, kv_heads, S, width]
        values: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:  # [B, T, heads * width]
        rows, width = queries.shape[:2]
        heads, kv_heads = self.heads, self.kv_heads
        if width == 1:  # the heads that share keys stand as so many queries of them: no copies, no repetition
            queries = queries.reshape(rows, kv_heads, heads // kv_heads, self.width)
            found = F.scaled_dot_product_attention(queries, keys, values, mask, scale=self.scale)
            return found.view(rows, 1, heads * self.width)
        found = F.scaled_dot_product_attention(
            queries.transpose(1, 2),
            keys,
            values,
            mask,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=heads != kv_heads,
        )
        return found.transpose(1, 2).reshape(rows, width, heads * self.width)
