"""The teacher's predictions. Online: the target runs beside the student, nothing is stored."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from factory.models import hidden_states


class OnlineTeacher:
    """The target as teacher: its hidden states once per batch, its logits chunk by chunk on demand."""

    def __init__(self, target: PreTrainedModel) -> None:
        self._target = target
        self.dtype = target.dtype
        self.head = target.get_output_embeddings()  # hidden [C, D] -> logits [C, V]

    @torch.no_grad()
    def hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # [B, T], [B, T] -> [N, D]
        """The target's final hidden states at the selected positions."""
        return hidden_states(self._target, ids, mask)
