"""What of the kernels only a GPU shows: recorded in CUDA graphs, compiled around, started early, chosen by time.

Their results are tested by tests/factory/decoding/test_kernels.py, compiled where there is a CUDA device.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from factory.decoding.kernels import DOTTED, SUMMED, Config, configs, decode_attention, skinny_product
from factory.decoding.tuned import SkinnyProduct, graph_seconds, tuned_cuda_products

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda")


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE, torch.bfloat16)


def early(config: Config) -> Config:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("programmatic dependent launch needs capability 9.0")
    return config._replace(early=True)


def chain(config: Config, x: torch.Tensor, weights: list[torch.Tensor], norm: torch.Tensor) -> torch.Tensor:
    """Products that each need the one before at once."""
    for weight in weights:
        x = skinny_product(x, weight, None, config, norm=norm, eps=1e-5, residual=x)
    return x


@pytest.mark.parametrize("config", [*SUMMED, *DOTTED], ids=str)
@pytest.mark.parametrize("splits", [1, 4])
def test_a_chain_started_early_is_the_chain(config: Config, splits: int) -> None:
    x, norm = some(2, 2048), some(2048, seed=1)
    weights = [some(2048, 2048, seed=seed) / 45 for seed in range(12)]
    config = config._replace(splits=splits)
    whole = chain(config, x, weights, norm)
    hurried = early(config)
    for _ in range(20):
        assert torch.equal(chain(hurried, x, weights, norm), whole)
    exact = x.double()
    for weight in weights:
        unit = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + 1e-5)
        exact = exact + F.linear(norm.double() * unit, weight.double())
    assert float((whole.double() - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("hurried", [False, True])
def test_a_recording_gives_what_a_call_gives(hurried: bool) -> None:
    weights, norm = [some(1024, 1024, seed=seed) / 32 for seed in range(4)], some(1024, seed=9)
    config = early(SUMMED[1]) if hurried else DOTTED[0]._replace(splits=2)
    queries, keys, values = some(1, 16, 1, 64), some(1, 4, 512, 64, seed=1), some(1, 4, 512, 64, seed=2)
    x, positions = some(1, 1024, seed=3), torch.zeros(1, 1, dtype=torch.long, device=DEVICE)

    def step() -> torch.Tensor:
        attended = decode_attention(queries, keys, values, positions, 0.125, early=hurried)
        return chain(config, x + attended[0], weights, norm)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    for position in (0, 3, 63, 64, 300, 511):  # found on the device: one recording serves them all
        positions.fill_(position)
        x.copy_(some(1, 1024, seed=position + 4))
        graph.replay()
        assert torch.equal(recorded, step())


def test_a_compiled_function_holds_them() -> None:
    weight, norm = some(512, 256), some(256, seed=1)
    keys, values = some(2, 2, 128, 64, seed=2), some(2, 2, 128, 64, seed=3)
    positions = torch.tensor([[9, 10], [100, 101]], device=DEVICE)

    def step(x: torch.Tensor) -> torch.Tensor:
        queries = skinny_product(x.tanh(), weight, None, DOTTED[2], norm=norm, eps=1e-5) * 2
        return decode_attention(queries.view(2, 2, 8, 64).transpose(1, 2), keys, values, positions, 0.1).sin()

    x = some(4, 256, seed=4)
    found = torch.compile(step, fullgraph=True)(x)
    torch.testing.assert_close(found, step(x), rtol=0.02, atol=0.02)


def test_products_are_chosen_by_what_they_take() -> None:
    choices: dict[str, Any] = {}
    linears = [(some(4096, 4096, seed=seed), None) for seed in range(8)]
    products = tuned_cuda_products(linears, choices=choices)
    said = choices["4096 x 4096 bfloat16"]
    assert set(said) == {"1", "2", "5", "9", "16"}
    for product in products:
        assert isinstance(product, SkinnyProduct)
        for rows in (1, 2, 3, 16, 17):
            x = some(1, rows, 4096, seed=rows)
            exact = F.linear(x.double(), linears[products.index(product)][0].double())
            assert float((product(x, rows).double() - exact).norm() / exact.norm()) < 0.01
    assert all(facts["us"] <= facts["plain_us"] for facts in said.values())


def test_a_timing_is_of_the_device() -> None:
    short, long = some(64, 64), some(8192, 8192)
    assert 0 < graph_seconds(lambda: F.linear(short, short)) < graph_seconds(lambda: F.linear(long, long)) < 1.0


def test_every_offered_configuration_runs() -> None:
    for rows, outputs, inputs in ((1, 4096, 11008), (5, 22016, 4096), (16, 32000, 4096)):
        x, weight = some(rows, inputs), some(outputs, inputs, seed=1)
        exact = F.linear(x.double(), weight.double())
        for config in configs(rows, outputs, inputs, 132):
            found = skinny_product(x, weight, None, config)
            assert float((found.double() - exact).norm() / exact.norm()) < 0.01, config
