"""Speculation on the 7B shape: a round against its parts, against `generate(assistant_model=)`, as modelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from decoder_pairs import Pair, SkippedError
from decoder_passes import Row, alone, block, pass_of, rounds, row, seconds
from gpu_pairs import Bench, in_order, longest, prepared, recordings, seven

from eval import peers
from eval.measurement import acceptance
from eval.peers import Timings
from eval.verdict.stats import Interval
from factory.decoding.batch import Generation
from factory.decoding.drafters import ModelDrafter
from factory.decoding.reader import Reader
from factory.decoding.sampling import Sampling


def speculation(bench: Bench) -> Iterator[Row]:
    """In order of importance."""
    pair = seven(bench)
    name, k = pair.drafter(), pair.settings.k
    target, drafter = pair.reader(), pair.reader(name)
    bench.facts |= {"model": pair.facts(), "reader": target.name, "why": target.why, "k": k}
    bench.facts["prepare_s"] = {
        "target": prepared(target, (1, k + 1), longest(pair)),
        "drafter": seconds(partial(ModelDrafter(drafter).prepare, 1, [k], longest(pair), Sampling()), bench.device),
    }
    yield from in_order(
        bench,
        [
            ("a round, greedy", 0, lambda: iter([rounds(pair, name, Sampling())])),
            ("generate(assistant_model=)", 0, lambda: against_assisted(pair, name)),
            ("a round, temperature 1", 0, lambda: iter([rounds(pair, name, Sampling(temperature=1.0))])),
        ],
    )
    bench.facts |= {"model": pair.facts(), "recordings": {"target": recordings(target), "drafter": recordings(drafter)}}


def against_assisted(pair: Pair, name: str) -> Iterator[Row]:
    """Ours and transformers' assisted generation, the same pair and k; ours against the target alone; as modelled."""
    k, settings = pair.settings.k, pair.settings
    match = pair.match(name, k)
    field = [*peers.ours(match, pair.reader(), pair.reader(name)), *peers.peers(match)]
    wanted = (peers.OURS, peers.OURS_DRAFTED, peers.ASSISTED)
    field = [one for one in field if one.name in wanted]
    found = peers.contest(field, pair.timed, Sampling(), repeats=settings.repeats, seed=settings.seed)
    alone_, drafted, assisted = (found[one] for one in wanted)
    yield row(
        "our speculative decode / generate(assistant_model=), greedy",
        pair.name,
        peers.faster(drafted, assisted),
        (">=", 10.0),
        alpha={one.name: acceptance(one.rounds).alpha for one in (drafted, assisted)},
        ours_tokens_per_s=drafted.tokens_per_s,
        theirs_tokens_per_s=assisted.tokens_per_s,
        k=k,
    )
    yield row(
        f"speedup of the drafter, k = {k}, greedy (acceptance arranged)",
        pair.name,
        peers.faster(drafted, alone_),
        alpha=acceptance(drafted.rounds).alpha,
        baseline_tokens_per_s=alone_.tokens_per_s,
    )
    yield modelled(pair, name, alone_, drafted, k)


def modelled(pair: Pair, name: str, base: Timings, arm: Timings, k: int) -> Row:
    """The speedup that passes timed alone, and the rounds that were seen, make / the one measured.

    seconds alone = prefill + (new tokens - 1) * t_target; seconds drafted = both prefills, and for each round
    its guesses * t_draft + t_verify(guesses + 1), where t_verify of a round with fewer than k guesses lies on the line
    between a step and a verification of k + 1. What is not in it: sampling, acceptance, rewinding, the host.
    """
    target, drafter = pair.reader(), pair.reader(name)
    ratio = peers.faster(arm, base)
    if ratio.low is None or ratio.high is None:
        raise SkippedError("one prompt has no interval")
    middle = len(pair.timed[0].ids) + pair.limits.max_new_tokens // 2
    device = str(target.device)
    draft_s, verify_s = alone(target, drafter, k, middle)
    step_s = block(pass_of(target, 1, middle), 4, device)
    prefill_s, drafter_prefill_s = (block(lambda one=one: _prefill(one, pair), 3, device) for one in (target, drafter))
    base_s, arm_s = 0.0, 0.0
    for plain, written in zip(base.outputs, arm.rounds, strict=True):
        base_s += prefill_s + (len(plain.tokens) - 1) * step_s
        arm_s += prefill_s + drafter_prefill_s + _rounds_s(written, k, draft_s, step_s, verify_s)
    tokens = [sum(len(output.tokens) for output in outputs) for outputs in (base.outputs, arm.rounds)]
    said = (base_s / tokens[0]) / (arm_s / tokens[1])
    return row(
        f"modelled / measured speedup, k = {k}",
        pair.name,
        Interval(said / ratio.value, said / ratio.high, said / ratio.low),
        ("within", 0.05),
        modelled=said,
        measured=ratio.value,
        alpha=acceptance(arm.rounds).alpha,
        draft_step_ms=1e3 * draft_s,
        step_ms=1e3 * step_s,
        verify_ms=1e3 * verify_s,
    )


def _rounds_s(written: Generation, k: int, draft_s: float, step_s: float, verify_s: float) -> float:
    return sum(guesses * draft_s + step_s + (verify_s - step_s) * min(guesses, k) / k for guesses in written.proposed)


def _prefill(reader: Reader, pair: Pair) -> None:
    prompt: Sequence[int] = pair.timed[0].ids
    reader.start(1, len(prompt) + pair.limits.max_new_tokens)
    reader.feed_last(torch.tensor([list(prompt)], device=reader.device))
