"""Recorded passes and drafts: CUDA graphs on a GPU; on a CPU rehearsed, the same static code called in their place."""

from __future__ import annotations

import itertools
import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from factory.decoding import graphed, static_cache
from factory.decoding.decoder import Generation, Limits, Round, autoregressive, speculative
from factory.decoding.drafters import ModelDrafter
from factory.decoding.eager import EagerReader
from factory.decoding.graphed import GraphedReader
from factory.decoding.graphs import Graphs
from factory.decoding.kernels import DOTTED, SUMMED
from factory.decoding.reader import Reader
from factory.decoding.readers import open_reader
from factory.decoding.sampling import Noise, Sampling
from factory.decoding.tuned import SkinnyProduct

PROMPTS = [[1, 5, 9], [7], [1, 11, 12, 13, 14, 15, 16, 17], [1, 20], [1, 3, 8]]
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_k=20, top_p=0.9),
    Sampling(temperature=1.3, top_p=0.8, min_p=0.02),
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets and storage so small that a short text crosses several, and makes the cache move."""
    monkeypatch.setattr(graphed, "_BUCKET", 16)
    monkeypatch.setattr(static_cache, "_LEAST", 16)
    monkeypatch.setattr(graphed, "WIDTHS", (1, 2, 5, 9))


@torch.inference_mode()
def history(reader: Reader, device: str, steps: int = 48) -> Iterator[torch.Tensor]:
    """What any reader answers through feeds of all widths, ragged counts, rewinds, rows that leave or change places."""
    dice = random.Random(0)
    reader.start(5, 12)
    rows = 5
    for step in range(steps):
        width = 12 if step == 0 else dice.choice([1, 1, 2, 3, 5, 8, 11])
        count = [dice.randint(1, width) for _ in range(rows)]
        if max(reader.lengths) + width > reader.context:
            reader.rewind([dice.randint(1, 20) for _ in range(rows)])
        block = torch.tensor([[dice.randrange(90) for _ in range(width)] for _ in range(rows)], device=device)
        if dice.random() < 0.4:
            yield reader.feed_last(block, count)
        else:
            logits = reader.feed(block, count)
            yield torch.cat([logits[row, :real] for row, real in enumerate(count)])
        if dice.random() < 0.6:
            reader.rewind([dice.randint(max(1, length - 4), length) for length in reader.lengths])
        if step in (20, 36):
            kept = [4, 0, 2] if step == 20 else [2]
            reader.select(kept)
            rows = len(kept)


def test_every_family_answers_as_by_its_modules(
    tiny: Callable[..., PreTrainedModel], device: str, small_buckets: None
) -> None:
    model = tiny(layers=3, seed=1).to(device)
    reader = GraphedReader(model, fuse=False)
    for ours, theirs in zip(history(reader, device), history(EagerReader(model), device), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11 if device == "cpu" else 1e-9)
    assert reader.graphs >= 4
    assert reader.why is None


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"num_key_value_heads": 1, "attention_bias": True}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_of_a_family(
    families: dict[str, Callable[..., PreTrainedModel]],
    family: str,
    changes: dict[str, Any],
    small_buckets: None,
) -> None:
    model = families[family](layers=2, seed=2, **changes)
    for ours, theirs in zip(history(GraphedReader(model), "cpu"), history(EagerReader(model), "cpu"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def written(
    make: Callable[[PreTrainedModel], Reader],
    target: PreTrainedModel,
    drafter: PreTrainedModel,
    sampling: Sampling,
    k: int,
    limits: Limits,
) -> list[Generation]:
    reader = make(target)
    drafts = ModelDrafter(make(drafter), vocabulary=reader.vocabulary)
    return speculative(reader, drafts, PROMPTS, k, sampling, limits, Noise(3, range(len(PROMPTS))))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "top-k and top-p", "top-p and min-p"])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_a_recorded_draft_is_that_of_step_by_step_passes(
    families: dict[str, Callable[..., PreTrainedModel]],
    noisy: Callable[..., PreTrainedModel],
    device: str,
    small_buckets: None,
    sampling: Sampling,
    k: int,
) -> None:
    """Ragged rows that end by EOS and by the context, accepted and rejected guesses, tokens and counts alike."""
    target = families["llama"](layers=2, vocabulary=300, context=48, seed=1).to(device)
    drafter = noisy(target.cpu(), 0.02).to(device)
    target.to(device)
    limits = Limits(60, frozenset({2, 17}), 48)
    ours = written(lambda model: GraphedReader(model, fuse=False), target, drafter, sampling, k, limits)
    theirs = written(EagerReader, target, drafter, sampling, k, limits)
    assert ours == theirs
    assert 0 < sum(sum(one.accepted) for one in ours) < sum(sum(one.proposed) for one in ours)
    alone = autoregressive(GraphedReader(target, fuse=False), PROMPTS, sampling, limits, Noise(3, range(len(PROMPTS))))
    if sampling.greedy:
        assert [one.tokens for one in alone] == [one.tokens for one in ours]


@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "sampled"])
def test_a_drafter_of_another_head_and_a_shorter_context(
    families: dict[str, Callable[..., PreTrainedModel]], small_buckets: None, sampling: Sampling
) -> None:
    """Its text outgrows it before the target's ends; ids that it has no row for are read and never proposed."""
    target = families["llama"](layers=1, vocabulary=104, context=60, seed=1)
    drafter = families["llama"](layers=1, vocabulary=96, context=24, seed=1)
    limits = Limits(50, frozenset(), 60)
    ours, theirs = (written(make, target, drafter, sampling, 4, limits) for make in (GraphedReader, EagerReader))
    assert ours == theirs
    assert any(0 in one.proposed for one in ours)
    assert any(token >= 96 for one in ours for token in one.tokens)


