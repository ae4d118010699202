"""bfloat16 products over float32 master weights; a step's tensors lie on one device."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import get_args

import pytest
import torch
from transformers import PreTrainedModel

from factory.distillation.rows import lay
from factory.distillation.settings import LossKind
from factory.distillation.student import Chosen, Student
from factory.stages import Given
from factory.tensors.divergences import term
from factory.tensors.predictions import FullPredictions, Predictions, TopPredictions

from .conftest import stage_of, text

Maker = Callable[..., PreTrainedModel]
HALF = torch.bfloat16


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """What the layers' products came out in, while gradients are wanted."""
    found: list[torch.dtype] = []
    plain = torch.nn.Linear.forward

    def forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        made = plain(self, x)
        if torch.is_grad_enabled() and self.weight.requires_grad:
            found.append(made.dtype)
        return made

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    return found


@pytest.mark.parametrize(
    ("fields", "half", "products"),
    [
        ({}, False, torch.float32),
        ({}, True, HALF),
        ({"precision": "bfloat16"}, False, HALF),
        ({"precision": "float32"}, True, torch.float32),
    ],
)
def test_products_run_as_precision_says(
    families: dict[str, Maker],
    given_of: Callable[..., Given],
    seen: list[torch.dtype],
    fields: dict[str, str],
    half: bool,
    products: torch.dtype,
) -> None:
    tiny = families["llama"]
    target, drafter = tiny(dtype=torch.float32), tiny(layers=2, seed=1, dtype=torch.float32)
    stage_of(epochs=1, **fields).apply(drafter, given_of(target, half=half))
    assert set(seen) == {products}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_master_weights_and_moments_stay_float32(
    families: dict[str, Maker], given_of: Callable[..., Given], optimizer: str
) -> None:
    """Steps so small that weights kept in bfloat16 would never move."""
    tiny = families["llama"]
    target, drafter = tiny(dtype=torch.float32), tiny(layers=2, seed=1, dtype=torch.float32)
    with torch.no_grad():
        for weight in drafter.parameters():
            weight.copy_(weight.to(HALF))
    before = {name: weight.clone() for name, weight in drafter.named_parameters()}
    given = given_of(target, half=True)
    fields = {"epochs": 4, "lr": 1e-6, "warmup": 0.0, "checkpoint_every": 1, "keep": "last", "optimizer": optimizer}
    facts = stage_of(**fields).apply(drafter, given)
    assert facts["steps"] == 12
    matrices = {name: weight for name, weight in drafter.named_parameters() if "proj" in name}
    for name, weight in matrices.items():
        moved = weight - before[name]
        assert weight.dtype == torch.float32
        assert (moved != 0).float().mean() > 0.9
        large = before[name].abs() > 2.0**-8  # there 1e-6 times 12 is far below half a step of bfloat16
        assert torch.equal(weight.to(HALF)[large], before[name].to(HALF)[large])
    state = torch.load(given.checkpoint / "checkpoint.pt", weights_only=True)
    kept = [
        *state["model"].values(),
        *(part for each in state["optimizers"]["state"].values() for part in each.values()),
    ]
    assert {tensor.dtype for tensor in kept} == {torch.float32}


def test_half_precision_learns_what_float32_does(families: dict[str, Maker], given_of: Callable[..., Given]) -> None:
    tiny = families["llama"]
    target = tiny(dtype=torch.float32)
    found = []
    for name in ("float32", "bfloat16"):
        drafter = tiny(layers=2, seed=1, dtype=torch.float32)
        fields = {"epochs": 10, "lr": 3e-3, "precision": name}
        found.append(stage_of(**fields).apply(drafter, given_of(target, name=name)))
    whole, half = found
    assert math.isclose(half["losses"][0], whole["losses"][0], rel_tol=0.02)
    assert half["losses"] != whole["losses"]
    gained = whole["held_out_after"]["overlap"] - whole["held_out_before"]["overlap"]
    assert half["held_out_after"]["overlap"] - half["held_out_before"]["overlap"] > 0.7 * gained


@pytest.mark.parametrize("kind", ["full", "one outcome for all others", "drawn for all others"])
@pytest.mark.parametrize("selected", [False, True])
def test_a_pass_asks_nothing_of_the_host(
    families: dict[str, Maker], kind: str, selected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, which holds no values: whoever reads one, or brings a tensor of the CPU's, fails.

    Packed rows: of others transformers itself asks whether they are.
    """
    # that device knows no autocast, not even how to leave it off
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    device = torch.device("meta")
    drafter = families["llama"](layers=2, dtype=torch.float32).to(device)
    laid = lay(text(6, 0), pack=32).to(device)
    count = len(laid.where)
    weights: torch.Tensor | Chosen = torch.full((count,), 1 / count, device=device)
    if selected:
        weights = Chosen(torch.zeros(count, device=device), 0.5, 1.0)
    predictions: Predictions
    if kind == "full":
        head = torch.zeros(96, 32, device=device)
        predictions = FullPredictions(torch.zeros(count, 32, device=device), lambda x: x @ head.t())
    else:
        ids = torch.zeros(count, 12, dtype=torch.long, device=device)
        kept = torch.zeros(count, 12, dtype=torch.float16, device=device)
        drawn = 4 if kind == "drawn for all others" else 0
        predictions = TopPredictions(ids, kept, torch.zeros(count, device=device), 1.0, drawn)
    found = Student(drafter)(laid, predictions, weights, [term(each) for each in get_args(LossKind)])
    found.loss.backward()
    assert {weight.grad.device for weight in drafter.parameters() if weight.grad is not None} == {device}
    with pytest.raises(RuntimeError, match="meta"):
        found.values  # noqa: B018 - the sums are waited for only where they are asked for
