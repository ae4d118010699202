"""How near the drafter is to the target on text that neither was trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from factory.data.blocks import TextBlocks
from factory.distillation.rows import lay
from factory.limits import JUDGED_ROWS
from factory.teaching.teacher import Teacher
from factory.tensors.divergences import term


class Judge:
    """Mean forward KL (nats) and overlap, sum_v min(p, q), on the answers of held-out rows.

    Overlap is the probability that a guess is accepted (Leviathan et al., arXiv 2211.17192, cor. 3.6). Both at
    the temperature that is trained at. From a teacher cache the overlap errs by its `alpha_bound` of these rows.
    """

    def __init__(self, held_out: TextBlocks | None, teacher: Teacher | None, batch: int, device: torch.device) -> None:
        rows = range(min(JUDGED_ROWS, len(held_out))) if held_out is not None else range(0)
        self._parts = []
        for start in range(0, len(rows), batch):
            chosen = rows[start : start + batch]
            assert held_out is not None and teacher is not None
            laid = lay(held_out.rows(chosen)).to(device)
            if len(laid.where):
                self._parts.append((laid, teacher.predictions(chosen)))
        self._count = sum(len(laid.where) for laid, _ in self._parts)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to judge by."""
        return self._count == 0

    @torch.no_grad()
    def __call__(self, student: nn.Module) -> dict[str, Any] | None:
        """Means over tokens; None where nothing is held out."""
        if self.empty:
            return None
        divergence = shared = 0.0
        terms = [term("forward_kl")]
        for laid, predictions in self._parts:
            weights = torch.ones(len(laid.where), device=laid.where.device)
            found = student(laid, predictions, weights, terms, with_overlap=True)
            divergence += found.values["forward_kl"]
            shared += found.overlap
        return {"forward_kl": divergence / self._count, "overlap": shared / self._count, "judged_tokens": self._count}
