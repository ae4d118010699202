"""What a model is like (Shape) and what stays of it (Edit), as frozen data.

Both are read from or applied to a config alone: no tensor is touched here, so that forecasts
and `factory check` need neither weights nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The sizes that decide a decoder's cost. Widths in elements, counts in pieces."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    ffn_matrices: int  # 3 where the FFN is gated (Llama), 2 where it is not (GPT-2)
    embedding_rows: int
    head_rows: int
    positions: int  # rows of a learned position table; 0 with rotary positions
    tied: bool  # head and embedding are one tensor
    bits: float  # per weight of the layers

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices (norms and biases, under 1 %, left out)."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + self.ffn_matrices * self.hidden * self.ffn

    @property
    def parameters(self) -> int:
        """All matrix weights: layers, embedding, position table, and the head where it is its own tensor."""
        head = 0 if self.tied else self.head_rows * self.hidden
        tables = (self.embedding_rows + self.positions) * self.hidden
        return self.layers * self.layer_parameters + tables + head

    @property
    def step_bytes(self) -> float:
        """Bytes streamed from memory for one token at batch 1: every layer, and the head, once."""
        return (self.layers * self.layer_parameters + self.head_rows * self.hidden) * self.bits / 8


@dataclass(frozen=True)
class Edit:
    """What stays. None means everything."""

    keep_layers: tuple[int, ...] | None = None
