"""Layers compiled by inductor: one compilation for all, the cache written in place, and what is done without."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from transformers import PreTrainedModel

from factory.decoding import graphed
from factory.decoding.compiled import CompiledReader, why_no_compiler
from factory.decoding.graphed import GraphedReader
from factory.decoding.lean import LeanReader
from factory.decoding.tuned import SkinnyProduct


@pytest.fixture
def frozen() -> Iterator[None]:
    """Inductor as gptqmodel's CPU kernel leaves it for the rest of the process, once it has run."""
    with torch._inductor.config.patch(freezing=True, max_autotune=True):
        yield


@pytest.mark.slow
@pytest.mark.skipif(why_no_compiler() is not None, reason=str(why_no_compiler()))
def test_one_compilation_serves_all_layers_and_buckets(
    families: dict[str, Callable[..., PreTrainedModel]], monkeypatch: pytest.MonkeyPatch, frozen: None
) -> None:
    monkeypatch.setattr(graphed, "WIDTHS", (1, 5))
    model = families["qwen3"](layers=5, context=600, dtype=torch.float32, initializer_range=0.1)
    reader, lean = GraphedReader(model, fuse=True), LeanReader(model)
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    block = torch.randint(3, 90, (2, 300), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for one in (reader, lean):
            one.start(2, 20)
            one.feed(block[:, :20])
        for width in (1, 5, 1, 5):
            torch.testing.assert_close(reader.feed(block[:, :width]), lean.feed(block[:, :width]), rtol=0, atol=1e-4)
        assert counters["unique_graphs"] - before == 2 * 3  # what is before the layers, a layer, what is behind them
        for one in (reader, lean):
            one.feed(block)  # moves the cache, and its bucket
        for width in (1, 5):
            torch.testing.assert_close(reader.feed(block[:, :width]), lean.feed(block[:, :width]), rtol=0, atol=1e-4)
        for one in (reader, lean):
            one.start(2, 20)  # in storage that is longer than what is read of it
            one.feed(block[:, :20])
        for width in (1, 5):
            torch.testing.assert_close(reader.feed(block[:, :width]), lean.feed(block[:, :width]), rtol=0, atol=1e-4)
    assert counters["unique_graphs"] - before == 2 * 3
    assert reader.why is None and reader.compile_s > 0


@pytest.mark.slow
@pytest.mark.skipif(why_no_compiler() is not None, reason=str(why_no_compiler()))
def test_layers_of_joined_products_are_compiled_too(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    """As on a GPU, where products take in what stands around them; here of torch's operations."""
    model = families["llama"](layers=2, dtype=torch.bfloat16)
    reader = GraphedReader(model, lambda linears: [SkinnyProduct(one, {}) for one in linears], fuse=True)
    assert reader._network.joined
    reader.prepare(1, [1], 20)
    assert reader.why is None and reader.graphs == 1


@pytest.mark.slow
@pytest.mark.skipif(why_no_compiler() is not None, reason=str(why_no_compiler()))
@pytest.mark.parametrize("kind", ["graphed", "compiled"])
def test_a_compiled_layer_writes_the_cache_in_place(
    families: dict[str, Callable[..., PreTrainedModel]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes nothing whose size goes with the cache's: no copy of all that is stored, to change a slot of it."""
    monkeypatch.setattr(graphed, "WIDTHS", (5,))
    model = families["qwen3"](layers=2, dtype=torch.float32)
    reader = GraphedReader(model, fuse=True) if kind == "graphed" else CompiledReader(model)
    torch._dynamo.reset()
    reader.start(2, 100)
    reader.feed(torch.full((2, 20), 5))
    with torch._inductor.config.patch(fx_graph_cache=False):
        _, codes = run_and_get_code(reader.feed, torch.full((2, 5), 5))
    code = next(code for code in codes if "index_put" in code)
    made = re.findall(r"empty_strided_cpu\(\(([^)]*)\)", code)
    assert made and not [sizes for sizes in made if "s" in sizes]
    assert reader.why is None


def test_where_layers_cannot_be_compiled_they_are_recorded_as_they_are(
    families: dict[str, Callable[..., PreTrainedModel]],
) -> None:
    torch._dynamo.reset()
    model = families["llama"](layers=2, dtype=torch.float32)
    reader, lean = GraphedReader(model, fuse=True), LeanReader(model)
    without = {"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}
    with torch._inductor.config.patch(without), torch.inference_mode():
        for one in (reader, lean):
            one.start(1, 20)
            one.feed(torch.tensor([[1, 5, 9]]))
        torch.testing.assert_close(reader.feed(torch.tensor([[4]])), lean.feed(torch.tensor([[4]])))
    assert str(reader.why).startswith("layers are recorded as they are, not fused: compiling them failed (")
    assert reader.graphs == 1
    torch._dynamo.reset()
