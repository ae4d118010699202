"""The row of results.json that is made of a cell beside its baseline.

Rows of temperature 0 compare outputs token by token. Rows above it cannot: speculative sampling equals
plain sampling in law, not per seed. Their `divergences` are null, and their `matches_target` is what
the greedy parity run found for the same drafter and k: the same code decides both, greedy being the
one-hot case of its one rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

from eval.measurement import MODEL, Acceptance, ArmFacts, Cell, K, Timed, acceptance, paired, suspicion
from eval.verdict.stats import repeated_share, speedup
from factory.forecasting.forecast import Costs, modelled_speedup

if TYPE_CHECKING:
    from factory.decoding.decoder import Generation


@dataclass(frozen=True)
class Measurement:
    """One row of results.json. What does not apply is None, never missing."""

    artifact: str | None
    drafter: str | None
    suite: str
    k: K | None
    mean_k: float | None
    temperature: float
    batch: int
    device: str
    dtype: str
    reader: str
    drafter_reader: str | None
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
    latency_s_per_token: float  # mean over outputs: seconds of its batch / its new tokens
    time_to_first_token_s: float  # mean over outputs: its batch's prefill, a drafter's included
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    speedup_decode: float | None
    alpha: float | None
    accepted_per_proposed: float | None
    accepted_lengths: list[int] | None  # how many rounds, of the first repeat, had 0, 1, 2 ... tokens accepted
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
    modelled_speedup: float | None  # from the measured parts, where the forecast has sizes
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


def measure(cell: Cell, base: Cell, facts: ArmFacts, setting: Setting, costs: Costs | None = None) -> Measurement:
    """The row of a cell beside its baseline cell (itself, where the target writes alone).

    `costs` is the forecast for this device; None where the shapes are not known. Its speedup is at the measured alpha.
    """
    timed = cell.timed
    outputs = [one.generation for one in cell.outputs]
    counts = acceptance(outputs) if cell.arm.drafter else Acceptance(0, 0, 0, 0)
    interval = speedup(list(paired(base, cell).values()), setting.seed)
    # Outputs of one token have no decode time; were all of them such, there is no figure.
    decode = [quad for quad in paired(base, cell, decode_only=True).values() if quad[1] > 0 and quad[3] > 0]
    rounds = sum(one.rounds for one in timed)
    draft_s, verify_s = sum(one.draft_s for one in timed), sum(one.verify_s for one in timed)
    accept_s, host_s = sum(one.accept_s for one in timed), sum(one.host_s for one in timed)
    new_tokens = sum(len(output.tokens) for output in outputs)
    passes = sum(output.target_passes for output in outputs)
    k, forecast, ceiling = cell.arm.fixed_k, None, None
    if counts.alpha is not None and facts.cost_ratio is not None and k is not None:
        ceiling = modelled_speedup(counts.alpha, k, facts.cost_ratio)
        forecast = costs.speedup(counts.alpha, k) if costs else None
    drafts = costs is not None and facts.cost_ratio is not None
    return Measurement(
        artifact=cell.arm.artifact,
        drafter=cell.arm.drafter,
        suite=cell.suite,
        k=cell.arm.k,
        mean_k=counts.mean_k,
        temperature=cell.temperature,
        batch=cell.batch,
        device=setting.device,
        dtype=setting.dtype,
        reader=setting.reader,
        drafter_reader=facts.drafter_reader,
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
        latency_s_per_token=mean(one.total_s / len(text.tokens) for one in timed for text in one.generations),
        time_to_first_token_s=mean(one.prefill_s for one in timed for _ in one.generations),
        speedup=interval.value,
        speedup_low=interval.low,
        speedup_high=interval.high,
        speedup_decode=speedup(decode, setting.seed, resamples=2).value if decode else None,
        alpha=counts.alpha,
        accepted_per_proposed=counts.per_proposed,
        accepted_lengths=count_lengths([(one.accepted, one.proposed) for one in outputs]) if cell.arm.drafter else None,
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
        modelled_speedup=modelled(cell, base) if cell.arm.drafter else None,
        ceiling_speedup=ceiling,
        cost_ratio=facts.cost_ratio,
        prompt_set=cell.stage,
        warning=suspicion(cell.arm, counts),
    )


def count_lengths(outputs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[int]:
    """How many rounds had so many tokens accepted, from none to the most that any round was offered.

    An output is what was accepted, and what was proposed, round by round.
    """
    counts = [0] * (1 + max((max(proposed, default=0) for _, proposed in outputs), default=0))
    for accepted, _ in outputs:
        for length in accepted:
            counts[length] += 1
    return counts


def modelled(cell: Cell, base: Cell) -> float | None:
    """Speedup from measured parts: tokens a round * t_step / (k t_draft + t_verify(k+1) + accept and host).

    Tokens a round are the mean of the measured accepted lengths plus one, so acceptance need not be even. Rounds that
    begin less than k + 1 tokens before an output's end are left out, since fewer guesses are offered there: this is
    what a long output would gain, prefills left out. In a batch all rows are taken to go on in every round, which they
    do not where some accept more than others: it is then above what was measured. None where no output has a whole
    round.
    """
    outputs = [output for one in cell.timed for output in one.generations]
    most = cell.arm.fixed_k or max((max(output.proposed, default=0) for output in outputs), default=0)
    whole = [one for output in outputs for one in _whole_rounds(output, most)]
    rounds, steps = sum(one.rounds for one in cell.timed), sum(one.rounds for one in base.timed)
    if not whole or not steps:
        return None
    tokens, guesses = mean(accepted + 1 for accepted, _ in whole), mean(proposed for _, proposed in whole)
    draft_s = sum(one.draft_s for one in cell.timed) / rounds
    if cell.arm.drafter == MODEL:
        drafted = sum(one.draft_steps for one in cell.timed)
        draft_s = guesses * draft_s * rounds / drafted if drafted else 0.0
    rest_s = sum(one.decode_s - one.draft_s for one in cell.timed) / rounds
    return tokens * (sum(one.decode_s for one in base.timed) / steps) / (draft_s + rest_s)


def _whole_rounds(output: Generation, most: int) -> Iterator[tuple[int, int]]:
    """(accepted, proposed) of the rounds in which `most` guesses could be offered."""
    written = 1
    for accepted, proposed in zip(output.accepted, output.proposed, strict=True):
        if written + most + 1 <= len(output.tokens):
            yield accepted, proposed
        written += accepted + 1


def _draft_step(timed: Sequence[Timed], base: Cell) -> float | None:
    """c as measured: seconds of a draft step / seconds of a step of the target alone, at the same batch."""
    drafted, steps = sum(one.draft_steps for one in timed), sum(one.rounds for one in base.timed)
    if not drafted or not steps:
        return None
    return sum(one.draft_s for one in timed) / drafted / (sum(one.decode_s for one in base.timed) / steps)


def _rate(cell: Cell) -> float:
    totals = list(cell.totals().values())
    return sum(tokens for _, tokens in totals) / sum(seconds for seconds, _ in totals)
