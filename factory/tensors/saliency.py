"""How much a part of a model matters, from its activations."""

from __future__ import annotations

import torch


def block_influence(
    before: torch.Tensor,  # [B, T, D] residual stream entering a layer
    after: torch.Tensor,  # [B, T, D] leaving it
    mask: torch.Tensor,  # [B, T] 1 where the position holds a token
) -> torch.Tensor:  # [] sum over positions of 1 - cos
    """Sum over real positions of 1 - cos(before, after) (ShortGPT, arXiv 2403.03853, eq. 1).

    A sum, not a mean: the caller adds batches up and divides once by the number of positions.
    """
    cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
    return ((1 - cosine) * mask).sum()
