"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): trained beside a matrix, then merged into it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

SCALE = 2.0  # alpha / rank, as usual: alpha is twice the rank


class _LowRank(nn.Module):
    """W -> W + SCALE * (up @ down). `up` begins as 0, so that nothing changes at first."""

    def __init__(self, rows: int, columns: int, rank: int, seed: int, like: torch.Tensor) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        down = torch.randn((rank, columns), generator=generator) / rank**0.5
        self.down = nn.Parameter(down.to(like))
        self.up = nn.Parameter(like.new_zeros((rows, rank)))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + SCALE * (self.up @ self.down)


def add_adapters(layers: nn.Module, rank: int, seed: int) -> int:
    """Adapters on every matrix within the layers, which itself is frozen; returns how many."""
    found = [module for module in layers.modules() if isinstance(module, nn.Linear | Conv1D)]
    for number, module in enumerate(found):
        weight = module.weight
        weight.requires_grad_(False)
        rows, columns = weight.shape
        adapter = _LowRank(rows, columns, rank, (seed * 1_000_003 + number) % 2**63, weight)
        parametrize.register_parametrization(module, "weight", adapter)
    return len(found)


def merge_adapters(layers: nn.Module) -> None:
    """Adapters added to their matrices, and gone."""
    for module in list(layers.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
