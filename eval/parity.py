"""Is the output the target's own? In float64 exactly; in a served dtype but for near-ties, each one audited.

A fast wrong decoder is easy to write, so this runs before any clock. Greedy output is compared token
by token with plain decoding, and plain decoding with the argmax of transformers' own uncached forward
pass. In float32 and bfloat16 a (k+1)-row product rounds differently from k+1 single rows, and two
logits closer than that rounding may change places: such a divergence is a *near-tie*. How close is
measured in the same run, not chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from factory.decoding.decoder import Generation, Limits, autoregressive, speculative
from factory.decoding.drafters import Drafter
from factory.decoding.pace import Pace
from factory.decoding.processors import History
from factory.decoding.reader import Reader, right_padded
from factory.decoding.sampling import Noise, Sampling
from factory.models.placement import entry_device

LARGEST_EXACT = 100_000_000  # parameters: above it float64 on a CPU takes too long and too much memory
GREEDY = Sampling()
PROBES = 4  # outputs on which the rounding is measured

Item = TypeVar("Item")


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

    @classmethod
    def of(cls, audits: Sequence[Audit]) -> Audit:
        """Several taken together; the bound is the largest. One that compared nothing leaves nothing compared."""
        bounds = [found.bound for found in audits if found.bound is not None]
        return cls(
            sum(found.compared for found in audits) if all(found.compared for found in audits) else 0,
            sum(found.divergences for found in audits),
            sum(found.near_ties for found in audits),
            max(bounds, default=None),
            tuple(line for found in audits for line in found.detail),
        )

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
    (found,) = forced_batch(reader, [Generation(list(prompt), list(tokens))], rows, 1)
    return found


@torch.no_grad()
def forced_batch(reader: Reader, outputs: Sequence[Generation], rows: int, keep: int) -> list[torch.Tensor]:
    """The same for a batch of outputs, each with at least one token: [len(tokens), V] for the first `keep` of them.

    An output that has ended waits in its row.
    """
    longest = max(len(output.prompt) + len(output.tokens) for output in outputs)
    reader.start(len(outputs), longest + rows)
    logits = reader.feed_last(*right_padded([output.prompt for output in outputs], reader.device))  # [B, V]
    found = [[row] for row in logits[:keep].unsqueeze(1).double().cpu()]  # [1, V] each
    for start in range(0, max(len(output.tokens) for output in outputs) - 1, rows):
        parts = [output.tokens[start : min(start + rows, len(output.tokens) - 1)] for output in outputs]
        tokens, count = right_padded(parts, reader.device)  # [B, rows]
        logits = reader.feed(tokens, count)[:keep].double().cpu()
        for row, (block, real) in enumerate(zip(logits, count, strict=False)):
            found[row].append(block[:real])
    return [torch.cat(parts) for parts in found]


def near_tie_bounds(
    reader: Reader, outputs: Sequence[Generation], ks: Iterable[int], batch: int = 1
) -> dict[int, float]:
    """For each k, twice the largest difference between 1-row and (k+1)-row logits of the same positions.

    Twice, because each of two logits may have moved by it. Where outputs are written `batch` at a time,
    a batch's 1-row and (k+1)-row passes are both compared with those of one row alone, since its size
    rounds differently too. 0, so that nothing is excused, where the difference is as large as the
    logits' own spread: that is a fault of the reader, not a rounding.
    """
    written = [output for output in outputs if len(output.tokens) > 1][: max(batch, PROBES)]
    probes = written[:PROBES]
    if not probes:
        return dict.fromkeys(ks, 0.0)
    single = [forced_logits(reader, probe.prompt, probe.tokens, 1) for probe in probes]  # [T, V] each

    def moved(rows: int) -> float:
        if batch > 1:
            blocks = forced_batch(reader, written, rows, len(probes))
        else:
            blocks = [forced_logits(reader, probe.prompt, probe.tokens, rows) for probe in probes]
        return max(float((a - b).abs().max()) for a, b in zip(single, blocks, strict=True))

    spread = min(float(logits.std(dim=-1).mean()) for logits in single)
    by_batch = moved(1) if batch > 1 else 0.0
    bounds = {k: 2 * max(by_batch, moved(k + 1)) for k in ks}
    return {k: bound if bound < spread else 0.0 for k, bound in bounds.items()}


def audit(
    reader: Reader,
    baseline: Sequence[Generation],
    outputs: Sequence[Generation],
    bound: float | None,
    sampling: Sampling = GREEDY,
    eos: frozenset[int] = frozenset(),
) -> Audit:
    """Compare greedy outputs with the baseline's. `bound` None (float64): every divergence is a failure.

    A divergence is a near-tie when, after the common prefix fed in 1-row steps, neither token's logit
    lies further than `bound` below the largest. `sampling` is what both were written with: its
    penalties are applied to the logits that are compared.
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
        logits = _processed(logits, reference.prompt, prefix, sampling, eos)
        gap = float(logits.max() - logits[pair].min())
        if bound is not None and gap < bound:
            near_ties += 1
        else:
            detail.append(f"token {position}: {pair[1]} instead of {pair[0]}, logits {gap:.3g} apart")
    return Audit(len(outputs), divergences, near_ties, bound, tuple(detail))


