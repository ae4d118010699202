"""The sweet spot: which drafter, at which k, and how sure that is.

All suites and temperatures of one (drafter, k) are pooled, since a server has one setting for all
it is asked. The best *lower bound* wins, so that a lucky mean over few prompts does not. Winner and
runner-up are then measured on prompts that took no part in the choice, and only that second figure
is claimed: the best of many noisy figures is too high on average (the winner's curse).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.measurement import AUTO, MODEL, Acceptance, Arm, Cell, Key, Quad, acceptance, paired, suspicion
from eval.verdict.stats import Interval, speedup
from factory.forecasting.forecast import expected_tokens

FIGURES = ("artifact", "drafter", "k", "speedup", "speedup_low", "speedup_high")
FEW = 8  # prompts, or batches of them: below it the interval covers less often than it says


@dataclass(frozen=True)
class Candidate:
    """One (drafter, k) over every suite and temperature of a prompt set."""

    arm: Arm
    lossless: bool
    interval: Interval
    prompts: int
    repeats: int
    batch: int  # prompts answered together: what is resampled is a whole batch
    mean_k: float | None  # tokens proposed a round
    alpha: float | None
    round_tokens: float | None  # new tokens that a round brings to a row
    round_cost: float | None  # a round's drafting, verification and overhead, in steps of the target alone
    draft_cost: float | None  # its drafting part
    warning: str | None = None

    @property
    def resampled(self) -> int:
        """What the interval comes from: prompts, or batches of them."""
        return self.prompts // self.batch

    @property
    def low(self) -> float:
        """What is compared. One prompt has no interval and proves nothing."""
        return self.interval.low if self.interval.low is not None else 0.0

    def facts(self) -> dict[str, Any]:
        """As results.json has it."""
        interval = self.interval
        figures = (self.arm.artifact, self.arm.drafter, self.arm.k, interval.value, interval.low, interval.high)
        return dict(zip(FIGURES, figures, strict=True))


def pool(pairs: Sequence[tuple[Cell, Cell]], seed: int) -> list[Candidate]:
    """Candidates from (baseline cell, cell) pairs of one batch. A prompt's temperatures are resampled together."""
    by_arm: dict[Arm, list[tuple[Cell, Cell]]] = {}
    for base, cell in pairs:
        if cell.arm.drafter is not None:
            by_arm.setdefault(cell.arm, []).append((base, cell))
    return [_pooled(arm, cells, seed) for arm, cells in by_arm.items()]


def _pooled(arm: Arm, cells: Sequence[tuple[Cell, Cell]], seed: int) -> Candidate:
    totals: dict[Key, Quad] = {}
    for base, cell in cells:
        for key, (a, b, c, d) in paired(base, cell).items():
            w, x, y, z = totals.get(key, (0.0, 0.0, 0.0, 0.0))
            totals[key] = (w + a, x + b, y + c, z + d)
    counts: Acceptance = acceptance([one.generation for _, cell in cells for one in cell.outputs])
    timed = [one for _, cell in cells for one in cell.timed]
    alone = [one for base, _ in cells for one in base.timed]
    rounds, steps = sum(one.rounds for one in timed), sum(one.rounds for one in alone)
    passes = sum(len(one.accepted) for batch in timed for one in batch.generations)
    round_tokens = round_cost = draft_cost = None
    if passes and steps:
        round_tokens = sum(one.decoded_tokens for one in timed) / passes
        step_s = sum(one.decode_s for one in alone) / steps
        round_cost = sum(one.decode_s for one in timed) / rounds / step_s
        draft_cost = sum(one.draft_s for one in timed) / rounds / step_s
    return Candidate(
        arm=arm,
        lossless=all(cell.lossless is True for _, cell in cells),
        interval=speedup(list(totals.values()), seed),
        prompts=sum(len(requests) for _, requests in totals),
        repeats=min(len(cell.runs) for _, cell in cells),
        batch=cells[0][1].batch,
        mean_k=counts.mean_k,
        alpha=counts.alpha,
        round_tokens=round_tokens,
        round_cost=round_cost,
        draft_cost=draft_cost,
        warning=suspicion(arm, counts),
    )


