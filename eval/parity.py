"""Is the output the target's own? In float64 exactly; in a served dtype but for near-ties, each one audited.

A fast wrong decoder is easy to write, so this runs before any clock. Greedy output is compared token
by token with plain decoding, and plain decoding with the argmax of transformers' own uncached forward
pass. In float32 and bfloat16 a (k+1)-row product rounds differently from k+1 single rows, and two
logits closer than that rounding may change places: such a divergence is a *near-tie*. How close is
measured in the same run, not chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from eval.arms import Entry
from eval.measurement import Arm
from factory.decoding.decoder import Generation, Limits, autoregressive, speculative
from factory.decoding.drafters import Drafter
from factory.decoding.eager import EagerReader
from factory.decoding.reader import Reader
from factory.decoding.sampling import Noise, Sampling

LARGEST_EXACT = 100_000_000  # parameters: above it float64 on a CPU takes too long and too much memory
PROBES = 4  # outputs on which the rounding is measured


@dataclass(frozen=True)
class Audit:
    """What comparing greedy outputs with the baseline's found."""

    compared: int
    divergences: int
    near_ties: int
    bound: float | None  # None: no difference is excused
    detail: tuple[str, ...] = ()  # one sentence for each divergence that is no near-tie

    @property
    def passed(self) -> bool:
        """Something was compared, and every divergence is a near-tie."""
        return self.compared > 0 and self.divergences == self.near_ties

    def facts(self) -> dict[str, Any]:
        """As results.json has it."""
        return {
            "outputs": self.compared,
            "divergences": self.divergences,
            "near_ties": self.near_ties,
            "near_tie_bound": self.bound,
            "passed": self.passed,
            "detail": list(self.detail),
        }


def first_divergence(left: Sequence[int], right: Sequence[int]) -> int | None:
    """The first position at which two outputs differ, their ends included; None where they are equal."""
    for position, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return position
    return None if len(left) == len(right) else min(len(left), len(right))


@torch.no_grad()
def forced_logits(reader: Reader, prompt: Sequence[int], tokens: Sequence[int], rows: int) -> torch.Tensor:
    """Logits before each of `tokens`, the true tokens fed `rows` at a time: [len(tokens), V], float64 on the CPU.

    The first come from the prefill, as in decoding.
    """
    reader.start(1, len(prompt) + len(tokens) + rows)
    found = [reader.feed_last(torch.tensor([list(prompt)], device=reader.device))]  # [1, V]
    for start in range(0, len(tokens) - 1, rows):
        part = torch.tensor([list(tokens[start : min(start + rows, len(tokens) - 1)])], device=reader.device)
        found.append(reader.feed(part)[0])  # [rows, V]
    return torch.cat([logits.double().cpu() for logits in found])


def near_tie_bounds(reader: Reader, outputs: Sequence[Generation], ks: Iterable[int]) -> dict[int, float]:
    """For each k, twice the largest difference between 1-row and (k+1)-row logits of the same positions.

    Twice, because each of two logits may have moved by it. 0, so that nothing is excused, where the
    difference is as large as the logits' own spread: that is a fault of the reader, not a rounding.
    """
    probes = [output for output in outputs if len(output.tokens) > 1][:PROBES]
    single = [forced_logits(reader, probe.prompt, probe.tokens, 1) for probe in probes]  # [T, V] each
    spread = min((float(logits.std(dim=-1).mean()) for logits in single), default=0.0)
    bounds = {}
    for k in ks:
        blocks = [forced_logits(reader, probe.prompt, probe.tokens, k + 1) for probe in probes]
        moved = max((float((a - b).abs().max()) for a, b in zip(single, blocks, strict=True)), default=0.0)
        bounds[k] = 2 * moved if 2 * moved < spread else 0.0
    return bounds