def _processed(
    logits: torch.Tensor, prompt: list[int], prefix: list[int], sampling: Sampling, eos: frozenset[int]
) -> torch.Tensor:
    """Logits [V] after prompt and prefix, as what looks back makes them."""
    if not sampling.looks_back:
        return logits
    capacity = len(prompt) + len(prefix) + 1
    history = History([prompt], capacity, sampling, eos, logits.shape[-1], logits.device)
    history.extend([prefix])
    return history.apply(logits[None, None], None)[0, 0]


@torch.no_grad()
def uncached_audit(model: PreTrainedModel, outputs: Sequence[Generation], bound: float | None) -> Audit:
    """Compare outputs with transformers' own forward pass: no cache, no reader of ours, one pass each.

    Greedy means that each token has the largest logit given all before it; the lowest index wins a tie.
    """
    divergences = near_ties = 0
    detail = []
    device = entry_device(model)
    for output in outputs:
        ids = torch.tensor([[*output.prompt, *output.tokens]], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(output.prompt) - 1 : -1]  # [T, V]
        tokens = torch.tensor(output.tokens, device=device)
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
    """Writes greedily with one reader, `batch` prompts at a time."""

    reader: Reader
    limits: Limits
    batch: int = 1
    sampling: Sampling = GREEDY  # of temperature 0; what looks back may be on

    def alone(self, prompts: Sequence[list[int]]) -> list[Generation]:
        """The target alone."""
        parts = in_parts(prompts, self.batch)
        return [
            one
            for part in parts
            for one in autoregressive(self.reader, part, self.sampling, self.limits, self._noise(part))
        ]

    def drafted(self, drafter: Drafter, k: int | Pace, prompts: Sequence[list[int]]) -> list[Generation]:
        """The target with a drafter."""
        parts = in_parts(prompts, self.batch)
        return [
            one
            for part in parts
            for one in speculative(self.reader, drafter, part, k, self.sampling, self.limits, self._noise(part))
        ]

    def _noise(self, part: Sequence[list[int]]) -> Noise:
        return Noise(0, range(len(part)), device=self.reader.device)  # asked for, but greedy does not depend on it


class Reference:
    """What a target writes greedily by itself: compared with transformers, and what its arms are compared with.

    In float64 nothing is excused; in another dtype near-ties are, as `audit` says. Where `sampling` looks
    back, arms are compared twice, without that and with it; transformers are asked without it only.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        reader: Reader,
        prompts: Sequence[list[int]],
        limits: Limits,
        ks: Iterable[int],
        batch: int = 1,
        sampling: Sampling = GREEDY,
    ) -> None:
        """`reader` reads the target; `ks` are those that `against` will be asked for."""
        self._target = target
        self._prompts = prompts
        self._greedy = Greedy(reader, limits, batch)
        self.alone = self._greedy.alone(prompts)
        self._penalised = Greedy(reader, limits, batch, sampling) if sampling.looks_back else None
        self._penalised_alone = self._penalised.alone(prompts) if self._penalised is not None else []
        self._passes = limits.max_new_tokens  # an uncached pass has as many rows as the output is long
        self._bounds: dict[int, float] | None = None
        if target.dtype != torch.float64:
            self._bounds = near_tie_bounds(reader, self.alone, sorted({self._passes, *ks}), batch)

    def itself(self) -> Audit:
        """The target alone against transformers' own uncached forward pass."""
        return uncached_audit(self._target, self.alone, self._bound(self._passes))

    def against(self, drafter: Drafter, k: int | Pace) -> Audit:
        """The target with a drafter against the target alone."""
        reader, bound = self._greedy.reader, self._bound(k)
        found = audit(reader, self.alone, self._greedy.drafted(drafter, k, self._prompts), bound)
        if self._penalised is None:
            return found
        given, outputs = self._penalised, self._penalised.drafted(drafter, k, self._prompts)
        return Audit.of([found, audit(reader, self._penalised_alone, outputs, bound, given.sampling, given.limits.eos)])

    def _bound(self, k: int | Pace) -> float | None:
        if self._bounds is None:
            return None
        return self._bounds[k if isinstance(k, int) else k.most]


def in_parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive parts of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
