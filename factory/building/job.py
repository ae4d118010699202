"""What one candidate is about: its inputs and their digests, as far as they can be had without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from factory.anatomy.families import shape_from_config, stored_as
from factory.anatomy.shapes import Shape
from factory.data.prompts import Entry
from factory.errors import UnsupportedModel
from factory.models.located import Located
from factory.provenance import sha256_file, sha256_text
from factory.recipes.recipe import Loaded, Recipe, digests
from factory.stages import AnyStage
from factory.teaching.teacher_shards import VERSION

FACTS = "facts.json"  # beside a text: what is known of it, written when all of it is there
TEXT_VERSION = 2  # raised when equal prompts and settings make another text

Progress = Callable[[int, int, str], None]  # (done, total, what is being done)


@dataclass(frozen=True)
class Job:
    """One candidate's inputs, as far as they can be had without loading a model."""

    loaded: Loaded
    located: Located
    identity: str  # of the target's weights
    config: dict[str, Any]  # the target's
    out: Path
    entries: list[Entry] | None  # the prompts; None where the target begins from its first token
    progress: Progress

    @property
    def recipe(self) -> Recipe:
        """The recipe, with this candidate's values."""
        return self.loaded.recipe

    @property
    def name(self) -> str:
        """Of the artifact that the whole recipe makes."""
        return self.loaded.name

    @property
    def cache(self) -> Path:
        """Finished stages, written text and teacher caches, by digest."""
        return self.out / ".cache"

    @cached_property
    def text_digest(self) -> str:
        """A hash of all that decides the text, before any of it is held out."""
        data = self.recipe.data
        key: dict[str, Any] | None = None
        if data is not None:
            key = {
                "version": TEXT_VERSION,
                "data": data.model_dump(exclude={"prompts", "held_out"}),
                "prompts": None if self.entries is None else [entry.record() for entry in self.entries],
                "seed": self.recipe.seed,
                "dtype": self.recipe.target.dtype,
                "target": self.identity,
            }
        return sha256_text(json.dumps(key, sort_keys=True))

    def teacher_key(self, stage: AnyStage) -> dict[str, Any]:
        """All that decides the teacher cache that a stage reads; empty where it reads none."""
        settings = stage.cached
        if settings is None:
            return {}
        return {
            "target": self.identity,
            "dtype": self.recipe.target.dtype,
            "text": self.text_digest,
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "drawn": settings.drawn,
            "version": VERSION,
        }

    def teacher_digest(self, stage: AnyStage) -> str:
        """A hash of that: stages and candidates with an equal one share the cache."""
        return sha256_text(json.dumps(self.teacher_key(stage), sort_keys=True))

    def teacher_folder(self, stage: AnyStage) -> Path:
        """Where that cache is kept."""
        return self.cache / "teacher" / self.teacher_digest(stage)

    @property
    def text_folder(self) -> Path:
        """Where the text is kept, and what is known of it."""
        return self.cache / "text" / self.text_digest

    def text_facts(self) -> dict[str, int] | None:
        """Counts of the text: prompts, rows, tokens, what was dropped and why. None where it has gone since."""
        try:
            return dict(json.loads((self.text_folder / FACTS).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    @cached_property
    def chain(self) -> list[str]:
        """One digest for each prefix of the stages."""
        return digests(self.recipe, self.identity, self.text_digest)

    @cached_property
    def shapes(self) -> list[Shape]:
        """Before the first stage and after each. Raises UnsupportedModel: what cannot be done is refused at once."""
        return shapes_of(self.loaded, self.config)

    def stage_folder(self, count: int) -> Path:
        """Where the result of the first `count` stages is kept."""
        return self.cache / "stages" / self.chain[count - 1]


def shapes_of(loaded: Loaded, config: dict[str, Any]) -> list[Shape]:
    """The target's shape and the one after each stage. Raises UnsupportedModel with the line of what cannot be done."""
    place = loaded.document.place(("target",))
    try:
        shapes = [shape_from_config(stored_as(config, loaded.recipe.target.dtype))]
        for index, stage in enumerate(loaded.recipe.stages):
            place = loaded.place(index)
            stage.require(config)
            shapes.append(stage.forecast(shapes[-1]))
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{place}: {error}") from None
    return shapes


def is_sound(folder: Path) -> bool:
    """Whether a stage's result is complete and every file of its model is as it was written."""
    try:
        sums = dict(json.loads((folder / "stage.json").read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    files = {name: folder / "model" / name for name in sums}
    return all(path.is_file() and sha256_file(path) == sums[name] for name, path in files.items())
