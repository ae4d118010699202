"""What every stage is: a frozen pydantic class whose fields are its keys in the recipe.

A structural stage decides what stays and touches no tensor; one surgery carries its Edit out.
A training stage changes weights in place and reports facts. A quantizing stage turns one model
folder into another, since what it makes exists only as a folder that a kernel can read. None knows
recipes or the other stages. Torch is imported inside methods only: `factory check` never loads it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from factory.anatomy.shapes import Edit, Shape
from factory.given import CacheSettings, Given

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# How JSON Schema says "a number, or a fraction that stays", "a list of places", and "as if it were not there".
COUNT_OR_SHARE: list[Any] = [
    {"type": "integer", "minimum": 1},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
]
INDICES: Any = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True}
NOTHING: Any = {"type": "null"}

Scores = dict[str, list[Any]]  # by what is scored: "layers" [L], "ffn" [L][channels], "heads" [L][query heads]


def no_fraction(value: float) -> str:
    """What is wrong with a number that is to be a fraction of what stays, and what was meant where that is plain."""
    said = f"a fraction must lie between 0 and 1, got {value}"
    return f"{said}; for a count write {value:.0f}" if 1 < value < 1e6 else f"{said}; 0.25 keeps a quarter"


class Stage(BaseModel, ABC):
    """One step of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: str
    version: ClassVar[int] = 1  # raised by hand when the output for equal input changes: enters the digest

    @property
    def needs_text(self) -> bool:
        """Whether the recipe must have `data` for this stage to run."""
        return False

    @property
    def cached(self) -> CacheSettings | None:
        """The teacher cache that it reads; None where it reads none."""
        return None

    @property
    def uses_seed(self) -> bool:
        """Whether the recipe's seed decides the result: it does that of the text, and of what is drawn."""
        return self.needs_text

    def forecast(self, shape: Shape) -> Shape:
        """The shape after this stage, from the shape before it. Raises UnsupportedModel."""
        return shape

    def require(self, config: dict[str, Any]) -> None:
        """Raises UnsupportedModel where this stage cannot be done to that config.json's family, with the reason."""


class StructuralStage(Stage):
    """Decides what stays of a model."""

    @property
    def needs_model(self) -> bool:
        """Whether scoring runs the model or reads its weights; else the shape is enough, and nothing is loaded."""
        return False

    def measure(self, model: PreTrainedModel, given: Given) -> Scores:
        """What `decide` needs to know about the model; empty where the shape is enough."""
        return {}

    @abstractmethod
    def decide(self, shape: Shape, scores: Scores, seed: int) -> Edit:
        """The Edit. A pure function. Raises UnsupportedModel where the shape allows none."""


class TrainingStage(Stage):
    """Changes the drafter's weights."""

    @property
    def needs_text(self) -> bool:
        """Training is always on text."""
        return True

    @abstractmethod
    def apply(self, drafter: PreTrainedModel, given: Given) -> dict[str, Any]:
        """Train `drafter` in place; returns facts for the manifest (JSON-able)."""


class QuantizingStage(Stage):
    """Writes a model folder again in another weight format. Always last: nothing can be pruned or trained behind it."""

    @property
    def needs_text(self) -> bool:
        """Calibration is on text."""
        return True

    @abstractmethod
    def quantize(self, source: Path, destination: Path, given: Given) -> dict[str, Any]:
        """Read the model in `source`, write it quantised into `destination` (new); returns facts for the manifest."""
