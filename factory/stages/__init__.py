"""One stage a file. To add one: its file, and its line in `AnyStage`."""

from typing import Annotated

from pydantic import Field

from factory.given import Given
from factory.stages.base import QuantizingStage, Stage, StructuralStage, TrainingStage
from factory.stages.distill import Distill
from factory.stages.drop_layers import DropLayers
from factory.stages.fresh import Fresh
from factory.stages.gptq import Gptq
from factory.stages.prune_width import PruneWidth

AnyStage = Annotated[DropLayers | PruneWidth | Fresh | Distill | Gptq, Field(discriminator="kind")]

__all__ = [
    "AnyStage",
    "Distill",
    "DropLayers",
    "Fresh",
    "Given",
    "Gptq",
    "PruneWidth",
    "QuantizingStage",
    "Stage",
    "StructuralStage",
    "TrainingStage",
]
