"""Plain and speculative decoding: the same reader, the same sampler, the same token counter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch

from factory.decoding.drafters import Drafter
from factory.decoding.reader import Reader, right_padded
from factory.decoding.rejection import Draft, accept, no_draft
from factory.decoding.sampling import Noise, Sampling, Stillness, draw, probabilities
from factory.errors import DataError, UnsupportedModel

# Sees (draft, p [B, k+1, V], count [B]) of every round. It costs time: never in a timed run.
Observer = Callable[[Draft, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Round:
    """What one target pass brought to the rows that were still being written, in any order.

    Of row b's new tokens the first accepted[b] were proposed; one more, where there is one, is the
    target's own: a correction where accepted[b] < proposed[b], else a bonus.
    """

    rows: list[int]  # which prompts, from 0
    emitted: list[list[int]]
    accepted: list[int]
    proposed: list[int]


# Sees every round as it ends, the prefill's (which proposes nothing) among them; what it raises ends the writing.
Listener = Callable[[Round], None]


class Clock(Protocol):
    """Told what is being done: "prefill", "draft", "verify" or "accept"; what no span covers is the host's own.

    "draft" is all that the drafter does after its prefill, "accept" is sampling, the rule and the target's rewind.
    """

    def span(self, what: str) -> AbstractContextManager[None]:
        """A context that lasts as long as the work."""


class _NoClock:
    def span(self, what: str) -> AbstractContextManager[None]:
        return _UNTIMED


_UNTIMED = nullcontext()
NO_CLOCK: Clock = _NoClock()


@dataclass(frozen=True)
class Limits:
    """Where a text ends: after max_new_tokens, after any `eos` token, or where prompt and output fill the context."""

    max_new_tokens: int
    eos: frozenset[int]
    context: int

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass
class Generation:
    """What was written for one prompt, and what it took.

    `accepted` and `proposed` have one entry per round after the prefill. Guesses behind an accepted
    EOS were examined by nobody and are not in `proposed`; so a round has a rejection iff
    accepted < proposed, and emits accepted + 1 tokens unless it ends at an accepted EOS.
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)  # new ones only; an EOS is the last
    target_passes: int = 0
    accepted: list[int] = field(default_factory=list)
    proposed: list[int] = field(default_factory=list)


@torch.inference_mode()
def autoregressive(
    target: Reader,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    limits: Limits,
    noise: Noise,
    clock: Clock = NO_CLOCK,
    listener: Listener | None = None,
) -> list[Generation]:
    """One token per row and target pass. Raises DataError for a prompt that is empty or fills the context."""
    batch = _Batch(target, prompts, limits)
    noise = _noise_for(sampling, noise, batch)
    with clock.span("prefill"):
        emitted = batch.emit_first(target, sampling, noise, batch.capacity)
    batch.tell(listener, emitted)
    while rows := batch.going_on(emitted):
        if len(rows) < len(emitted):
            target.select(rows)
            noise.select(rows)
        with clock.span("verify"):
            logits = target.feed_last(batch.last_tokens(target.device))
        with clock.span("accept"):
            race = noise.race("target", batch.written(), target.vocabulary)
            token = draw(probabilities(logits, sampling), race)
            emitted = batch.emit([[new] for new in token.tolist()], [0] * len(rows))
        batch.tell(listener, emitted)
    return batch.generations


