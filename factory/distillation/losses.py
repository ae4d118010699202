"""The losses that a recipe names, with their weights at a point of the training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from factory.distillation.settings import LossTerm, weight_at
from factory.tensors.divergences import DIVERGENCES
from factory.tensors.fused import Term

JSD_BETA, LK_ETA = 0.5, 3.0  # where a recipe says nothing


def terms_at(terms: Sequence[LossTerm], progress: float) -> list[Term]:
    """The terms that weigh anything when `progress` of the steps is done, 0 to 1."""
    return [_term(term, weight) for term in terms if (weight := weight_at(term.weight, progress)) > 0]


def _term(term: LossTerm, weight: float) -> Term:
    if term.kind == "cross_entropy":
        return Term(term.kind, None, weight)
    divergence = DIVERGENCES[term.kind]
    if term.kind == "jsd":
        divergence = partial(divergence, beta=term.beta if term.beta is not None else JSD_BETA)
    if term.kind == "lk_hybrid":
        divergence = partial(divergence, eta=term.eta if term.eta is not None else LK_ETA)
    return Term(term.kind, divergence, weight)
