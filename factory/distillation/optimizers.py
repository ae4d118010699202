"""Learning rate and optimizers."""

from __future__ import annotations

import math

import torch
from transformers import PreTrainedModel

from factory.distillation.settings import Distillation


def learning_rate(stage: Distillation, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `final_lr * lr`."""
    warmup_steps = round(stage.warmup * steps)
    if step < warmup_steps:
        return stage.lr * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return stage.lr * (stage.final_lr + (1 - stage.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def optimizers_of(stage: Distillation, drafter: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """AdamW for all that is trained; or Muon for matrices within layers and AdamW for everything else.

    Muon (Jordan et al. 2024) orthogonalises a matrix's momentum; its step is scaled to AdamW's usual size
    (`match_rms_adamw`, Liu et al., arXiv 2502.16982), so that one learning rate serves both.
    """
    trained = {name: weight for name, weight in drafter.named_parameters() if weight.requires_grad}
    matrices: list[torch.Tensor] = []
    if stage.optimizer == "muon":
        tables = {id(table.weight) for table in _tables(drafter)}
        matrices = [weight for weight in trained.values() if weight.ndim == 2 and id(weight) not in tables]
    held = {id(weight) for weight in matrices}
    others = [weight for weight in trained.values() if id(weight) not in held]
    made: list[torch.optim.Optimizer] = []
    if others:
        made.append(torch.optim.AdamW(others, lr=stage.lr, weight_decay=stage.weight_decay, fused=True))
    if matrices:
        muon = torch.optim.Muon(matrices, lr=stage.lr, weight_decay=stage.weight_decay, adjust_lr_fn="match_rms_adamw")
        made.append(muon)
    return made


def _tables(drafter: PreTrainedModel) -> list[torch.nn.Module]:
    positions = [module for module in drafter.modules() if isinstance(module, torch.nn.Embedding)]
    return [*positions, drafter.get_output_embeddings()]
