"""Single passes and whole rounds, timed: verification, a round against its parts, a draft step against its bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, get_args

import torch
from decoder_pairs import Pair, SkippedError

from eval.timing.bench import Stopwatch
from eval.verdict.stats import Interval, speedup
from factory.decoding.decoder import speculative
from factory.decoding.drafters import ModelDrafter
from factory.decoding.graphed import GraphedReader
from factory.decoding.reader import Reader
from factory.decoding.readers import ReaderKind, open_reader, require_target_reader
from factory.decoding.sampling import Noise, Sampling
from factory.errors import UnsupportedModel
from factory.forecasting.profile import DeviceProfile

KINDS: tuple[ReaderKind, ...] = tuple(kind for kind in get_args(ReaderKind) if kind != "auto")
WARM_UP = 3  # passes
AT = 48  # tokens before a pass that is timed alone
Row = dict[str, Any]
Pass = Callable[[], None]
GREEDY = Sampling()


def row(what: str, model: str, ratio: Interval, goal: tuple[str, float] | None = None, **detail: Any) -> Row:
    """One line of the table; `goal` is (relation, value)."""
    goals = {"relation": goal[0], "value": goal[1]} if goal else None
    return {
        "what": what,
        "model": model,
        "goal": goals,
        "value": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "detail": detail,
    }


def seconds(work: Pass, device: str = "cpu") -> float:
    """Of one run, all that the device was given done."""
    watch = Stopwatch(device)
    begun_s = watch.now_s()
    work()
    return watch.now_s() - begun_s


def longer(base: Pass, arm: Pass, repeats: int, device: str = "cpu") -> tuple[Interval, float, float]:
    """How many times as long `arm` takes as `base`, taken in turn; and the mean seconds of both.

    A ratio of totals, its interval over repeats.
    """
    for _ in range(WARM_UP):
        base(), arm()
    quads = []
    for turn in range(repeats):
        if turn % 2:
            arm_s, base_s = seconds(arm, device), seconds(base, device)
        else:
            base_s, arm_s = seconds(base, device), seconds(arm, device)
        quads.append((arm_s, 1.0, base_s, 1.0))
    return speedup(quads), sum(quad[2] for quad in quads) / repeats, sum(quad[0] for quad in quads) / repeats


def pass_of(reader: Reader, width: int, before: int = AT) -> Pass:
    """A pass of `width` tokens behind `before` others, taken back: what verification does, or a draft step at one."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, reader.vocabulary, (1, before + width), generator=generator).to(reader.device)
    reader.start(1, before + 64)
    reader.feed_last(ids[:, :before])
    block = ids[:, before:]

    def once() -> None:
        if width == 1:
            reader.feed_last(block)
        else:
            reader.feed(block, [width])
        reader.rewind([before])

    return once


def one_and_many(reader: Reader, width: int) -> tuple[Pass, Pass]:
    """Passes of one token and of `width`, behind the same tokens."""
    many = pass_of(reader, width)
    block = torch.full((1, 1), 5, device=reader.device)

    def one() -> None:
        reader.feed_last(block)
        reader.rewind([AT])

    return one, many


def verification(pair: Pair) -> Iterator[Row]:
    """k + 1 tokens in one pass / one token in one pass, by reader. The goal is for the reader that `auto` takes."""
    chosen, width = pair.reader().name, pair.settings.k + 1
    for kind in KINDS:
        try:
            require_target_reader(kind)
        except UnsupportedModel:
            continue  # it would change what the target says
        reader = pair.reader() if kind == chosen else open_reader(pair.target, kind)
        if reader.name != kind:
            continue  # fell back to one that is measured anyway
        prepare_s = seconds(partial(reader.prepare, 1, [width], 64))
        compiling = {"compile_s": prepare_s} if kind in ("compiled", "graphed") else {}
        ratio, one_s, many_s = longer(*one_and_many(reader, width), pair.settings.passes, str(reader.device))
        goal = ("<=", 1.3) if kind == chosen else None
        said = " (taken by auto)" if kind == chosen else ""
        what = f"verification of {width} tokens / single step, reader {kind}{said}"
        yield row(what, pair.name, ratio, goal, step_ms=1e3 * one_s, verify_ms=1e3 * many_s, **compiling)


class Laps:
    """Decoding's Clock that notes when each span begins."""

    def __init__(self) -> None:
        self.begun_s: dict[str, list[float]] = {}

    @contextmanager
    def span(self, what: str) -> Iterator[None]:
        """Notes the moment and lets the work be done."""
        self.begun_s.setdefault(what, []).append(time.perf_counter())
        yield


