"""The nouns of a measurement: who wrote (Arm), what was written together (Timed), and all of one kind (Cell)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

from factory.anatomy.shapes import Shape

if TYPE_CHECKING:
    from factory.decoding.decoder import Generation

K = int | Literal["auto"]
AUTO: Literal["auto"] = "auto"  # k is chosen anew each round, by factory.decoding.pace
TARGET_ALONE, MODEL, PROMPT_LOOKUP = None, "model", "prompt_lookup"
CHOOSE, CONFIRM = "choose", "confirm"
Key = tuple[str, tuple[int, ...]]  # a suite, and the requests that were answered together
Quad = tuple[float, float, float, float]  # baseline seconds, baseline tokens, arm seconds, arm tokens
SUSPICIOUS_EXAMINED = 50  # tokens accepted without one rejection before it is worth a warning


@dataclass(frozen=True)
class Arm:
    """One way of writing: the target alone, or with a drafter that proposes k tokens a round."""

    artifact: str | None = None
    drafter: str | None = TARGET_ALONE
    k: K | None = None

    @property
    def fixed_k(self) -> int | None:
        """k where every round has the same; None for the target alone, and where k is chosen each round."""
        return None if self.k == AUTO else self.k

    @property
    def most(self) -> int:
        """The largest k of any round; 0 for the target alone."""
        from factory.decoding.costs import KS  # with torch, which a report is drawn without

        return max(KS) if self.k == AUTO else (self.k or 0)

    @property
    def words(self) -> str:
        """As a sentence says it."""
        if self.drafter is TARGET_ALONE:
            return "the target alone"
        return f"{self.artifact or 'prompt lookup'} at k = {self.k}"


@dataclass(frozen=True)
class ArmFacts:
    """What is known of an arm before it runs."""

    parameters: int | None  # of the drafter; of the target where it writes alone
    bytes_on_disk: int | None
    cost_ratio: float | None  # c in streamed bytes; None where no model drafts
    drafter_shape: Shape | None = None
    target_shape: Shape | None = None
    drafter_reader: str | None = None  # what runs the drafter here


@dataclass(frozen=True)
class Timed:
    """A batch of prompts answered together, and where the seconds went.

    A round is one target pass behind the prefill, over all rows that are still being written. `host_s` is what no
    span covers: the loop's own Python.
    """

    requests: tuple[int, ...]
    generations: list[Generation]  # of those requests
    total_s: float
    prefill_s: float
    draft_s: float
    verify_s: float
    accept_s: float  # sampling, acceptance, rewind

    @property
    def decode_s(self) -> float:
        """From the first token on."""
        return self.total_s - self.prefill_s

    @property
    def host_s(self) -> float:
        """What is left of the decoding."""
        return self.decode_s - self.draft_s - self.verify_s - self.accept_s

    @property
    def rounds(self) -> int:
        """Target passes behind the prefill."""
        return max(len(one.accepted) for one in self.generations)

    @property
    def new_tokens(self) -> int:
        """Of all rows."""
        return sum(len(one.tokens) for one in self.generations)

    @property
    def decoded_tokens(self) -> int:
        """Of all rows, but for the first of each, which the prefill gave."""
        return self.new_tokens - len(self.generations)

    @property
    def read_tokens(self) -> int:
        """What the target read in its rounds: of each row its last token and what was proposed."""
        return self.rows_read + sum(sum(one.proposed) for one in self.generations)

    @property
    def rows_read(self) -> int:
        """Rows of all its rounds: one for each that was still being written."""
        return sum(len(one.proposed) for one in self.generations)

    @property
    def draft_steps(self) -> int:
        """Tokens that the drafter wrote one behind the other: each round's longest proposal."""
        by_round = zip_longest(*(one.proposed for one in self.generations), fillvalue=0)
        return sum(max(proposed) for proposed in by_round)


@dataclass(frozen=True)
class Output:
    """What was written for one prompt."""

    request: int
    generation: Generation


@dataclass(frozen=True)
class Acceptance:
    """Counts over outputs. A token is examined when all before it in its round were accepted."""

    accepted: int
    rejected: int
    proposed: int
    rounds: int  # of each row

    @property
    def mean_k(self) -> float | None:
        """Tokens proposed a round: fewer than k near an output's end; None where there was no round."""
        return self.proposed / self.rounds if self.rounds else None

    @property
    def alpha(self) -> float | None:
        """accepted / examined."""
        examined = self.accepted + self.rejected
        return self.accepted / examined if examined else None

    @property
    def per_proposed(self) -> float | None:
        """accepted / proposed: what share of the drafting was of use."""
        return self.accepted / self.proposed if self.proposed else None


