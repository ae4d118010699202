"""One stage a file. To add one: its file, and its line in `AnyStage`."""

from typing import Annotated

from pydantic import Field

from factory.stages.base import Given, Stage, StructuralStage, TrainingStage
from factory.stages.distill import Distill
from factory.stages.drop_layers import DropLayers

AnyStage = Annotated[DropLayers | Distill, Field(discriminator="kind")]

__all__ = ["AnyStage", "Distill", "DropLayers", "Given", "Stage", "StructuralStage", "TrainingStage"]
