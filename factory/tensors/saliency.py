"""How much a part of a model matters: from its activations, or from its weights alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def angular_distance(
    before: torch.Tensor,  # [B, T, D] residual stream entering a run of layers
    after: torch.Tensor,  # [B, T, D] leaving it
    mask: torch.Tensor,  # [B, T] 1 where the position holds a token
) -> torch.Tensor:  # [] sum over positions, each in [0, 1]
    """Sum over real positions of arccos(cos(before, after)) / pi (Gromov et al., arXiv 2403.17887, eq. 8).

    They look at a text's last token only; here every token counts, since a drafter guesses them all.
    """
    cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1).clamp(-1, 1)
    return (torch.arccos(cosine) / math.pi * mask).sum()


def channel_contribution(
    energy: torch.Tensor,  # [F] sum over positions of the channel's squared activation
    out: torch.Tensor,  # [D, F] the projection that takes the channels
) -> torch.Tensor:  # [F]
    """Sum over positions of |a_c W_c|^2: by how much the FFN's output would move without channel c alone.

    Wanda's |activation| * |weight| (arXiv 2306.11695), summed over a channel's outgoing weights.
    """
    return energy.double() * out.double().square().sum(0)


def head_contribution(
    gram: torch.Tensor,  # [H, d, d] sum over positions of z_h z_h^T, z_h being the output of head h
    out: torch.Tensor,  # [D, H * d] the projection that takes the heads' outputs
) -> torch.Tensor:  # [H]
    """Sum over positions of |W_h z_h|^2 = tr(W_h G_h W_h^T): by how much attention would move without head h alone.

    The same measure as `channel_contribution`, so that a head is one wide channel.
    """
    heads, width, _ = gram.shape
    slices = out.double().view(out.shape[0], heads, width).transpose(0, 1)  # [H, D, d]
    return torch.einsum("hij,hjk,hik->h", slices, gram.double(), slices)


def magnitude(weights: Sequence[torch.Tensor]) -> torch.Tensor:  # [channels, ...] each -> [channels]
    """Sum of squared weights over the given tensors, channel by channel; a control, blind to what is computed.

    The order is that of torch-pruning's GroupMagnitudeImportance with p = 2. Every tensor has the
    channels on its first axis.
    """
    total = torch.zeros(weights[0].shape[0], dtype=torch.float64)
    for weight in weights:
        total += weight.detach().double().flatten(1).square().sum(1).cpu()
    return total