def acceptance(generations: Sequence[Generation]) -> Acceptance:
    """Counts the outputs' rounds; a round with fewer accepted than proposed has one rejection."""
    accepted = rejected = proposed = 0
    for generation in generations:
        accepted += sum(generation.accepted)
        proposed += sum(generation.proposed)
        rejected += sum(a < p for a, p in zip(generation.accepted, generation.proposed, strict=True))
    return Acceptance(accepted, rejected, proposed, sum(len(one.proposed) for one in generations))


@dataclass(frozen=True)
class Block:
    """What is timed in one go, all arms interleaved."""

    suite: str
    temperature: float
    batch: int  # prompts answered together
    stage: str  # CHOOSE or CONFIRM: which of the two disjoint prompt sets


@dataclass
class Cell:
    """The timed runs of one arm on one suite at one temperature, in batches of one size."""

    arm: Arm
    suite: str
    temperature: float
    stage: str  # CHOOSE or CONFIRM: which of the two disjoint prompt sets
    runs: list[list[Timed]] = field(default_factory=list)  # [repeats][batches]
    batch: int = 1
    overlap: float | None = None
    peak_memory_bytes: int | None = None
    divergences: int | None = None
    near_ties: int | None = None
    near_tie_bound: float | None = None
    lossless: bool | None = None  # None: nothing could be compared

    @property
    def timed(self) -> list[Timed]:
        """All repeats, one behind the other."""
        return [one for repeat in self.runs for one in repeat]

    @property
    def outputs(self) -> list[Output]:
        """Of the first timed repeat: what tokens.jsonl holds, and what a row's counts are of."""
        return [
            Output(request, generation)
            for one in self.runs[0]
            for request, generation in zip(one.requests, one.generations, strict=True)
        ]

    @property
    def written(self) -> dict[int, Generation]:
        """Its outputs by request."""
        return {output.request: output.generation for output in self.outputs}

    def totals(self, *, decode_only: bool = False) -> dict[Key, tuple[float, float]]:
        """Seconds and new tokens of each batch, all repeats together. decode_only leaves out prefill and its tokens."""
        summed: dict[Key, tuple[float, float]] = {}
        for timed in self.timed:
            seconds, tokens = summed.get((self.suite, timed.requests), (0.0, 0.0))
            seconds += timed.decode_s if decode_only else timed.total_s
            tokens += timed.decoded_tokens if decode_only else timed.new_tokens
            summed[self.suite, timed.requests] = (seconds, tokens)
        return summed


def merged(shares: Sequence[Sequence[Cell]]) -> list[Cell]:
    """One block's cells of what several processes timed, the batches dealt to them in turn: in the batches' order.

    Seconds stay those of the process that timed them. Overlap is the first one's, since all warm up on the same
    prompts; the peak of memory is the largest.
    """
    cells = []
    for same in zip(*shares, strict=True):
        first = same[0]
        runs = [
            [one for turn in zip_longest(*parts) for one in turn if one is not None]
            for parts in zip(*(cell.runs for cell in same), strict=True)
        ]
        peaks = [cell.peak_memory_bytes for cell in same if cell.peak_memory_bytes is not None]
        cells.append(replace(first, runs=runs, peak_memory_bytes=max(peaks, default=None)))
    return cells


def paired(base: Cell, cell: Cell, *, decode_only: bool = False) -> dict[Key, Quad]:
    """By batch: what the baseline took beside what the arm took."""
    ours, theirs = cell.totals(decode_only=decode_only), base.totals(decode_only=decode_only)
    return {key: (*theirs[key], *ours[key]) for key in ours}


def suspicion(arm: Arm, counts: Acceptance) -> str | None:
    """A drafter that is never wrong is most often the target itself, changed in place by its own compression."""
    if arm.drafter == MODEL and counts.rejected == 0 and counts.accepted >= SUSPICIOUS_EXAMINED:
        return f"all {counts.accepted} examined tokens were accepted: the drafter may be the target itself"
    return None
