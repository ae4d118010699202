"""The teacher's predictions: its hidden states, of which its head makes logits chunk by chunk on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from factory.data import TextBlocks
from factory.limits import REMEMBERED_BYTES
from factory.models import hidden_states


class Teacher:
    """The target as teacher of one text.

    With several epochs it reads the text once and remembers its hidden states, where they fit: for a
    shallow student that is most of the arithmetic. They are always made in the same batches, those of
    the text's order, so that a resumed training meets the very same bits.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        text: TextBlocks,
        *,
        epochs: float,
        batch: int,
        progress: Callable[[int, int, str], None],
    ) -> None:
        self._target, self._text = target, text
        self.head = target.get_output_embeddings()  # hidden [C, D] -> logits [C, V]
        self._remembered: list[torch.Tensor] = []  # per row [answer tokens, D]
        size = int(text.answer_mask.sum()) * target.config.hidden_size * target.dtype.itemsize
        if epochs > 1 and size <= REMEMBERED_BYTES:
            for start in range(0, len(text), batch):
                rows = range(start, min(start + batch, len(text)))
                counts = text.rows(rows).answer_mask.sum(-1).tolist()
                self._remembered += torch.split(self._read(rows), counts)
                progress(len(self._remembered), len(text), "the target reads")

    def hidden(self, rows: Sequence[int]) -> torch.Tensor:  # [N, D]
        """The target's final hidden states at the answer positions of those rows, row after row."""
        if self._remembered:
            return torch.cat([self._remembered[row] for row in rows])
        return self._read(rows)

    @torch.no_grad()
    def _read(self, rows: Sequence[int]) -> torch.Tensor:
        chosen = self._text.rows(rows)
        device = self._target.device
        return hidden_states(self._target, chosen.ids.to(device), chosen.answer_mask.to(device))
