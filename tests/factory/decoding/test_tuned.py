"""Which product is taken on a CUDA device, and what is said about it. Kernels run in Triton's interpreter here."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter
from transformers import PreTrainedModel

from factory.decoding import tuned as room
from factory.decoding.kernels import SUMMED, Config, configs, decode_attention
from factory.decoding.network import PRODUCTS
from factory.decoding.tuned import LIMIT_S, SkinnyProduct, composed, start_late, tuned_cuda_products
from factory.decoding.wiring import Linear, network_of

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_kernels.py, in a process that interprets"
)

ROWS = (1, 5)  # fewer than there are, and a smaller device: the interpreter is slow
PROCESSORS = 4


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ROWS", ROWS)
    monkeypatch.setattr(room, "processors_of", lambda _device: PROCESSORS)


def linears(outputs: int = 8, count: int = 2) -> list[Linear]:
    generator = torch.Generator().manual_seed(outputs)
    return [(torch.randn(outputs, 40, generator=generator), torch.randn(outputs, generator=generator))] * count


def ticking(seconds: Callable[[int], float]) -> Callable[[Callable[[], object]], float]:
    """A timer by which the plain product takes 1 s and the n-th kernel of those offered seconds(n)."""
    asked = iter(range(10**6))
    offered = [len(configs(rows, 8, 40, PROCESSORS)) for rows in ROWS]
    starts = [sum(offered[:place]) + place for place in range(len(ROWS))]

    def timer(run: Callable[[], object]) -> float:
        run()
        number = next(asked)
        return 1.0 if number in starts else seconds(number - max(start for start in starts if start < number) - 1)

    return timer


@interpreted
def test_the_fastest_kernel_is_taken() -> None:
    choices: dict[str, Any] = {}
    given = linears()
    products = tuned_cuda_products(given, choices=choices, timer=ticking(lambda n: 0.5 if n == 1 else 0.7))
    product = products[0]
    assert isinstance(product, SkinnyProduct)
    assert set(product.chosen) == set(range(1, 6))
    for rows in ROWS:
        config = configs(rows, 8, 40, PROCESSORS)[1]
        assert product.chosen[rows] == config
        said = choices["8 x 40 float32, bias"][str(rows)]
        assert said["kernel"] == str(config)
        assert (said["us"], said["plain_us"]) == (0.5e6 / 2, 1e6 / 2)  # two weights were timed
    assert product.chosen[3] == product.chosen[5]  # the next that was compared
    for rows in (1, 2, 4, 6, 40):
        x = torch.randn(1, rows, 40)
        torch.testing.assert_close(product(x, rows), F.linear(x, *given[0]), rtol=1e-5, atol=1e-5)


@interpreted
@pytest.mark.parametrize("kernel_s", [0.96, 2.0])
def test_what_is_not_clearly_faster_is_not_taken(kernel_s: float) -> None:
    choices: dict[str, Any] = {}
    products = tuned_cuda_products(linears(), choices=choices, timer=ticking(lambda _n: kernel_s))
    assert [product.chosen for product in products if isinstance(product, SkinnyProduct)] == [{}, {}]
    assert choices["8 x 40 float32, bias"]["5"] == {
        "kernel": "plain",
        "us": 5e5,
        "plain_us": 5e5,
        "gb_per_s": 0.0,
    }


@interpreted
@pytest.mark.parametrize("fault", ["wrong", "nan", "raises"])
def test_a_kernel_that_is_wrong_is_not_taken(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = room.skinny_product

    def faulty(x: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
        if fault == "raises":
            raise RuntimeError("out of resources: shared memory")
        return right(x, weight, *others) * (1.1 if fault == "wrong" else float("nan"))

    assert room.why_no_kernels(torch.device("cpu"), torch.float32) is None
    monkeypatch.setattr(room, "skinny_product", faulty)
    products = tuned_cuda_products(linears(), timer=lambda _run: 1e-3 if _run() is None else 1.0)
    assert all(isinstance(product, SkinnyProduct) and product.chosen == {} for product in products)


@interpreted
def test_comparing_ends_in_time() -> None:
    choices: dict[str, Any] = {}
    now = iter([0.0] * 3 + [LIMIT_S + 1] * 100)
    given = [*linears(8), *linears(16)]
    products = tuned_cuda_products(given, lambda: next(now), choices=choices, timer=lambda _run: 1.0)
    assert list(choices) == ["8 x 40 float32, bias", "16 x 40 float32, bias", "why"]
    assert [list(choices[title]) for title in list(choices)[:2]] == [["1"], ["1"]]
    assert len(products) == len(given)


@interpreted
@pytest.mark.parametrize("chosen", [{}, {3: Config(True, 16, 64, 2, 2)}])
def test_what_is_given_with_a_product_is_done(chosen: dict[int, Config]) -> None:
    weight, bias = linears(20)[0]
    x, norm, residual = torch.randn(1, 3, 40), torch.randn(40), torch.randn(1, 3, 10)
    product = SkinnyProduct((weight, bias), chosen)
    found = product(x, 3, norm=norm, eps=1e-6, residual=residual, gated=True)
    unit = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    gate, up = F.linear(norm * unit, weight, bias).chunk(2, -1)
    torch.testing.assert_close(found, F.silu(gate) * up + residual, rtol=1e-4, atol=1e-4)
    assert found.shape == composed(x, weight, bias, gated=True).shape


@interpreted
def test_layers_share_one_compilation() -> None:
    """A product is an object: a compiled layer must not be bound to that of one layer."""
    given = [(torch.randn(8, 40), None) for _ in range(3)]
    products = [SkinnyProduct(linear, {1: Config(True, 16, 64, 2, 2)}) for linear in given]
    counter = CompileCounter()

    def layer(product: SkinnyProduct, x: torch.Tensor, cached: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        queries = product(x, 1).view(1, 1, 1, 8)
        return decode_attention(queries, cached, cached, positions, 1.0)

    compiled = torch.compile(layer, fullgraph=True, dynamic=False, backend=counter)
    x, positions = torch.randn(1, 1, 40), torch.tensor([[3]])
    for product, slots in zip(products, (9, 20, 33), strict=True):
        cached = torch.randn(1, 1, slots, 8)
        torch._dynamo.mark_dynamic(cached, 2)
        torch.testing.assert_close(compiled(product, x, cached, positions), layer(product, x, cached, positions))
    assert counter.frame_count == 1


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs on a CPU")
def test_elsewhere_all_is_plain() -> None:
    choices: dict[str, Any] = {}
    given = linears()
    products = tuned_cuda_products(given, choices=choices)
    assert list(choices) == ["why"]
    assert "for CUDA, not cpu" in choices["why"]
    x = torch.randn(1, 3, 40)
    assert torch.equal(products[0](x, 3), F.linear(x, *given[0]))


def test_kernels_that_begin_early_can_be_made_to_wait(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    early = {1: SUMMED[1]._replace(early=True), 2: SUMMED[1]}
    network = network_of(families["llama"](layers=2), lambda linears: [SkinnyProduct(one, early) for one in linears])
    assert start_late(network)
    products = [network.head, *(getattr(layer, name) for layer in network.layers for name in PRODUCTS)]
    assert all(product.chosen == {1: SUMMED[1], 2: SUMMED[1]} for product in products)
    assert not start_late(network)
    assert not start_late(network_of(families["llama"](layers=2)))