def shortlist(candidates: Sequence[Candidate], count: int = 2) -> list[Candidate]:
    """The best lossless candidates by lower bound, best first: those worth a second measurement.

    One that never had a guess accepted writes as many tokens a pass as the target alone: whatever it
    measured beyond 1 is noise, so it comes last.
    """
    lossless = [candidate for candidate in candidates if candidate.lossless]
    lossless = [one for one in lossless if one.alpha] or lossless
    return sorted(lossless, key=lambda c: (c.low, c.interval.value), reverse=True)[:count]


def promising(candidates: Sequence[Candidate]) -> bool:
    """Whether any lossless candidate came out faster at all; if none did, a second look is not needed."""
    return any(candidate.lossless and candidate.interval.value > 1 for candidate in candidates)


def verdict(
    chosen: Sequence[Candidate], confirmed: Sequence[Candidate], temperatures: Sequence[float]
) -> dict[str, Any]:
    """What results.json claims: figures of the second measurement only, and their reason in words.

    `chosen`: every candidate of the first prompt set; `confirmed`: the shortlist measured again. A
    drafter is named only where its second interval lies above 1 and its outputs were the target's.
    """
    failed = [candidate.arm.words for candidate in chosen if not candidate.lossless]
    confirmed_by_arm = {candidate.arm: candidate for candidate in confirmed}
    order = [candidate.arm for candidate in shortlist(chosen) if candidate.arm in confirmed_by_arm]
    # A divergence on the fresh prompts is found here only: such an arm is out, whatever its speed.
    failed += [arm.words for arm in order if not confirmed_by_arm[arm].lossless]
    standing = [confirmed_by_arm[arm] for arm in order if confirmed_by_arm[arm].lossless]
    warnings = [f"{candidate.arm.words}: {candidate.warning}" for candidate in chosen if candidate.warning]
    if failed:
        warnings.insert(0, f"left out, because outputs were not the target's own: {', '.join(dict.fromkeys(failed))}")
    winner = next((candidate for candidate in standing if candidate.low > 1 and candidate.alpha), None)
    runner_up = next((candidate for candidate in standing if candidate is not winner), None)
    if winner is not None:
        first = next(candidate for candidate in chosen if candidate.arm == winner.arm)
        reason = _praise(winner, first, runner_up, chosen, temperatures)
        if winner is not standing[0]:
            reason += f" The first choice did not hold up on the fresh prompts: {standing[0].arm.words}."
    else:
        reason = _refusal(standing, [] if confirmed and not standing else shortlist(chosen))
        trained = shortlist([candidate for candidate in chosen if candidate.arm.drafter == MODEL], 1)
        if trained and trained[0].arm not in {candidate.arm for candidate in (*standing, *shortlist(chosen, 1))}:
            reason += f" Of the drafters with weights the best was {trained[0].arm.words}, "
            reason += f"{_figure(trained[0].interval)}: {_cause(trained[0])}."
    return {
        **(winner.facts() if winner else dict.fromkeys(FIGURES)),
        "reason": " ".join([reason, *(f"Warning: {warning}." for warning in warnings)]),
        "prompts": winner.prompts if winner else None,
        "repeats": winner.repeats if winner else None,
        "batch": chosen[0].batch if chosen else None,
        "runner_up": runner_up.facts() if runner_up and winner else None,
        "warnings": warnings,
    }


def _batches(candidate: Candidate) -> str:
    return "" if candidate.batch == 1 else f", {candidate.batch} at a time,"


def _figure(interval: Interval) -> str:
    if interval.low is None:
        return f"{interval.value:.2f}x (no interval: one observation)"
    return f"{interval.value:.2f}x ({interval.low:.2f} to {interval.high:.2f})"


def _modes(temperatures: Sequence[float]) -> str:
    return " and ".join("greedy" if t == 0 else f"temperature {t:g}" for t in temperatures)


def _sameness(temperatures: Sequence[float]) -> str:
    if all(t == 0 for t in temperatures):
        return "with the same output"
    return "with the same output" + (" (in law, above temperature 0)" if min(temperatures) == 0 else " in law")


