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
from typing import Protocol

import torch
import torch.nn.functional as F

# x [B, T, in] and B * T -> [B, T, out]
Product = Callable[[torch.Tensor, int], torch.Tensor]
Pointwise = Callable[[torch.Tensor], torch.Tensor]
Mask = torch.Tensor | dict[str, torch.Tensor] | None


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


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotation of queries and keys by position: x * cos + swapped(x) * sin, where swapped exchanges each pair.

    `cos` and `sin` are [positions, width]; behind the `rotated` channels of a head they are 1 and 0,
    and the first half of a rotation's sin has the sign that rotate_half has (arXiv 2104.09864).
    """

    cos: torch.Tensor
    sin: torch.Tensor
    rotated: int

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
        rows, width = tokens.shape
        count = rows * width
        x = F.embedding(tokens, self.embedding)  # [B, T, D]
        if self.position_table is not None:
            x = x + F.embedding(positions, self.position_table)
        turn = None
        if rotary is not None:
            turn = rotary.cos[positions].unsqueeze(2), rotary.sin[positions].unsqueeze(2)  # [1 or B, T, 1, width]
        activation = self.activation
        for index, layer in enumerate(self.layers):
            seen = mask[layer.kind] if isinstance(mask, dict) else mask
            qkv = layer.qkv(layer.attention_norm(x), count)
            qkv = qkv.view(rows, width, self.heads + 2 * self.kv_heads, self.width)
            attended = layer.attention_out(self._attend(layer, qkv, rotary, turn, seen, cache, index), count)
            before = x
            x = x + attended
            hidden = layer.ffn(layer.ffn_norm(before if self.parallel else x), count)
            if self.gated:
                gate, up = hidden.chunk(2, dim=-1)
                hidden = activation(gate).mul_(up)
            else:
                hidden = activation(hidden)
            x = x + layer.ffn_out(hidden, count)
        if isinstance(keep, torch.Tensor):
            x = x[:, keep]
        elif keep and width > keep:
            x = x[:, -keep:]
        return self.head(self.final_norm(x), x.shape[0] * x.shape[1])

    def _attend(
        self,
        layer: Layer,
        qkv: torch.Tensor,  # [B, T, heads + 2 kv_heads, width]
        rotary: Rotary | None,
        turn: tuple[torch.Tensor, torch.Tensor] | None,
        mask: torch.Tensor | None,
        cache: Store,
        index: int,
    ) -> torch.Tensor:  # [B, T, heads * width]
        rows, width = qkv.shape[:2]
        heads, kv_heads = self.heads, self.kv_heads
        turned, values = torch.split(qkv, [heads + kv_heads, kv_heads], dim=2)
        if layer.query_norm is not None and layer.key_norm is not None:
            queries, keys = torch.split(turned, [heads, kv_heads], dim=2)
            turned = torch.cat((layer.query_norm(queries), layer.key_norm(keys)), dim=2)
        if rotary is not None and turn is not None:
            turned = torch.addcmul(turned * turn[0], rotary.swapped(turned), turn[1])
        queries, keys = torch.split(turned, [heads, kv_heads], dim=2)
        all_keys, all_values = cache.update(keys.transpose(1, 2), values.transpose(1, 2), index)
        if width == 1:  # the heads that share keys stand as so many queries of them: no copies, no repetition
            queries = queries.reshape(rows, kv_heads, heads // kv_heads, self.width)
            found = F.scaled_dot_product_attention(queries, all_keys, all_values, mask, scale=self.scale)
            return found.view(rows, 1, heads * self.width)
        found = F.scaled_dot_product_attention(
            queries.transpose(1, 2),
            all_keys,
            all_values,
            mask,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=heads != kv_heads,
        )
        return found.transpose(1, 2).reshape(rows, width, heads * self.width)
