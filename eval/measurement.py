"""What one way of writing did on one suite at one temperature, and the row of results.json made of it.

Rows of temperature 0 compare outputs token by token. Rows above it cannot: speculative sampling equals
plain sampling in law, not per seed. Their `divergences` are null, and their `matches_target` is what
the greedy parity run found for the same drafter and k: the same code decides both, greedy being the
one-hot case of its one rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from eval.stats import repeated_share, speedup
from factory.decoding.decoder import Generation
from factory.edit import Shape
from factory.forecast import Costs, modelled_speedup

TARGET_ALONE, MODEL, PROMPT_LOOKUP = None, "model", "prompt_lookup"
CHOOSE, CONFIRM = "choose", "confirm"
SUSPICIOUS_EXAMINED = 50  # tokens accepted without one rejection before it is worth a warning


@dataclass(frozen=True)
class Arm:
    """One way of writing: the target alone, or with a drafter that proposes k tokens a round."""

    artifact: str | None = None
    drafter: str | None = TARGET_ALONE
    k: int | None = None

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


@dataclass(frozen=True)
class Timed:
    """One output and where its seconds went. `host_s` is what no span covers: the loop's own Python."""

    request: int
    generation: Generation
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
        """Target passes after the prefill."""
        return self.generation.target_passes - 1


@dataclass(frozen=True)
class Acceptance:
    """Counts over outputs. A token is examined when all before it in its round were accepted."""

    accepted: int
    rejected: int
    proposed: int

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
    return Acceptance(accepted, rejected, proposed)


@dataclass
class Cell:
    """The timed runs of one arm on one suite at one temperature."""

    arm: Arm
    suite: str
    temperature: float
    stage: str  # CHOOSE or CONFIRM: which of the two disjoint prompt sets
    runs: list[list[Timed]] = field(default_factory=list)  # [repeats][prompts]
    overlap: float | None = None
    peak_memory_bytes: int | None = None
    divergences: int | None = None
    near_ties: int | None = None
    near_tie_bound: float | None = None
    lossless: bool | None = None  # None: nothing could be compared

    @property
    def outputs(self) -> list[Timed]:
        """The first timed repeat: what tokens.jsonl holds, and what a row's counts are of."""
        return self.runs[0]

    def totals(self, *, decode_only: bool = False) -> dict[tuple[str, int], tuple[float, float]]:
        """Seconds and new tokens by prompt, all repeats together. decode_only leaves out prefill and its token."""
        summed: dict[tuple[str, int], tuple[float, float]] = {}
        for timed in (timed for repeat in self.runs for timed in repeat):
            seconds, tokens = summed.get((self.suite, timed.request), (0.0, 0.0))
            seconds += timed.decode_s if decode_only else timed.total_s
            tokens += len(timed.generation.tokens) - (1 if decode_only else 0)
            summed[self.suite, timed.request] = (seconds, tokens)
        return summed