def rounds(pair: Pair, drafter: str, sampling: Sampling) -> Row:
    """Seconds of a full round in decoding / k draft steps and a verification, each timed alone.

    A round lasts from the moment it begins to draft to the moment the next one does: drafting, verification,
    acceptance, rewinding and all Python between; it ends with tokens on the host, so no clock has to wait. Alone, draft
    steps and verifications are timed in blocks before and after each output, at its middle length.
    """
    target, small, k = pair.reader(), pair.reader(drafter), pair.settings.k
    quads, parts = [], []
    for prompt in pair.timed * pair.settings.repeats:
        middle = len(prompt.ids) + pair.limits.max_new_tokens // 2
        blocks = [alone(target, small, k, middle, sampling)]
        laps, noise = Laps(), Noise(pair.settings.seed, [prompt.request], target.device)
        given = ([prompt.ids], k, sampling, pair.limits, noise)
        written = speculative(target, ModelDrafter(small), *given, clock=laps)[0]
        blocks.append(alone(target, small, k, middle, sampling))
        begun_s = laps.begun_s.get("draft", [])
        lasted = [
            after - before
            for before, after, proposed in zip(begun_s, begun_s[1:], written.proposed, strict=False)
            if proposed == k
        ]
        if lasted:
            ideal_s = [k * draft_s + verify_s for draft_s, verify_s in blocks]
            quads.append((sum(lasted), float(len(lasted)), sum(ideal_s), float(len(ideal_s))))
            parts += blocks
    if not quads:
        raise SkippedError(f"no round of {pair.limits.max_new_tokens} new tokens had room for {k} guesses")
    draft_s, verify_s = (sum(part) / len(parts) for part in zip(*parts, strict=True))
    round_s = sum(quad[0] for quad in quads) / sum(quad[1] for quad in quads)
    return row(
        f"a round / ({k} draft steps + verification) alone, {'greedy' if sampling.greedy else 'temperature 1'}",
        pair.name,
        speedup(quads),
        ("<=", 1.05) if sampling.greedy else None,
        round_ms=1e3 * round_s,
        draft_step_ms=1e3 * draft_s,
        verify_ms=1e3 * verify_s,
        rounds=int(sum(quad[1] for quad in quads)),
    )


def alone(target: Reader, drafter: Reader, k: int, before: int, sampling: Sampling = GREEDY) -> tuple[float, float]:
    """Seconds of a draft step and of a verification, each in a block of its own."""
    device = str(target.device)
    draft_s = block(draft_of(drafter, k, before, sampling), 2, device) / k
    return draft_s, block(pass_of(target, k + 1, before), 4, device)


def draft_of(reader: Reader, k: int, before: int, sampling: Sampling) -> Pass:
    """k draft steps behind `before` tokens, taken back: k passes, or one recording of them where the reader has it.

    A recording draws its tokens too, as it does in decoding.
    """
    if not isinstance(reader, GraphedReader):
        one = pass_of(reader, 1, before)

        def passes() -> None:
            for _ in range(k):
                one()

        return passes
    pass_of(reader, 1, before)  # fills the cache
    numbers = None if sampling.greedy else torch.full((1, k), 0.5, dtype=torch.float64, device=reader.device)

    def once() -> None:
        reader.write([[5, 5]], k, sampling, numbers, reader.vocabulary)
        reader.rewind([before])

    return once


def block(work: Pass, repeats: int, device: str = "cpu") -> float:
    """Mean seconds of that many runs in a row, one to warm up before."""
    work()

    def all_of_them() -> None:
        for _ in range(repeats):
            work()

    return seconds(all_of_them, device) / repeats


def draft_steps(pair: Pair, drafter: str, profile: DeviceProfile, kinds: Sequence[ReaderKind] = KINDS) -> Iterator[Row]:
    """A draft step / reading its weights once, by reader; what is above 1 is overhead.

    The bandwidth is that measured for so many bytes: a small drafter's weights stay in the processor's caches.
    """
    shape = pair.shape(drafter)
    for kind in kinds:
        reader = pair.reader(drafter, kind)
        if reader.name != kind:
            continue
        streamed = shape.step_bytes * (0.25 if kind == "packed-int8" else 1.0)
        floor_s = streamed / profile.bandwidth(streamed)
        reader.prepare(1, [1], 64)
        work = pass_of(reader, 1)
        for _ in range(WARM_UP):
            work()
        taken = [seconds(work, str(reader.device)) for _ in range(pair.settings.passes)]
        ratio = speedup([(one_s, 1.0, floor_s, 1.0) for one_s in taken])
        step_s = sum(taken) / len(taken)
        yield row(
            f"draft step of {shape.layers} layer{'s' * (shape.layers != 1)} / its bytes' time, reader {kind}",
            pair.name,
            ratio,
            step_us=1e6 * step_s,
            bytes_us=1e6 * floor_s,
            overhead_us=1e6 * (step_s - floor_s),
            step_bytes=int(streamed),
        )
