"""What a step of a build takes, and the text that it is done on, in sizes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """The text that a recipe learns from, in sizes."""

    rows: int
    prompt_tokens: int
    new_tokens: int  # that the target writes to each; 0 where the prompts are the text
    batch: int

    @property
    def row_tokens(self) -> int:
        """Tokens of one row."""
        return self.prompt_tokens + self.new_tokens

    @property
    def answer_tokens(self) -> int:
        """Tokens of one row that are learned."""
        return self.new_tokens or self.row_tokens


@dataclass(frozen=True)
class Effort:
    """What one step takes. `disk_bytes` stay; a training stage's checkpoints are counted at their largest."""

    memory_bytes: float  # at the peak
    seconds: float
    disk_bytes: float