@dataclass(frozen=True)
class Measurement:
    """One row of results.json. What does not apply is None, never missing."""

    artifact: str | None
    drafter: str | None
    suite: str
    k: int | None
    temperature: float
    batch: int
    device: str
    dtype: str
    reader: str
    baseline_reader: str
    prompts: int
    repeats: int
    matches_target: bool | None
    divergences: int | None
    near_ties: int | None
    near_tie_bound: float | None
    new_tokens: int
    target_passes: int
    rounds: int  # target passes after the prefills, of all repeats: what the t_..._s are means over
    tokens_per_s: float
    baseline_tokens_per_s: float
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    speedup_decode: float | None
    alpha: float | None
    accepted_per_proposed: float | None
    overlap: float | None
    tau: float
    t_draft_s: float | None
    t_verify_s: float | None
    t_accept_s: float | None
    t_host_s: float | None
    t_overhead_s: float | None  # the two together
    repetition: float | None
    parameters: int | None
    bytes_on_disk: int | None
    peak_memory_bytes: int | None
    c: float | None
    forecast_t_draft_s: float | None
    forecast_t_verify_s: float | None
    forecast_c: float | None
    forecast_speedup: float | None
    ceiling_speedup: float | None
    cost_ratio: float | None
    prompt_set: str
    warning: str | None

    def row(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    """What all rows of a run share."""

    device: str
    dtype: str
    reader: str
    seed: int


Quad = tuple[float, float, float, float]  # baseline seconds, baseline tokens, arm seconds, arm tokens


def paired(base: Cell, cell: Cell, *, decode_only: bool = False) -> dict[tuple[str, int], Quad]:
    """By prompt: what the baseline took beside what the arm took."""
    ours, theirs = cell.totals(decode_only=decode_only), base.totals(decode_only=decode_only)
    return {key: (*theirs[key], *ours[key]) for key in ours}


def measure(cell: Cell, base: Cell, facts: ArmFacts, setting: Setting, costs: Costs | None = None) -> Measurement:
    """The row of a cell beside its baseline cell (itself, where the target writes alone).

    `costs` is the forecast for this device; None where the shapes are not known. Its speedup is at the measured alpha.
    """
    timed = [one for repeat in cell.runs for one in repeat]
    outputs = [one.generation for one in cell.outputs]
    counts = acceptance(outputs) if cell.arm.drafter else Acceptance(0, 0, 0)
    interval = speedup(list(paired(base, cell).values()), setting.seed)
    # Outputs of one token have no decode time; were all of them such, there is no figure.
    decode = [quad for quad in paired(base, cell, decode_only=True).values() if quad[1] > 0 and quad[3] > 0]
    rounds = sum(one.rounds for one in timed)
    draft_s, verify_s = sum(one.draft_s for one in timed), sum(one.verify_s for one in timed)
    accept_s, host_s = sum(one.accept_s for one in timed), sum(one.host_s for one in timed)
    new_tokens = sum(len(output.tokens) for output in outputs)
    passes = sum(output.target_passes for output in outputs)
    k, forecast, ceiling = cell.arm.k, None, None
    if counts.alpha is not None and facts.cost_ratio is not None and k is not None:
        ceiling = modelled_speedup(counts.alpha, k, facts.cost_ratio)
        forecast = costs.speedup(counts.alpha, k) if costs else None
    drafts = costs is not None and facts.cost_ratio is not None
    return Measurement(
        artifact=cell.arm.artifact,
        drafter=cell.arm.drafter,
        suite=cell.suite,
        k=cell.arm.k,
        temperature=cell.temperature,
        batch=1,
        device=setting.device,
        dtype=setting.dtype,
        reader=setting.reader,
        baseline_reader=setting.reader,
        prompts=len(cell.outputs),
        repeats=len(cell.runs),
        matches_target=cell.lossless,
        divergences=cell.divergences,
        near_ties=cell.near_ties,
        near_tie_bound=cell.near_tie_bound,
        new_tokens=new_tokens,
        target_passes=passes,
        rounds=rounds,
        tokens_per_s=_rate(cell),
        baseline_tokens_per_s=_rate(base),
        speedup=interval.value,
        speedup_low=interval.low,
        speedup_high=interval.high,
        speedup_decode=speedup(decode, setting.seed, resamples=2).value if decode else None,
        alpha=counts.alpha,
        accepted_per_proposed=counts.per_proposed,
        overlap=cell.overlap,
        tau=new_tokens / passes,
        t_draft_s=draft_s / rounds if rounds and cell.arm.drafter else None,
        t_verify_s=verify_s / rounds if rounds else None,
        t_accept_s=accept_s / rounds if rounds else None,
        t_host_s=host_s / rounds if rounds else None,
        t_overhead_s=(accept_s + host_s) / rounds if rounds else None,
        repetition=repeated_share([output.tokens for output in outputs]),
        parameters=facts.parameters,
        bytes_on_disk=facts.bytes_on_disk,
        peak_memory_bytes=cell.peak_memory_bytes,
        c=_draft_step(timed, base) if cell.arm.drafter == MODEL else None,
        forecast_t_draft_s=costs.draft_s * k if costs and drafts and k else None,
        forecast_t_verify_s=costs.verify_s(k or 0) if costs else None,
        forecast_c=costs.c if costs and drafts else None,
        forecast_speedup=forecast,
        ceiling_speedup=ceiling,
        cost_ratio=facts.cost_ratio,
        prompt_set=cell.stage,
        warning=suspicion(cell.arm, counts),
    )


def suspicion(arm: Arm, counts: Acceptance) -> str | None:
    """A drafter that is never wrong is most often the target itself, changed in place by its own compression."""
    if arm.drafter == MODEL and counts.rejected == 0 and counts.accepted >= SUSPICIOUS_EXAMINED:
        return f"all {counts.accepted} examined tokens were accepted: the drafter may be the target itself"
    return None


def _draft_step(timed: Sequence[Timed], base: Cell) -> float | None:
    """c as measured: drafting seconds a proposed token / seconds of a step of the target alone."""
    alone = [one for repeat in base.runs for one in repeat]
    proposed, steps = sum(sum(one.generation.proposed) for one in timed), sum(one.rounds for one in alone)
    if not proposed or not steps:
        return None
    return sum(one.draft_s for one in timed) / proposed / (sum(one.decode_s for one in alone) / steps)


def _rate(cell: Cell) -> float:
    totals = list(cell.totals().values())
    return sum(tokens for _, tokens in totals) / sum(seconds for seconds, _ in totals)
