"""The 7B shape, the target alone: its step against the memory wall, against `generate`, by batch, reader and width."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from decoder_contests import batches
from decoder_pairs import Pair, SkippedError
from decoder_passes import Laps, Row, longer, one_and_many, pass_of, row, seconds
from gpu_pairs import Bench, copy_bandwidth, in_order, longest, prepared, recordings, seven

from eval import peers
from eval.parity import audit
from eval.peers import Contestant
from eval.verdict.stats import speedup
from factory.anatomy.shapes import Shape
from factory.decoding.compiled import why_no_compiler
from factory.decoding.decoder import autoregressive
from factory.decoding.reader import Reader
from factory.decoding.readers import ReaderKind, open_reader
from factory.decoding.sampling import Noise, Sampling
from factory.models.loading import DTYPES

VERIFIED = range(1, 9)  # k
SIDE_BY_SIDE: tuple[ReaderKind, ...] = ("eager", "lean")
PEERS = {  # peer -> what it says, goal
    peers.GENERATE: ("our autoregressive decode / generate", 5.0),
    peers.COMPILED: ("our autoregressive decode / generate, static cache, compiled", 1.1),
}
COMPILES_S = 60.0  # what a peer's compilation of 32 layers takes about


def steps(bench: Bench) -> Iterator[Row]:
    """In order of importance."""
    pair = seven(bench)
    bandwidth = copy_bandwidth(bench.device)
    reader = pair.reader()
    bench.facts |= {"model": pair.facts(), "reader": reader.name, "why": reader.why, "copy_bytes_per_s": bandwidth}
    bench.facts["prepare_s"] = prepared(reader, [1], longest(pair))
    yield from in_order(
        bench,
        [
            ("step / floor", 0, lambda: against_floor(pair, bandwidth)),
            ("generate", 0, lambda: against_generate(pair)),
            ("batch 16", 0, lambda: batches(pair, 16, 10.0)),
            ("batch 4", 0, lambda: batches(pair, 4, None)),
            ("generate, compiled", COMPILES_S if bench.full else 0, lambda: against_compiled(pair)),
            ("readers", 0, lambda: readers(pair, bandwidth)),
            ("draft steps", 0, lambda: draft_steps(pair, bandwidth)),
            ("verification", 0, lambda: verifications(pair, bench)),
        ],
    )
    bench.facts |= {"model": pair.facts(), "recordings": recordings(reader)}


def floor_s(shape: Shape, dtype: str, bandwidth: float, read: float) -> float:
    """Seconds in which a step's weights, and the keys and values of `read` tokens, can be read."""
    cached = 2 * shape.layers * shape.kv_width * read * DTYPES[dtype].itemsize
    return (shape.step_bytes + cached) / bandwidth


def against_floor(pair: Pair, bandwidth: float) -> Iterator[Row]:
    """The floor / a step in decoding, everything between two passes counted."""
    reader, quads = pair.reader(), []
    for prompt in [pair.timed[0], *pair.timed * pair.settings.repeats]:
        laps, noise = Laps(), Noise(pair.settings.seed, [prompt.request], reader.device)
        (written,) = autoregressive(reader, [prompt.ids], Sampling(), pair.limits, noise, clock=laps)
        begun_s = laps.begun_s["verify"]
        steps = len(begun_s) - 1
        read = len(prompt.ids) + len(written.tokens) / 2
        least_s = floor_s(pair.shape(), pair.dtype, bandwidth, read)
        quads.append((least_s * steps, float(steps), begun_s[-1] - begun_s[0], float(steps)))
    quads = quads[1:]  # the first one warmed up
    step_s = sum(quad[2] for quad in quads) / sum(quad[3] for quad in quads)
    yield row(
        "the bandwidth floor's time / an autoregressive step's, in decoding",
        pair.name,
        speedup(quads),
        (">=", 0.85),
        step_ms=1e3 * step_s,
        floor_ms=1e3 * sum(quad[0] for quad in quads) / sum(quad[1] for quad in quads),
        tokens_per_s=1 / step_s,
        weights_gb=pair.shape().step_bytes / 1e9,
        copy_gb_per_s=bandwidth / 1e9,
        reader=reader.name,
    )


