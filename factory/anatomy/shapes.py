"""What a model is like (Shape) and what stays of it (Edit), as frozen data.

Both are read from or applied to a config alone: no tensor is touched here, so that forecasts
and `factory check` need neither weights nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The sizes that decide a decoder's cost. Widths in elements, counts in pieces; exact for every family."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    ffn_matrices: int  # 3 where the FFN is gated (Llama), 2 where it is not (GPT-2)
    fused_qkv: bool  # query, key and value are one matrix
    embedding_rows: int
    head_rows: int
    positions: int  # rows of a learned position table; 0 with rotary positions
    context: int  # tokens that prompt and output together may have
    tied: bool  # head and embedding are one tensor
    # Biases and norm weights of each width that a layer has; `final`: of `hidden`, behind the last layer.
    hidden_vectors: int
    query_vectors: int
    kv_vectors: int
    head_vectors: int
    ffn_vectors: int
    final_vectors: int
    bits: float  # per weight of the layers' matrices, what quantisation adds to them included
    table_bits: float  # per weight of everything else

    @property
    def query_width(self) -> int:
        """Rows of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of every matrix of one layer."""
        if self.fused_qkv:
            projections = [(self.hidden, self.query_width + 2 * self.kv_width)]
        else:
            projections = [(self.hidden, self.query_width), (self.hidden, self.kv_width), (self.hidden, self.kv_width)]
        widen = [(self.hidden, self.ffn)] * (self.ffn_matrices - 1)
        return [*projections, (self.query_width, self.hidden), *widen, (self.ffn, self.hidden)]

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices."""
        return sum(inputs * outputs for inputs, outputs in self.layer_matrices)

    @property
    def layer_vector_parameters(self) -> int:
        """Biases and norm weights of one layer."""
        return (
            self.hidden_vectors * self.hidden
            + self.query_vectors * self.query_width
            + self.kv_vectors * self.kv_width
            + self.head_vectors * self.head_dim
            + self.ffn_vectors * self.ffn
        )

    @property
    def table_parameters(self) -> int:
        """Everything that is no matrix of a layer: embedding, positions, head where it is its own tensor, vectors."""
        head = 0 if self.tied else self.head_rows * self.hidden
        vectors = self.layers * self.layer_vector_parameters + self.final_vectors * self.hidden
        return (self.embedding_rows + self.positions) * self.hidden + head + vectors

    @property
    def parameters(self) -> int:
        """All weights, as transformers' `num_parameters()` counts those of the unquantised model."""
        return self.layers * self.layer_parameters + self.table_parameters

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights, on disk or in memory."""
        return (self.layers * self.layer_parameters * self.bits + self.table_parameters * self.table_bits) / 8

    @property
    def step_bytes(self) -> float:
        """Bytes streamed from memory for one token at batch 1: every layer, and the head, once."""
        vectors = self.layers * self.layer_vector_parameters + self.final_vectors * self.hidden
        matrices = self.layers * self.layer_parameters * self.bits
        return (matrices + (self.head_rows * self.hidden + vectors) * self.table_bits) / 8

    @property
    def step_operations(self) -> int:
        """Multiplications and additions of one token's matrix products (attention over the past left out)."""
        return 2 * (self.layers * self.layer_parameters + self.head_rows * self.hidden)


@dataclass(frozen=True)
class Edit:
    """What stays. None means everything. Widths are per layer that stays, in the order of `keep_layers`.

    keep_heads lists query heads; their key and value heads follow. Every layer keeps equally many of
    each, since transformers reads one width from the config for all of them.
    """

    keep_layers: tuple[int, ...] | None = None
    keep_ffn: tuple[tuple[int, ...], ...] | None = None  # [L][channels that stay]
    keep_heads: tuple[tuple[int, ...], ...] | None = None  # [L][query heads that stay]
    keep_kv_heads: tuple[tuple[int, ...], ...] | None = None  # [L][key and value heads that stay]