def test_what_is_prepared_is_all_that_is_recorded(
    families: dict[str, Callable[..., PreTrainedModel]], noisy: Callable[..., PreTrainedModel], small_buckets: None
) -> None:
    target = families["llama"](layers=1, vocabulary=300, seed=1)
    reader, drafts = GraphedReader(target), GraphedReader(noisy(target))
    drafter, sampling = ModelDrafter(drafts), Sampling(temperature=1.0)
    longest = max(map(len, PROMPTS)) + 60 + 6
    reader.prepare(len(PROMPTS), [1, 5], longest)
    drafter.prepare(len(PROMPTS), [4], longest, sampling)
    before = reader.graphs, drafts.graphs
    assert min(before) > 0
    limits, noise = Limits(60, frozenset({2, 17, 30}), 160), Noise(0, range(len(PROMPTS)))
    speculative(reader, drafter, PROMPTS, 4, sampling, limits, noise)
    autoregressive(reader, PROMPTS, sampling, limits, noise)
    assert (reader.graphs, drafts.graphs) == before


class Turns:
    """A pace that offers 3, none four times, 2, then again."""

    most = 3

    def __init__(self) -> None:
        self._turns = itertools.cycle([3, 0, 0, 0, 0, 2])

    def begin(self, prompt_tokens: int) -> bool:
        return True

    def choose(self, room: Sequence[int]) -> int:
        return next(self._turns)

    def saw(self, done: Round) -> None:
        pass


def test_a_drafter_that_fell_behind_reads_what_it_missed(
    families: dict[str, Callable[..., PreTrainedModel]], noisy: Callable[..., PreTrainedModel], small_buckets: None
) -> None:
    target = families["llama"](layers=2, vocabulary=300, seed=1)
    limits, noise = Limits(60, frozenset({2, 17, 30}), 160), Noise(0, range(len(PROMPTS)))
    found = []
    for make in (GraphedReader, EagerReader):
        drafter = ModelDrafter(make(noisy(target, 0.01)))
        found.append(speculative(make(target), drafter, PROMPTS, Turns(), Sampling(), limits, noise))
    assert found[0] == found[1]
    assert sum(sum(one.accepted) for one in found[0]) > 10


def test_what_looks_back_is_drafted_step_by_step(
    families: dict[str, Callable[..., PreTrainedModel]], noisy: Callable[..., PreTrainedModel], small_buckets: None
) -> None:
    target = families["llama"](layers=2, vocabulary=300, seed=1)
    sampling, limits = Sampling(temperature=1.0, repetition_penalty=1.5), Limits(30, frozenset(), 160)
    ours, theirs = (written(make, target, noisy(target), sampling, 3, limits) for make in (GraphedReader, EagerReader))
    assert ours == theirs


