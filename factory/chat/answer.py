"""One answer: its tokens, where each came from, and how fast they came."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from eval.measurement import acceptance
from factory.decoding.decoder import Generation, Round


class Origin(Enum):
    """Where a token came from."""

    ACCEPTED = "drafted"  # proposed by the drafter, and the target agreed
    CORRECTED = "corrected"  # the target's own, after it refused a guess
    BONUS = "bonus"  # the target's own, after every guess had stood
    PLAIN = "plain"  # a step in which nothing was proposed


class Ending(Enum):
    """Why an answer is over."""

    EOS = "the target ended its text"
    LENGTH = "max-new-tokens reached"
    CONTEXT = "the context is full"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Piece:
    """Text to show, and where the token that completed it came from."""

    text: str
    origin: Origin


@dataclass(frozen=True)
class Speed:
    """How fast something was written, from its first token on."""

    tokens: int  # after the first
    seconds: float

    @property
    def tok_per_s(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


@dataclass
class Answer:
    """What was written for one question, round by round.

    Seconds count from the prompt handed in; what showing took is left out. `drafter` is the name of what
    drafted, None for the target alone; `k` is the number of guesses a round, None where it is
    chosen as it goes.
    """

    generation: Generation
    drafter: str | None
    k: int | None
    origins: list[Origin] = field(default_factory=list)  # one a token
    text: str = ""
    first_s: float = 0.0  # until the first token
    total_s: float = 0.0  # until the last one
    ending: Ending | None = None  # None while it is written

    def hear(self, told: Round, elapsed_s: float) -> list[int]:
        """Take in a round of the one row; returns its tokens."""
        new, accepted, proposed = told.emitted[0], told.accepted[0], told.proposed[0]
        own = Origin.PLAIN if proposed == 0 else Origin.CORRECTED if accepted < proposed else Origin.BONUS
        self.origins += [Origin.ACCEPTED] * accepted + [own] * (len(new) - accepted)
        written = self.generation
        if written.target_passes == 0:
            self.first_s = elapsed_s
        else:
            written.accepted.append(accepted)
            written.proposed.append(proposed)
        written.target_passes += 1
        written.tokens += new
        self.total_s = elapsed_s
        return new

    @property
    def tokens(self) -> list[int]:
        """What was written."""
        return self.generation.tokens

    @property
    def speed(self) -> Speed | None:
        """From the first token on; None where there is no second one."""
        later = len(self.tokens) - 1
        return Speed(later, self.total_s - self.first_s) if later > 0 and self.total_s > self.first_s else None

    @property
    def tau(self) -> float | None:
        """Tokens a target pass, the prefill's among them; None before it."""
        passes = self.generation.target_passes
        return len(self.tokens) / passes if passes else None

    @property
    def alpha(self) -> float | None:
        """Share of the examined guesses that stood; None where none was examined."""
        return acceptance([self.generation]).alpha

    @property
    def proposed(self) -> float | None:
        """Guesses a round, on average, rounds without any among them; None before the first."""
        rounds = self.generation.proposed
        return sum(rounds) / len(rounds) if rounds else None

    def count(self, origin: Origin) -> int:
        """Tokens that came from there."""
        return self.origins.count(origin)
