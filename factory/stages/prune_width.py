"""Narrow every layer: FFN channels and attention heads that contribute least go, tensors really shrink."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from factory.anatomy.families import anatomy_of
from factory.anatomy.shapes import Edit, Shape
from factory.errors import UnsupportedModel
from factory.given import Given
from factory.stages.base import COUNT_OR_SHARE, INDICES, NOTHING, Scores, StructuralStage, no_fraction

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kept = tuple[tuple[int, ...], ...]  # [L][indices that stay], rising


class PruneWidth(StructuralStage):
    """`keep_ffn`, `keep_heads`: a number, or a fraction that stays (0.5); `keep_ffn` also a list, one for all layers.

    All layers keep equally many, each its own best, so that transformers loads the result. Heads stay
    GQA-legal: whole key/value groups go where that gives the number asked for, else equally many query
    heads of every group; `keep_kv_heads` says how many groups stay. A head's width is never cut.

    score:
        activation   what the module's output would lose without this channel or head alone, on text
                     (tensors/saliency.py); needs text
        magnitude    sum of squared coupled weights; a control
        random       drawn from the seed; a control
    """

    kind: Literal["prune_width"] = Field(description="narrow every layer: FFN channels and heads go")
    keep_ffn: int | float | list[int] | None = Field(
        default=None,
        description="FFN channels that stay in each layer: a number, a fraction, or a list",
        json_schema_extra={"anyOf": [*COUNT_OR_SHARE, INDICES, NOTHING]},
    )
    keep_heads: int | float | None = Field(
        default=None,
        description="query heads that stay in each layer: a number, or a fraction",
        json_schema_extra={"anyOf": [*COUNT_OR_SHARE, NOTHING]},
    )
    keep_kv_heads: int | None = Field(default=None, ge=1, description="key/value heads that stay, with keep_heads")
    score: Literal["activation", "magnitude", "random"] = Field(
        default="activation",
        description="what counts as contributing least; activation needs text, the others are controls",
    )
    multiple_of: int = Field(default=32, ge=1, description="FFN widths are multiples of it; quantised kernels need 32")

    @model_validator(mode="after")
    def _widths_are_possible(self) -> PruneWidth:
        faults = []
        if self.keep_ffn is None and self.keep_heads is None:
            faults.append("keep_ffn: missing; give keep_ffn, keep_heads, or both")
        for key, value in (("keep_ffn", self.keep_ffn), ("keep_heads", self.keep_heads)):
            if isinstance(value, list):
                if not value or sorted(set(value)) != value or value[0] < 0:
                    faults.append(f"{key}: a list must be rising channel indices from 0")
            elif isinstance(value, float) and not 0 < value <= 1:
                faults.append(f"{key}: {no_fraction(value)}")
            elif isinstance(value, int) and value < 1:
                faults.append(f"{key}: at least 1 must stay, got {value}")
        count = len(self.keep_ffn) if isinstance(self.keep_ffn, list) else self.keep_ffn
        if isinstance(count, int) and count >= 1 and count % self.multiple_of:
            near = max(self.multiple_of, round(count / self.multiple_of) * self.multiple_of)
            faults.append(
                f"keep_ffn: {count} is no multiple of {self.multiple_of}, which kernels need; "
                f"write {near}, or set multiple_of"
            )
        if self.keep_kv_heads is not None and self.keep_heads is None:
            faults.append("keep_kv_heads: goes with keep_heads, which is missing")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @property
    def _explicit(self) -> bool:
        return self.keep_heads is None and isinstance(self.keep_ffn, list)

    @property
    def needs_model(self) -> bool:
        """A list or the seed needs no weights at all."""
        return self.score != "random" and not self._explicit

    @property
    def needs_text(self) -> bool:
        """Activations are those of text."""
        return self.score == "activation" and not self._explicit

    @property
    def uses_seed(self) -> bool:
        """Random scores are drawn from it."""
        return self.needs_text or (self.score == "random" and not self._explicit)

    def require(self, config: dict[str, Any]) -> None:
        """Raises UnsupportedModel where this family cannot lose heads."""
        why = anatomy_of(config).why_no_heads
        if self.keep_heads is not None and why:
            raise UnsupportedModel(f"prune_width: {config['model_type']} cannot lose heads: {why}; remove keep_heads")

    def channels(self, shape: Shape) -> int:
        """FFN channels that stay. Raises UnsupportedModel where there are not so many."""
        if self.keep_ffn is None:
            return shape.ffn
        if isinstance(self.keep_ffn, list):
            if self.keep_ffn[-1] >= shape.ffn:
                raise UnsupportedModel(
                    f"prune_width: keep_ffn names channel {self.keep_ffn[-1]}, the model has 0 to {shape.ffn - 1}"
                )
            return len(self.keep_ffn)
        if isinstance(self.keep_ffn, float):
            rounded = max(1, round(self.keep_ffn * shape.ffn / self.multiple_of)) * self.multiple_of
            if rounded >= shape.ffn and self.keep_ffn < 1:
                raise UnsupportedModel(
                    f"prune_width: keep_ffn {self.keep_ffn} of {shape.ffn} channels, as a multiple of "
                    f"{self.multiple_of}, is all of them; keep less, or lower multiple_of"
                )
            return min(rounded, shape.ffn)
        if self.keep_ffn > shape.ffn:
            raise UnsupportedModel(f"prune_width: keep_ffn is {self.keep_ffn}, the model has {shape.ffn} channels")
        return self.keep_ffn

    def heads(self, shape: Shape) -> tuple[int, int]:
        """(query heads, key/value heads) that stay. Raises UnsupportedModel, naming the legal numbers."""
        if self.keep_heads is None:
            return shape.heads, shape.kv_heads
        legal = self._legal_heads(shape)
        wanted = self.keep_heads * shape.heads if isinstance(self.keep_heads, float) else self.keep_heads
        # the first of equals: whole groups, which shrink the cache too
        best = min(legal, key=lambda pair: (abs(pair[0] - wanted), -pair[0]), default=None)
        if best is None or (isinstance(self.keep_heads, int) and best[0] != self.keep_heads):
            counts = ", ".join(str(count) for count in sorted({queries for queries, _ in legal})) or "none"
            groups = f", keep_kv_heads {self.keep_kv_heads}" if self.keep_kv_heads else ""
            raise UnsupportedModel(
                f"prune_width: keep_heads {self.keep_heads}{groups} breaks grouped-query attention: the model has "
                f"{shape.heads} query heads on {shape.kv_heads} key/value heads; legal keep_heads: {counts}"
            )
        return best

    def _legal_heads(self, shape: Shape) -> list[tuple[int, int]]:
        """(query heads, key/value heads) that give every key/value head equally many query heads."""
        group = shape.heads // shape.kv_heads
        if self.keep_kv_heads is not None:
            kept = self.keep_kv_heads
            return [(kept * per_group, kept) for per_group in range(1, group + 1)] if kept <= shape.kv_heads else []
        whole_groups = [(kept * group, kept) for kept in range(1, shape.kv_heads + 1)]
        thinned = [(shape.kv_heads * per_group, shape.kv_heads) for per_group in range(1, group)]
        return whole_groups + thinned

    def forecast(self, shape: Shape) -> Shape:
        """Narrower layers, all else equal."""
        heads, kv_heads = self.heads(shape)
        return replace(shape, ffn=self.channels(shape), heads=heads, kv_heads=kv_heads)

    def measure(self, model: PreTrainedModel, given: Given) -> Scores:
        """Scores of what may go: "ffn" [L][channels], "heads" [L][query heads]; larger stays."""
        if not self.needs_model:
            return {}
        from factory.surgery.activations import contributions, magnitudes

        if self.score == "magnitude":
            channels, heads = magnitudes(model)
        else:
            if given.text is None:
                raise ValueError("an activation-based score needs text")
            channels, heads = contributions(model, given.text, given.progress, heads=self.keep_heads is not None)
        found = {
            "ffn": channels if self.keep_ffn is not None else [],
            "heads": heads if self.keep_heads is not None else [],
        }
        return {what: [layer.tolist() for layer in layers] for what, layers in found.items() if layers}

    def decide(self, shape: Shape, scores: Scores, seed: int) -> Edit:
        """Which channels and heads stay, layer by layer."""
        if self.score == "random":
            chance = random.Random(seed)  # its sequence is the same on every machine
            scores = {
                what: [[chance.random() for _ in range(count)] for _ in range(shape.layers)]
                for what, count in (("ffn", shape.ffn), ("heads", shape.heads))
            }
        keep_ffn: Kept | None = None
        if isinstance(self.keep_ffn, list):
            self.channels(shape)
            keep_ffn = (tuple(self.keep_ffn),) * shape.layers
        elif self.keep_ffn is not None:
            keep_ffn = tuple(_best(layer, self.channels(shape)) for layer in scores["ffn"])
        if self.keep_heads is None:
            return Edit(keep_ffn=keep_ffn)
        queries, groups = self.heads(shape)
        kept = [_best_heads(layer, shape.kv_heads, queries // groups, groups) for layer in scores["heads"]]
        return Edit(None, keep_ffn, tuple(heads for heads, _ in kept), tuple(kv for _, kv in kept))


def _best(scores: list[float], count: int) -> tuple[int, ...]:
    """Indices of the `count` largest, rising; the first of equals."""
    return tuple(sorted(sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:count]))


def _best_heads(
    scores: list[float], kv_heads: int, per_group: int, groups: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(query heads, key/value heads) that stay: the groups whose best `per_group` heads score most."""
    size = len(scores) // kv_heads
    best = [
        [kv * size + place for place in _best(scores[kv * size : (kv + 1) * size], per_group)] for kv in range(kv_heads)
    ]
    kept = _best([sum(scores[head] for head in heads) for heads in best], groups)
    return tuple(head for kv in kept for head in best[kv]), kept
