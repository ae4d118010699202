"""What one build is about: its inputs and their digests, as far as they can be had without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from factory.anatomy import shape_from_config
from factory.edit import Shape
from factory.located import Located
from factory.provenance import sha256_text
from factory.recipe import Loaded, Recipe, digests

Progress = Callable[[int, int, str], None]  # (done, total, what is being done)


@dataclass(frozen=True)
class Job:
    """One build's inputs, as far as they can be had without loading a model."""

    loaded: Loaded
    located: Located
    identity: str  # of the target's weights
    config: dict[str, Any]  # the target's
    out: Path
    prompt_texts: list[str] | None  # None where the target begins from its first token
    progress: Progress

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.loaded.recipe

    @property
    def cache(self) -> Path:
        """Finished stages and written text, by digest."""
        return self.out / ".cache"

    @property
    def text_digest(self) -> str:
        """A hash of all that decides the text."""
        data = self.recipe.data
        key: dict[str, Any] | None = None
        if data is not None:
            key = {
                "data": data.model_dump(exclude={"prompts"}),
                "prompts": sha256_text(json.dumps(self.prompt_texts)),
                "seed": self.recipe.seed,
                "dtype": self.recipe.target.dtype,
                "target": self.identity,
            }
        return sha256_text(json.dumps(key, sort_keys=True))

    @cached_property
    def chain(self) -> list[str]:
        """One digest for each prefix of the stages."""
        return digests(self.recipe, self.identity, self.text_digest)

    @cached_property
    def shapes(self) -> list[Shape]:
        """Before the first stage and after each. Raises UnsupportedModel: what cannot be done is refused at once."""
        shapes = [shape_from_config(self.config)]
        for stage in self.recipe.stages:
            shapes.append(stage.forecast(shapes[-1]))
        return shapes
