"""What may change between two answers, and how its values are read from text. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from factory.errors import DataError

MODEL, LOOKUP, OFF = "model", "lookup", "off"  # what drafts: the artifact's model, prompt lookup, nothing
AUTO = "auto"
MOST_GUESSES = 64  # as in an EvalPlan
HIGHEST_TEMPERATURE = 10.0


@dataclass
class Settings:
    """How the next answer is written."""

    drafter: str  # MODEL, LOOKUP or OFF
    k: int | None  # guesses a round; None: chosen as it goes
    temperature: float
    max_new_tokens: int

    @property
    def words(self) -> str:
        """As a sentence says it."""
        law = "greedy" if self.temperature == 0 else f"temperature {self.temperature:g}"
        if self.drafter == OFF:
            return f"nothing drafts; {law}"
        drafts = {MODEL: "the artifact's model", LOOKUP: "prompt lookup"}[self.drafter]
        return f"{drafts} drafts, k {AUTO if self.k is None else self.k}; {law}"


def guesses(text: str, name: str) -> int | None:
    """k of a text, None for auto; `name` is what the user wrote it for. Raises DataError."""
    if text == AUTO:
        return None
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    if not 1 <= number <= MOST_GUESSES:
        raise DataError(f"{name}: must be a whole number from 1 to {MOST_GUESSES}, or auto, not {text!r}")
    return number


def temperature(text: str, name: str) -> float:
    """A temperature of a text. Raises DataError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= HIGHEST_TEMPERATURE:
        raise DataError(f"{name}: must be a number from 0 (greedy) to {HIGHEST_TEMPERATURE:g}, not {text!r}")
    return value


def drafter(text: str, name: str, *, has_model: bool) -> str:
    """What `on`, `lookup` or `off` means. Raises DataError; also for `on` where there is no model that could draft."""
    meant = {"on": MODEL, "lookup": LOOKUP, "off": OFF}.get(text)
    if meant is None:
        raise DataError(f"{name}: must be on, lookup or off, not {text!r}")
    if meant == MODEL and not has_model:
        raise DataError(f"{name}: there is no model that could draft; start with an ARTIFACT, or use lookup")
    return meant
