"""The losses that a recipe names, with their weights at a point of the training."""

from __future__ import annotations

from collections.abc import Sequence

from factory.distillation.settings import LossTerm, weight_at
from factory.tensors.divergences import Term, term


def terms_at(terms: Sequence[LossTerm], progress: float) -> list[Term]:
    """The terms when `progress` of the steps is done, 0 to 1."""
    found = []
    for one in terms:
        settings = {name: value for name, value in (("beta", one.beta), ("eta", one.eta)) if value is not None}
        found.append(term(one.kind, weight_at(one.weight, progress), pooled=None, **settings))
    return found
