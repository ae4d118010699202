"""Keep some layers, drop the rest: the stage that makes a drafter fast (latency follows depth)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from factory.anatomy.shapes import Edit, Shape
from factory.errors import UnsupportedModel
from factory.given import Given
from factory.stages.base import COUNT_OR_SHARE, INDICES, Scores, StructuralStage, no_fraction

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DropLayers(StructuralStage):
    """`keep`: a number of layers, a fraction that stays (0.25), or an explicit list of indices.

    score:
        even              spread over the depth, first and last included
        first_last        the first layers and the very last one
        block_influence   the layers that change the residual stream most, 1 - cos(in, out)
                          (ShortGPT, arXiv 2403.03853); needs text
        angular           one run of layers goes, the one over which the residual stream turns least,
                          the first and the last layer never among them (arXiv 2403.17887); needs text
    """

    kind: Literal["drop_layers"] = Field(description="keep some layers, drop the rest")
    version: ClassVar[int] = 2  # stored in the checkpoint's own dtype
    keep: int | float | list[int] = Field(
        description="layers that stay: a number, a fraction, or a list of indices",
        json_schema_extra={"anyOf": [*COUNT_OR_SHARE, INDICES]},
    )
    score: Literal["even", "first_last", "block_influence", "angular"] = Field(
        default="even", description="which layers stay; the last two look at what the layers do to text"
    )

    @model_validator(mode="after")
    def _keep_is_possible(self) -> DropLayers:
        if isinstance(self.keep, list):
            if not self.keep or sorted(set(self.keep)) != self.keep or self.keep[0] < 0:
                raise ValueError(f"keep: a list must be rising layer indices from 0, got {self.keep}")
        elif isinstance(self.keep, float) and not 0 < self.keep <= 1:
            raise ValueError(f"keep: {no_fraction(self.keep)}")
        elif isinstance(self.keep, int) and self.keep < 1:
            raise ValueError(f"keep: at least 1 layer must stay, got {self.keep}")
        return self

    @property
    def needs_model(self) -> bool:
        """Only an activation-based score runs the model."""
        return self.score in ("block_influence", "angular") and not isinstance(self.keep, list)

    @property
    def needs_text(self) -> bool:
        """Activations are those of text."""
        return self.needs_model

    def count(self, layers: int) -> int:
        """How many of `layers` stay. Raises UnsupportedModel where there are not enough."""
        if isinstance(self.keep, list):
            if self.keep[-1] >= layers:
                raise UnsupportedModel(
                    f"drop_layers: keep names layer {self.keep[-1]}, the model has 0 to {layers - 1}"
                )
            return len(self.keep)
        count = max(1, round(self.keep * layers)) if isinstance(self.keep, float) else self.keep
        if count > layers:
            raise UnsupportedModel(f"drop_layers: keep is {count}, the model has {layers} layers")
        return count

    def forecast(self, shape: Shape) -> Shape:
        """Fewer layers, all else equal."""
        return replace(shape, layers=self.count(shape.layers))

    def measure(self, model: PreTrainedModel, given: Given) -> Scores:
        """By `score`: block influence of each layer [L], or the angle over each run that could go, by its start."""
        if not self.needs_model or given.text is None:
            return {}
        from factory.surgery.activations import residual_streams
        from factory.tensors.saliency import angular_distance, block_influence

        layers = int(model.config.num_hidden_layers)
        dropped = layers - self.count(layers)
        starts = _starts(layers, dropped) if self.score == "angular" else range(layers)
        step, measured = (dropped, angular_distance) if self.score == "angular" else (1, block_influence)
        totals = [0.0] * len(starts)
        positions = 0
        for stream, mask in residual_streams(model, given.text, given.progress):
            positions += int(mask.sum())
            for place, start in enumerate(starts):
                totals[place] += measured(stream[start], stream[start + step], mask).item()
        return {self.score: [total / positions for total in totals]}

    def decide(self, shape: Shape, scores: Scores, seed: int = 0) -> Edit:
        """Which layers stay, in their order."""
        count = self.count(shape.layers)
        every = range(shape.layers)
        if isinstance(self.keep, list):
            return Edit(keep_layers=tuple(self.keep))
        if self.score == "first_last" and count > 1:
            return Edit(keep_layers=(*range(count - 1), shape.layers - 1))
        if self.score == "block_influence":
            influence = scores["block_influence"]
            best = sorted(every, key=lambda layer: (-influence[layer], layer))[:count]
            return Edit(keep_layers=tuple(sorted(best)))
        if self.score == "angular":
            dropped = shape.layers - count
            starts = _starts(shape.layers, dropped)
            begin = min(zip(scores["angular"], starts, strict=True))[1]
            return Edit(keep_layers=tuple(layer for layer in every if not begin <= layer < begin + dropped))
        if count == 1:
            return Edit(keep_layers=(0,))
        return Edit(keep_layers=tuple(round(i * (shape.layers - 1) / (count - 1)) for i in range(count)))


def _starts(layers: int, dropped: int) -> range:
    """Where a run of `dropped` layers may begin: not at the first layer, and the last one stays where two do."""
    return range(1, max(2, layers - dropped))
