"""What every stage is: a frozen pydantic class whose fields are its keys in the recipe.

A structural stage decides what stays and touches no tensor; one surgery carries its Edit out.
A training stage changes weights in place and reports facts. A quantizing stage turns one model
folder into another, since what it makes exists only as a folder that a kernel can read. None knows
recipes or the other stages. Torch is imported inside methods only: `factory check` never loads it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from factory.edit import Edit, Shape
from factory.processes import Processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from factory.data import TextBlocks


Scores = dict[str, list[Any]]  # by what is scored: "layers" [L], "ffn" [L][channels], "heads" [L][query heads]


@dataclass(frozen=True)
class CacheSettings:
    """What decides a teacher cache beside target and text."""

    temperature: float
    top_k: int


@dataclass(frozen=True)
class Given:
    """What a build hands to a stage."""

    target: Callable[[], PreTrainedModel]  # loads it at the first call: not every stage needs it
    text: TextBlocks | None  # the training part; None where the recipe has no data
    held_out: TextBlocks | None  # never trained on; what the reported overlap is measured on
    seed: int
    checkpoint: Path  # a folder of this stage's own, kept until the stage is done
    progress: Callable[[int, int, str], None]  # (done, total, what is being shown)
    cache: Path | None = None  # the finished teacher cache of the whole text, where the stage reads one
    modelled: Callable[[float], tuple[float, int]] | None = None  # alpha -> (speedup, k) of the finished drafter here
    half: bool = False  # whether the target runs in half precision
    processes: Processes = Processes()


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