def _praise(
    winner: Candidate,
    first: Candidate,
    runner_up: Candidate | None,
    chosen: Sequence[Candidate],
    temperatures: Sequence[float],
) -> str:
    mean_k = f" ({winner.mean_k:.1f} in the mean)" if winner.arm.k == AUTO else ""
    said = [
        f"{winner.arm.words}{mean_k} is {winner.interval.value:.2f} times as fast as the target alone, "
        f"{_sameness(temperatures)}: 95 % interval {winner.low:.2f} to "
        f"{winner.interval.high:.2f} over {winner.prompts} prompts{_batches(winner)} that took no part "
        f"in choosing it, {_modes(temperatures)} (on the prompts it was chosen by: {_figure(first.interval)})."
    ]
    if winner.arm.drafter != MODEL and any(candidate.arm.drafter == MODEL for candidate in chosen):
        said.append("It needs no training and no memory: no trained drafter is needed here.")
    if runner_up is not None:
        said.append(f"Runner-up: {runner_up.arm.words}, {_figure(runner_up.interval)}.")
        if runner_up.low > winner.low:
            said.append("It did better here, but was not the first choice before: which is faster is not sure.")
        elif runner_up.interval.high is not None and runner_up.interval.high > winner.low:
            said.append("The intervals of the two overlap: which is faster is not sure.")
    if winner.resampled < FEW:
        of_what = "prompts" if winner.batch == 1 else f"batches of {winner.batch}"
        said.append(f"Only {winner.resampled} {of_what}: the interval is rough.")
    if winner.repeats == 1:
        said.append("Each prompt was timed once: a disturbance of the machine would not be noticed.")
    return " ".join(said)


def _refusal(standing: Sequence[Candidate], first: Sequence[Candidate]) -> str:
    if not first:
        return "None is faster than the target, because no drafter's output was the target's own."
    best = max(standing, key=lambda candidate: candidate.low) if standing else first[0]
    where = "on fresh prompts" if standing else "on the prompts to choose by"
    figure = f"the best, {best.arm.words}, measured {_figure(best.interval)} {where}"
    if best.interval.low is None:
        return f"None is shown to be faster than the target: {figure}. Give more prompts."
    if best.interval.value > 1:
        return (
            f"None is shown to be faster than the target: {figure}, and that interval includes 1 "
            f"({best.prompts} prompts). More prompts or repeats would decide it."
        )
    return f"None is faster than the target, because {_cause(best)}: {figure}."


def _cause(best: Candidate) -> str:
    """Prefills too dear, acceptance too low, or drafting too dear: from the cost of a round and the i.i.d. model."""
    k, cost, alpha = best.arm.fixed_k, best.round_cost, best.alpha
    if cost is None or alpha is None:
        return "too little was proposed"
    bargain = f"a round brings {best.round_tokens:.2f} tokens for {cost:.2f} steps of the target"
    if best.round_tokens is not None and best.round_tokens > cost:  # these are of decoding, the speedup of the whole
        return f"what rounds gain is lost outside of them, as in prefills: {bargain}"
    if best.arm.drafter != MODEL:
        return f"the text repeats itself too little: {bargain}"
    bargain += f", {best.draft_cost:.2f} of them drafting"
    if k is None:
        return f"no k pays that was tried: {bargain}, with {best.mean_k:.1f} tokens proposed in the mean"
    needed = break_even_alpha(cost, k)
    if needed is None:
        return f"rounds are too dear: {bargain}, and even with alpha 1 would bring no more than {k + 1}"
    if alpha < needed:
        return f"too little is accepted: {bargain}; alpha is {alpha:.2f}, and would have to be {needed:.2f}"
    return (
        f"acceptance is too uneven: {bargain}; alpha is {alpha:.2f}, which were it even would do from {needed:.2f} on"
    )


def break_even_alpha(round_cost: float, k: int) -> float | None:
    """The alpha at which a round brings as many tokens as it costs steps; None where no alpha does.

    Solves (1 - a^(k+1)) / (1 - a) = cost by bisection (arXiv 2211.17192, eq. 1, with the measured cost of a
    round in place of k c + 1). 0 where a round costs no more than a step.
    """
    if round_cost > k + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_tokens(middle, k) < round_cost else (low, middle)
    return high
