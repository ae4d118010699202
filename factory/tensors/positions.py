"""A divergence at every position, without gradients: which of them are worth learning from."""

from __future__ import annotations

import torch
from torch import Tensor

from factory.tensors.divergences import Divergence
from factory.tensors.fused import CHUNK_BYTES
from factory.tensors.predictions import Predictions


@torch.no_grad()
def divergence_at(
    divergence: Divergence,
    hidden: Tensor,  # [N, D] student's last hidden states
    weight: Tensor,  # [V, D] of its head
    bias: Tensor | None,  # [V]
    predictions: Predictions,  # the teacher's, at the same positions
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:  # [N]
    """The value at each position, at the predictions' temperature; [chunk, V] exists at a time."""
    precise = torch.promote_types(hidden.dtype, torch.float32)
    rows = max(1, chunk_bytes // (len(weight) * precise.itemsize))
    found = [torch.zeros(0, dtype=precise, device=hidden.device)]
    for start in range(0, len(hidden), rows):
        stop = min(start + rows, len(hidden))
        logits = torch.nn.functional.linear(hidden[start:stop], weight, bias).to(precise)
        log_q = logits.div_(predictions.temperature).log_softmax(-1)
        log_p, ids, shift = predictions.outcomes(start, stop)
        if ids is not None and shift is not None:
            log_q = log_q.gather(1, ids).add_(shift)
        elif ids is not None:
            rest = log_q.exp().scatter_(1, ids, 0.0).sum(-1, keepdim=True).clamp_(min=torch.finfo(precise).tiny)
            log_q = torch.cat((log_q.gather(1, ids), rest.log_()), -1)
        found.append(divergence(log_p.to(precise), log_q)[0])
    return torch.cat(found)
