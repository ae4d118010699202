"""The drafter while it is trained: what of it moves, and its forward pass down to the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from factory.anatomy.families import anatomy_of
from factory.distillation.adapters import add_adapters, merge_adapters
from factory.distillation.rows import Laid, packed_mask
from factory.distillation.settings import Distillation, kept_of
from factory.tensors.divergences import Term, forward_kl
from factory.tensors.fused import FusedLoss, fused_loss
from factory.tensors.positions import divergence_at
from factory.tensors.predictions import Predictions


@dataclass(frozen=True)
class Chosen:
    """Learn only from the share of a pass's positions where a reference gained the most (AdaSPEC, arXiv 2510.19779)."""

    reference: torch.Tensor  # [N] forward KL of the reference there, nats
    keep: float
    scale: float  # weight of each position that stays


class Student(nn.Module):
    """The drafter with the loss behind its head: one module with one forward, as DDP and FSDP2 want it."""

    def __init__(self, drafter: PreTrainedModel) -> None:
        super().__init__()
        self.drafter = drafter

    def forward(
        self,
        laid: Laid,
        predictions: Predictions | None,
        weights: torch.Tensor | Chosen,  # [N] of each position
        terms: Sequence[Term],
        with_overlap: bool = False,
    ) -> FusedLoss:
        """The loss, and each term's weighted sum over positions."""
        hidden = answer_states(self.drafter, laid)
        head = self.drafter.get_output_embeddings()
        bias = getattr(head, "bias", None)
        if isinstance(weights, Chosen):
            assert predictions is not None
            weights = _weights_of(weights, hidden, head.weight, bias, predictions)
        return fused_loss(
            hidden,
            head.weight,
            bias,
            predictions,
            labels=laid.labels,
            position_weights=weights,
            terms=terms,
            with_overlap=with_overlap,
        )


@torch.no_grad()
def _weights_of(
    chosen: Chosen, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, predictions: Predictions
) -> torch.Tensor:  # [N]
    """`scale` at the positions that are learned from, 0 at the others. A tie goes to the earlier one."""
    now = divergence_at(forward_kl, hidden, weight, bias, predictions)
    stay = kept_of(chosen.keep, len(now))
    gains = (now - chosen.reference).sort(descending=True, stable=True).indices[:stay]
    weights = torch.zeros_like(now)
    weights[gains] = chosen.scale
    return weights


def answer_states(model: PreTrainedModel, laid: Laid) -> torch.Tensor:  # [N, D]
    """Final hidden states, after the last norm, where answers are predicted."""
    mask = packed_mask(model, laid.positions) if laid.packed else None
    states: torch.Tensor = model.base_model(
        input_ids=laid.ids, position_ids=laid.positions, attention_mask=mask, use_cache=False
    ).last_hidden_state
    return states.flatten(0, 1)[laid.where]


def layers_of(model: PreTrainedModel) -> nn.Module:
    """The list of its layers."""
    layers: nn.Module = model.get_submodule(anatomy_of(model.config.to_dict()).layers)
    return layers


def prepare(stage: Distillation, drafter: PreTrainedModel, seed: int) -> None:
    """Says what of the drafter moves, in place: all but what is frozen; with `lora`, adapters in place of matrices.

    The drafter stays in eval mode: no dropout. A head that is tied to the embedding is frozen with it.
    """
    drafter.float()
    if stage.untie_head:
        untie(drafter)
    drafter.requires_grad_(True)
    layers = layers_of(drafter)
    if stage.lora is not None:
        drafter.requires_grad_(False)
        add_adapters(layers, stage.lora, seed)
    if "layers" in stage.freeze:
        layers.requires_grad_(False)
    if "embedding" in stage.freeze:
        drafter.get_input_embeddings().requires_grad_(False)
    if "head" in stage.freeze:
        drafter.get_output_embeddings().requires_grad_(False)
    if "norms" in stage.freeze:
        for module in drafter.modules():
            if "norm" in type(module).__name__.lower():
                module.requires_grad_(False)
    if stage.gradient_checkpointing:  # not transformers' own way, which wants training mode and so dropout
        for layer in layers.children():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    if stage.compile:
        for layer in layers.children():
            layer.compile(dynamic=True)


def untie(drafter: PreTrainedModel) -> None:
    """A head that is tied to the embedding becomes a matrix of its own, equal at first."""
    head = drafter.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    drafter.config.tie_word_embeddings = False


def release(drafter: PreTrainedModel, stage: Distillation) -> None:
    """The drafter as it was before `prepare`, with what was trained: whole matrices, plain layers, frozen."""
    if stage.lora is not None:
        merge_adapters(drafter)
    if stage.gradient_checkpointing:
        for layer in layers_of(drafter).children():
            del layer.forward
    drafter.requires_grad_(False)