def audit(reader: Reader, baseline: Sequence[Generation], outputs: Sequence[Generation], bound: float | None) -> Audit:
    """Compare greedy outputs with the baseline's. `bound` None (float64): every divergence is a failure.

    A divergence is a near-tie when, after the common prefix fed in 1-row steps, neither token's logit
    lies further than `bound` below the largest.
    """
    divergences = near_ties = 0
    detail = []
    for reference, output in zip(baseline, outputs, strict=True):
        position = first_divergence(reference.tokens, output.tokens)
        if position is None:
            continue
        divergences += 1
        pair = [tokens[position] for tokens in (reference.tokens, output.tokens) if position < len(tokens)]
        if len(pair) < 2:
            detail.append(f"one output ends after {position} tokens, the other goes on")
            continue
        prefix = reference.tokens[:position]
        logits = forced_logits(reader, reference.prompt, [*prefix, pair[0]], 1)[position]
        gap = float(logits.max() - logits[pair].min())
        if bound is not None and gap < bound:
            near_ties += 1
        else:
            detail.append(f"token {position}: {pair[1]} instead of {pair[0]}, logits {gap:.3g} apart")
    return Audit(len(outputs), divergences, near_ties, bound, tuple(detail))


@torch.no_grad()
def uncached_audit(model: PreTrainedModel, outputs: Sequence[Generation], bound: float | None) -> Audit:
    """Compare outputs with transformers' own forward pass: no cache, no reader of ours, one pass each.

    Greedy means that each token has the largest logit given all before it; the lowest index wins a tie.
    """
    divergences = near_ties = 0
    detail = []
    for output in outputs:
        ids = torch.tensor([[*output.prompt, *output.tokens]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(output.prompt) - 1 : -1]  # [T, V]
        tokens = torch.tensor(output.tokens, device=model.device)
        wrong = (logits.argmax(dim=-1) != tokens).nonzero().flatten().tolist()
        if not wrong:
            continue
        divergences += 1
        gaps = [float(logits[i].double().max() - logits[i, tokens[i]].double()) for i in wrong]
        if bound is not None and max(gaps) < bound:
            near_ties += 1
        else:
            detail.append(f"token {wrong[0]}: not the argmax of an uncached pass, logits {max(gaps):.3g} apart")
    return Audit(len(outputs), divergences, near_ties, bound, tuple(detail))


@dataclass(frozen=True)
class Greedy:
    """Writes greedily with one reader, one prompt at a time."""

    reader: Reader
    limits: Limits

    def alone(self, prompts: Sequence[list[int]]) -> list[Generation]:
        """The target alone."""
        return [autoregressive(self.reader, [p], Sampling(), self.limits, self._noise())[0] for p in prompts]

    def drafted(self, drafter: Drafter, k: int, prompts: Sequence[list[int]]) -> list[Generation]:
        """The target with a drafter."""
        return [speculative(self.reader, drafter, [p], k, Sampling(), self.limits, self._noise())[0] for p in prompts]

    def _noise(self) -> Noise:
        return Noise(0, [0], device=str(self.reader.device))  # asked for, but greedy does not depend on it


def check(
    target: PreTrainedModel,
    drafters: Callable[[Entry], Drafter],
    field: Sequence[Entry],
    prompts: Sequence[list[int]],
    limits: Limits,
    told: Callable[[], None],
) -> dict[Arm, Audit]:
    """Greedy parity of the target alone and of every arm. In float64 nothing is excused.

    In another dtype (targets too large for float64) near-ties are, as `audit` says. `drafters` loads
    an entry's drafter; one is held at a time.
    """
    greedy = Greedy(EagerReader(target), limits)
    alone = greedy.alone(prompts)
    bounds: dict[int, float] | None = None
    if target.dtype != torch.float64:
        # An uncached pass has as many rows as the output is long.
        bounds = near_tie_bounds(greedy.reader, alone, {limits.max_new_tokens, *(k for e in field for k in e.ks)})
    found = {Arm(): uncached_audit(target, alone, bounds[limits.max_new_tokens] if bounds else None)}
    told()
    for entry in field:
        drafter = drafters(entry)
        for arm, k in zip(entry.arms, entry.ks, strict=True):
            outputs = greedy.drafted(drafter, k, prompts)
            found[arm] = audit(greedy.reader, alone, outputs, bounds[k] if bounds else None)
            told()
    return found