def against_generate(pair: Pair) -> Iterator[Row]:
    """Ours and `generate`, eager."""
    yield from _against(pair, peers.Peer(peers.GENERATE, pair.match(None, 1)))


def against_compiled(pair: Pair) -> Iterator[Row]:
    """Ours and `generate` with a static cache, which transformers compiles; compilation is not timed but told."""
    missing = why_no_compiler()
    if missing:
        raise SkippedError(missing)
    peer, compile_s = peers.compiled(pair.match(None, 1), pair.timed)
    yield from _against(pair, peer, their_compile_s=compile_s)


def _against(pair: Pair, peer: Contestant, **more: float) -> Iterator[Row]:
    settings, match = pair.settings, pair.match(None, 1)
    field = [peers.Ours(peers.OURS, match, pair.reader()), peer]
    found = peers.contest(field, pair.timed, Sampling(), repeats=settings.repeats, seed=settings.seed)
    ours, theirs = found[peers.OURS], found[peer.name]
    bound = peers.tie_bound(match, pair.reader(), ours.outputs[:1])  # one output's passes: eager ones take long
    same = audit(pair.reader(), ours.outputs, theirs.outputs, bound)
    what, least = PEERS[peer.name]
    yield row(
        f"{what}, greedy",
        pair.name,
        peers.faster(ours, theirs),
        (">=", least),
        ours_tokens_per_s=ours.tokens_per_s,
        theirs_tokens_per_s=theirs.tokens_per_s,
        new_tokens=pair.limits.max_new_tokens,
        outputs_differ=same.divergences,
        near_ties=same.near_ties,
        **more,
    )


def alone_s(reader: Reader, width: int, repeats: int) -> list[float]:
    """Seconds of single passes of `width` tokens, the device waited for."""
    work, device = pass_of(reader, width), str(reader.device)
    for _ in range(3):
        work()
    return [seconds(work, device) for _ in range(repeats)]


def readers(pair: Pair, bandwidth: float) -> Iterator[Row]:
    """The floor / a single step alone, by reader."""
    chosen = pair.reader()
    least_s = floor_s(pair.shape(), pair.dtype, bandwidth, 48)
    for reader in (chosen, *(open_reader(pair.target, kind) for kind in SIDE_BY_SIDE)):
        taken_s = alone_s(reader, 1, pair.settings.passes)
        yield row(
            f"the floor's time / a single step's alone, reader {reader.name}",
            pair.name,
            speedup([(least_s, 1.0, one_s, 1.0) for one_s in taken_s]),
            step_ms=1e3 * sum(taken_s) / len(taken_s),
            floor_ms=1e3 * least_s,
        )


def draft_steps(pair: Pair, bandwidth: float) -> Iterator[Row]:
    """A draft step alone / reading its bytes, of each drafter."""
    for name in pair.drafters:
        reader, shape = pair.reader(name), pair.shape(name)
        compile_s = prepared(reader, [1], longest(pair))
        taken_s = alone_s(reader, 1, pair.settings.passes)
        least_s = floor_s(shape, pair.dtype, bandwidth, 48)
        step_s = sum(taken_s) / len(taken_s)
        yield row(
            f"draft step of {shape.layers} layer{'s' * (shape.layers != 1)} / its bytes' time, reader {reader.name}",
            pair.name,
            speedup([(one_s, 1.0, least_s, 1.0) for one_s in taken_s]),
            step_us=1e6 * step_s,
            bytes_us=1e6 * least_s,
            compile_s=compile_s,
        )


def verifications(pair: Pair, bench: Bench) -> Iterator[Row]:
    """k + 1 tokens in one pass / one token in one pass, for each k; those used most come first."""
    order = sorted(VERIFIED, key=lambda k: (k not in (4, 2), k))
    yield from in_order(bench, [(f"verification, k = {k}", 10, partial(_verification, pair, k)) for k in order])


def _verification(pair: Pair, k: int) -> Iterator[Row]:
    reader = pair.reader()
    compile_s = prepared(reader, [k + 1], longest(pair))
    ratio, one_s, many_s = longer(*one_and_many(reader, k + 1), pair.settings.passes, str(reader.device))
    what = f"verification of {k + 1} tokens / single step, reader {reader.name}"
    yield row(what, pair.name, ratio, step_ms=1e3 * one_s, verify_ms=1e3 * many_s, compile_s=compile_s)