@torch.inference_mode()
def test_what_is_recorded_neither_asks_the_host_nor_leaves_the_device(
    families: dict[str, Callable[..., PreTrainedModel]],
) -> None:
    """On the device without data any question has no answer, and raises; so does a tensor of another device."""
    for make in families.values():
        reader = GraphedReader(make(dtype=torch.bfloat16).to("meta"), fuse=False)
        reader.start(4, 100)
        like: dict[str, Any] = {"dtype": torch.long, "device": "meta"}
        fed, lengths = torch.zeros(4, 2, **like), torch.zeros(4, **like)
        numbers = torch.zeros(4, 3, dtype=torch.float64, device="meta")
        assert reader._pass.read(fed, lengths, stop=256).shape == (4, 2, 96)
        for sampling in SAMPLINGS:
            given = () if sampling.greedy else (numbers,)
            reader._pass.write(fed, lengths, *given, k=3, stop=256, sampling=sampling, vocabulary=100)


def test_where_nothing_can_be_recorded_passes_run_as_they_are(
    families: dict[str, Callable[..., PreTrainedModel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Graphs, "_record", refuse)
    model = families["llama"](layers=2)
    reader = GraphedReader(model)
    for ours, theirs in zip(history(reader, "cpu"), history(EagerReader(model), "cpu"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    assert reader.why == (
        "passes are not recorded: that failed (RuntimeError: operation not permitted when stream is capturing)"
    )


def test_on_a_cpu_another_reader_is_taken_and_says_why(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    reader = open_reader(families["llama"](layers=1), "graphed")
    assert reader.name == "lean"  # float64
    assert str(reader.why).startswith("CUDA graphs are for CUDA devices, not cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "top-k and top-p", "top-p and min-p"])
def test_a_round_waits_for_the_device_once(
    families: dict[str, Callable[..., PreTrainedModel]], noisy: Callable[..., PreTrainedModel], sampling: Sampling
) -> None:
    """For the copy of what was emitted; in all else the host runs ahead."""
    target = families["llama"](layers=2, vocabulary=300, seed=1, dtype=torch.float32)
    drafter = noisy(target, 0.02).to("cuda")
    reader = GraphedReader(target.to("cuda"), fuse=False)
    drafts = ModelDrafter(GraphedReader(drafter, fuse=False))
    limits, noise = Limits(60, frozenset(), 160), Noise(0, [0], device="cuda")
    speculative(reader, drafts, [[1, 5, 9]], 4, sampling, limits, noise)  # records
    heard: list[int] = []  # warnings until the end of each round; the first is the prefill's

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def count(_: object) -> None:
            torch.cuda.set_sync_debug_mode("warn")
            heard.append(sum("synchroniz" in str(one.message) for one in caught))

        try:
            speculative(reader, drafts, [[1, 5, 9]], 4, sampling, limits, noise, listener=count)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [after - before for before, after in itertools.pairwise(heard)]
    assert len(waits) > 5
    assert set(waits[1:]) == {1}  # in the first round, tables of random numbers go to the device


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_kernels.py, in a process that interprets"
)
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "opt"])
def test_with_the_projects_own_kernels(
    families: dict[str, Callable[..., PreTrainedModel]], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joined products (of Qwen: norms, residuals and gates within) and attention by slots, windows among them."""
    monkeypatch.setattr(graphed, "_BUCKET", 64)
    model = families[family](layers=2, seed=1, dtype=torch.float32, initializer_range=0.2)
    chosen = {**dict.fromkeys(range(1, 3), SUMMED[1]), **dict.fromkeys(range(3, 17), DOTTED[0])}
    reader = GraphedReader(model, lambda linears: [SkinnyProduct(one, chosen) for one in linears], kernels=True)
    for ours, theirs in zip(history(reader, "cpu", 8), history(EagerReader(model), "cpu", 8), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    assert reader.why is None and reader.graphs > 0


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("family", "dtype", "share"),
    [("llama", torch.bfloat16, 0.06), ("gpt2", torch.float16, 0.01)],
    ids=["llama", "gpt2"],
)
def test_what_is_taken_by_itself_on_a_gpu_is_fused_and_right(
    families: dict[str, Callable[..., PreTrainedModel]],
    family: str,
    dtype: torch.dtype,
    share: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within rounding, as a share of the largest logit; nothing fell back."""
    monkeypatch.setattr(graphed, "WIDTHS", (1, 5))  # few compilations
    model = families[family](layers=2, seed=1, dtype=dtype, initializer_range=0.1).to("cuda")
    reader = open_reader(model)
    for ours, theirs in zip(history(reader, "cuda", 16), history(EagerReader(model), "cuda", 16), strict=True):
        assert float((ours - theirs).abs().max()) <= share * float(theirs.abs().max())
    assert reader.name == "graphed" and reader.why is None
