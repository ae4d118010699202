"""Pull the drafter's predictions toward the target's: where acceptance comes from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from factory.anatomy.shapes import Shape
from factory.distillation.settings import Distillation
from factory.given import CacheSettings, Given
from factory.stages.base import TrainingStage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Distill(Distillation, TrainingStage):
    """Distillation toward the target on answer tokens: which loss, on whose text, for how long.

    Full parameters unless `lora` or `freeze` say otherwise; float32 master weights. The loss is fused with
    the head chunk by chunk over positions, so that [B, T, V] is never held.
    """

    kind: Literal["distill"] = Field(description="train the drafter toward the target's predictions")
    version: ClassVar[int] = 3  # a step's loss is a mean over its tokens, whatever passes or processes it is made in

    def forecast(self, shape: Shape) -> Shape:
        """The same sizes, but for a head that is no longer the embedding."""
        return replace(shape, tied=False) if self.untie_head else shape

    @property
    def cached(self) -> CacheSettings | None:
        """What the teacher cache that it reads must hold; None with an online teacher."""
        return CacheSettings(self.temperature, self.top_k, self.drawn) if self.teacher == "cache" else None

    def apply(self, drafter: PreTrainedModel, given: Given) -> dict[str, Any]:
        """Train in place, from the last checkpoint where there is one; `drafter` ends in float32, frozen.

        Raises FactoryError when the loss is not finite, DataError where the checkpoint or the teacher cache
        belongs to something else.
        """
        from factory.distillation.distil import distil

        return distil(self, drafter, given, self.version)