@torch.inference_mode()
def speculative(
    target: Reader,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    k: int,
    sampling: Sampling,
    limits: Limits,
    noise: Noise,
    clock: Clock = NO_CLOCK,
    observer: Observer | None = None,
    listener: Listener | None = None,
) -> list[Generation]:
    """Up to k + 1 tokens per row and target pass, in law those of `autoregressive` (and equal to them under greedy).

    Each round the drafter proposes d1..dk, the target reads [last, d1..dk] in one pass, `accept`
    says how many guesses stand and what follows them, and both caches are rewound to that. Near its
    end a row is offered fewer guesses, down to none: then the round is a plain step.

    Raises DataError for a prompt that is empty or fills the context, UnsupportedModel where drafter
    and target have different vocabularies, ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if drafter.vocabulary != target.vocabulary:
        raise UnsupportedModel(
            f"the drafter {drafter.name} has a vocabulary of {drafter.vocabulary}, the target one of "
            f"{target.vocabulary}: use a drafter made from this target"
        )
    batch = _Batch(target, prompts, limits)
    noise = _noise_for(sampling, noise, batch)
    capacity = batch.capacity + k + 1
    with clock.span("prefill"):
        emitted = batch.emit_first(target, sampling, noise, capacity)
        drafter.start(batch.prompts(), capacity, sampling, noise)
    batch.tell(listener, emitted)
    while rows := batch.going_on(emitted):
        if len(rows) < len(emitted):
            target.select(rows)
            drafter.select(rows)
            noise.select(rows)
        most = [min(k, room - 1) for room in batch.room()]
        with clock.span("draft"):
            drafter.commit([emitted[row] for row in rows])
            draft = drafter.propose(max(most)).cut(most) if max(most) > 0 else no_draft(len(rows), target.device)
        with clock.span("verify"):
            read, proposed = target.lengths, draft.length.tolist()
            fed = torch.cat([batch.last_tokens(target.device), draft.tokens], dim=1)  # [B, k+1]
            logits = target.feed(fed, [1 + guesses for guesses in proposed])
        with clock.span("accept"):
            p = probabilities(logits, sampling)
            u = noise.uniform("accept", batch.written(), draft.tokens.shape[1])
            tokens, count = accept(draft, p, u, noise.race("target", batch.written(), target.vocabulary))
            if observer is not None:
                observer(draft, p, count)
            runs = [run[:new] for run, new in zip(tokens.tolist(), count.tolist(), strict=True)]
            target.rewind([old + len(run) for old, run in zip(read, runs, strict=True)])
            emitted = batch.emit(runs, proposed)
        batch.tell(listener, emitted)
    return batch.generations


class _Batch:
    """The rows still being written. Rows that end leave; the last ones take their places."""

    def __init__(self, target: Reader, prompts: Sequence[Sequence[int]], limits: Limits) -> None:
        if limits.context > target.context:
            raise ValueError(f"limits.context is {limits.context}, but the target's context is {target.context}")
        for number, prompt in enumerate(prompts, 1):
            if len(prompt) == 0:
                raise DataError(f"prompt {number} has no tokens: begin it with the tokenizer's BOS or EOS token")
            if len(prompt) >= limits.context:
                raise DataError(
                    f"prompt {number} has {len(prompt)} tokens, which leaves no room in a context of "
                    f"{limits.context}: shorten it or leave it out"
                )
        self.generations = [Generation(list(prompt)) for prompt in prompts]
        self._rows = list(self.generations)
        self._numbers = list(range(len(self._rows)))  # which prompt each row is of
        self._limits = limits
        longest = max((len(prompt) for prompt in prompts), default=0)
        self.capacity = min(longest + limits.max_new_tokens, limits.context)

    def prompts(self) -> list[list[int]]:
        return [row.prompt for row in self._rows]

    def written(self) -> list[int]:
        """Tokens written so far, per row: the output position of the next one."""
        return [len(row.tokens) for row in self._rows]

    def room(self) -> list[int]:
        """Tokens that each row may still write."""
        most, context = self._limits.max_new_tokens, self._limits.context
        return [min(most, context - len(row.prompt)) - len(row.tokens) for row in self._rows]

    def last_tokens(self, device: torch.device) -> torch.Tensor:
        return torch.tensor([row.tokens[-1:] for row in self._rows], device=device)  # [B, 1]

    def emit_first(self, target: Reader, sampling: Sampling, noise: Noise, capacity: int) -> list[list[int]]:
        """Read the prompts; the target's first pass gives each row's first token."""
        if not self._rows:
            return []
        target.start(len(self._rows), capacity)
        logits = target.feed_last(*right_padded(self.prompts(), target.device))
        race = noise.race("target", self.written(), target.vocabulary)
        emitted = [[token] for token in draw(probabilities(logits, sampling), race).tolist()]
        for row, run in zip(self._rows, emitted, strict=True):
            row.target_passes += 1
            row.tokens += run
        return emitted

    def emit(self, runs: list[list[int]], proposed: list[int]) -> list[list[int]]:
        """Append one round's tokens, each row cut after its first EOS."""
        emitted = []
        for row, run, guesses in zip(self._rows, runs, proposed, strict=True):
            end = next((place for place, token in enumerate(run, 1) if token in self._limits.eos), len(run))
            standing = min(len(run) - 1, end)
            row.target_passes += 1
            row.tokens += run[:end]
            row.accepted.append(standing)
            row.proposed.append(min(guesses, end) if end < len(run) else guesses)
            emitted.append(run[:end])
        return emitted

    def going_on(self, emitted: list[list[int]]) -> list[int]:
        """Which rows have not ended; the others leave. The last rows fill the gaps, so that few caches move."""
        ended = [room == 0 or run[-1] in self._limits.eos for room, run in zip(self.room(), emitted, strict=True)]
        rows = [row for row, over in enumerate(ended) if not over]
        stay = [row if not over else None for row, over in enumerate(ended)][: len(rows)]
        movers = [row for row in rows if row >= len(rows)]
        rows = [movers.pop() if row is None else row for row in stay]
        self._rows = [self._rows[row] for row in rows]
        self._numbers = [self._numbers[row] for row in rows]
        return rows

    def tell(self, listener: Listener | None, emitted: list[list[int]]) -> None:
        """Hand on what the last pass brought to every row that was still being written."""
        if listener is None or not emitted:
            return
        accepted = [row.accepted[-1] if row.accepted else 0 for row in self._rows]
        proposed = [row.proposed[-1] if row.proposed else 0 for row in self._rows]
        listener(Round(list(self._numbers), emitted, accepted, proposed))


def _noise_for(sampling: Sampling, noise: Noise, batch: _Batch) -> Noise:
    if len(noise.requests) != len(batch.generations):
        raise ValueError(f"the noise is for {len(noise.requests)} requests, but there are {len(batch.generations)}")
    if sampling.greedy:
        return Stillness(noise.seed, noise.requests, noise.device)
    return noise.copy()
