from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from factory.distillation.optimizers import learning_rate, optimizers_of

from .conftest import stage_of


def test_the_learning_rate_warms_up_and_decays() -> None:
    stage = stage_of(lr=1.0, warmup=0.1, final_lr=0.1)
    rates = [learning_rate(stage, step, 100) for step in range(100)]
    assert rates[0] < rates[5] < rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 <= rates[-1] < 0.11


def test_muon_takes_the_matrices_of_layers_and_adamw_all_else(tiny: Callable[..., PreTrainedModel]) -> None:
    drafter = tiny(layers=2, dtype=torch.float32)
    adamw, muon = optimizers_of(stage_of(optimizer="muon"), drafter)
    held = {id(weight) for weight in muon.param_groups[0]["params"]}
    others = {id(weight) for weight in adamw.param_groups[0]["params"]}
    assert not held & others
    for name, weight in drafter.named_parameters():
        in_layer = any(part.isdigit() for part in name.split("."))
        assert (id(weight) in held) == (in_layer and weight.ndim == 2), name
        assert (id(weight) in held) != (id(weight) in others)
    (alone,) = optimizers_of(stage_of(), drafter)
    assert len(alone.param_groups[0]["params"]) == len(list(drafter.parameters()))
