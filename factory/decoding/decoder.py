"""Plain and speculative decoding: the same reader, the same sampler, the same token counter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

from factory.decoding.batch import Batch, Generation, Limits, Listener, Round
from factory.decoding.drafters import Drafter
from factory.decoding.pace import Pace, SteadyPace
from factory.decoding.reader import Reader, right_padded
from factory.decoding.rejection import Draft, accept, no_draft
from factory.decoding.sampler import Sampler
from factory.decoding.sampling import Noise, PointMasses, Sampling, draw
from factory.errors import UnsupportedModel

__all__ = [
    "NO_CLOCK",
    "Clock",
    "Generation",
    "Limits",
    "Listener",
    "Observer",
    "Round",
    "autoregressive",
    "speculative",
]

# Sees (draft, p [B, k+1, V], count [B]) of every round. It costs time: never in a timed run.
Observer = Callable[[Draft, torch.Tensor, torch.Tensor], None]


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
    batch, sampler = _begin(target, prompts, sampling, limits, noise, guesses=0)
    with clock.span("prefill"):
        emitted = _prefill(target, batch, sampler, batch.capacity)
    batch.tell(listener, emitted)
    while rows := batch.going_on(emitted):
        if len(rows) < len(emitted):
            target.select(rows)
            sampler.select(rows)
        with clock.span("verify"):
            logits = target.feed_last(batch.last_tokens(target.device))
        with clock.span("accept"):
            tokens = draw(sampler.distribution(logits), sampler.uniform("target"))
            emitted = batch.emit(tokens.unsqueeze(1).tolist(), [0] * len(rows))
            sampler.extend(emitted)
        batch.tell(listener, emitted)
    return batch.generations


@torch.inference_mode()
def speculative(
    target: Reader,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    k: int | Pace,
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
    end a row is offered fewer guesses, down to none: then the round is a plain step. Where `k` is a
    pace, it says before each round how many guesses are asked for.

    Raises DataError for a prompt that is empty or fills the context, UnsupportedModel where drafter
    and target have different vocabularies, ValueError for k < 1.
    """
    pace = SteadyPace(k) if isinstance(k, int) else k
    saw = None if isinstance(k, int) else pace.saw  # a steady pace learns nothing
    if drafter.vocabulary != target.vocabulary:
        raise UnsupportedModel(
            f"the drafter {drafter.name} has a vocabulary of {drafter.vocabulary}, the target one of "
            f"{target.vocabulary}: use a drafter made from this target, or tell it the target's size where only the "
            "padding differs"
        )
    batch, sampler = _begin(target, prompts, sampling, limits, noise, guesses=pace.most)
    capacity = batch.capacity + pace.most + 1
    with clock.span("prefill"):
        emitted = _prefill(target, batch, sampler, capacity)
        reads = pace.begin(max(map(len, prompts), default=0))
        if reads:
            drafter.start(batch.prompts(), capacity, sampler)
    batch.tell(saw, emitted)
    batch.tell(listener, emitted)
    while rows := batch.going_on(emitted):
        if len(rows) < len(emitted):
            target.select(rows)
            if reads:
                drafter.select(rows)
            sampler.select(rows)
            emitted = [emitted[row] for row in rows]
        room = batch.room()
        asked = pace.choose(room)
        most = [min(asked, left - 1) for left in room]
        with clock.span("draft"):
            if not reads and asked > 0:  # the drafter was not needed until now
                drafter.start(batch.texts_before(emitted), capacity, sampler)
                reads = True
            if reads:
                drafter.commit(emitted)
            draft = drafter.propose(max(most)).cut(most) if max(most) > 0 else no_draft(len(rows), target.device)
        with clock.span("verify"):
            read = target.lengths
            fed = torch.cat([batch.last_tokens(target.device), draft.tokens], dim=1)  # [B, k+1]
            logits = target.feed(fed, [1 + guesses for guesses in draft.length])
        with clock.span("accept"):
            p = sampler.distribution(logits, draft.tokens)
            u, last = sampler.uniform("accept", draft.tokens.shape[1]), sampler.uniform("target")
            tokens, count = accept(draft, p, u, last)
            if observer is not None:
                observer(draft, p.dense() if isinstance(p, PointMasses) else p, count)
            # one copy to the host a round: the only time that it waits for the device
            found = torch.cat([count.unsqueeze(1), tokens], dim=1).tolist()
            runs = [run[:new] for new, *run in found]
            target.rewind([old + len(run) for old, run in zip(read, runs, strict=True)])
            emitted = batch.emit(runs, draft.length)
            sampler.extend(emitted)
        batch.tell(saw, emitted)
        batch.tell(listener, emitted)
    return batch.generations


def _begin(
    target: Reader, prompts: Sequence[Sequence[int]], sampling: Sampling, limits: Limits, noise: Noise, guesses: int
) -> tuple[Batch, Sampler]:
    if limits.context > target.context:
        raise ValueError(f"limits.context is {limits.context}, but the target's context is {target.context}")
    batch = Batch(prompts, limits)
    sampler = Sampler(
        sampling,
        noise,
        prompts,
        eos=limits.eos,
        capacity=batch.capacity + guesses + 1,
        vocabulary=target.vocabulary,
        device=target.device,
    )
    return batch, sampler


def _prefill(target: Reader, batch: Batch, sampler: Sampler, capacity: int) -> list[list[int]]:
    """Read the prompts; the target's first pass gives each row's first token."""
    prompts = batch.prompts()
    if not prompts:
        return []
    target.start(len(prompts), capacity)
    logits = target.feed_last(*right_padded(prompts, target.device))
    tokens = draw(sampler.distribution(logits), sampler.uniform("target"))
    emitted = batch.begin(tokens.unsqueeze(1).tolist())
    sampler.extend(emitted)
    return emitted
