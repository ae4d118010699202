"""The Triton kernels against float64: compiled on a CUDA device, and everywhere in Triton's interpreter.

Triton decides at its import whether it interprets, and then for the whole process: so this file runs
itself once more in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from factory.decoding.kernels import (
    DOTTED,
    MOST_SPLITS,
    SUMMED,
    Config,
    attention_splits,
    configs,
    decode_attention,
    skinny_product,
)
from factory.decoding.tuned import composed, why_no_kernels

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETING else "cuda")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
BOUND = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-18}  # of the larger of 1 and the result

SOME = [SUMMED[1], SUMMED[5], DOTTED[0], DOTTED[4]]  # registers ahead, shared memory ahead, narrow, wide
on_device = pytest.mark.skipif(
    not INTERPRETING and not torch.cuda.is_available(), reason="compiled kernels need a CUDA device"
)


def some(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Random numbers, the last dimension of each but the first of which is cut out of a wider tensor."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    wide = torch.randn(*shape[:-1], shape[-1] + 3 * (len(shape) > 1), generator=generator)
    return wide.to(DEVICE, dtype)[..., : shape[-1]]


@pytest.mark.skipif(INTERPRETING, reason="it is the other process")
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed: pip install triton")
@pytest.mark.skipif(
    tuple(int(part) for part in numpy.__version__.split(".")[:2]) >= (2, 4),
    reason="Triton's interpreter (3.6) makes loop bounds of arrays as numpy 2.4 no longer does",
)
def test_the_kernels_in_the_interpreter() -> None:
    files = [str(Path(__file__).with_name(name)) for name in ("test_kernels.py", "test_tuned.py")]
    files.append(f"{Path(__file__).with_name('test_graphed.py')}::test_with_the_projects_own_kernels")
    command = [
        sys.executable,
        "-m",
        "pytest",
        *files,
        "-m",
        "not gpu",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::DeprecationWarning",
    ]
    ran = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert "passed" in ran.stdout


def assert_near(found: torch.Tensor, exact: torch.Tensor) -> None:
    error = (found.double() - exact).abs() / exact.abs().clamp(min=1)
    assert found.shape == exact.shape
    assert float(error.max()) <= BOUND[found.dtype], float(error.max())


@on_device
@pytest.mark.parametrize("dtype", DTYPES)
def test_they_run_here(dtype: torch.dtype) -> None:
    assert why_no_kernels(DEVICE, dtype) is None
    assert "float64" in str(why_no_kernels(DEVICE, torch.float64))


@on_device
@pytest.mark.parametrize("config", [*SUMMED, *DOTTED], ids=str)
@pytest.mark.parametrize("splits", [1, 3])
def test_every_configuration_multiplies(config: Config, splits: int) -> None:
    x, weight, bias = (some(*shape, dtype=torch.bfloat16) for shape in ((2, 1100), (9, 1100), (9,)))
    config = config._replace(splits=splits)
    found = skinny_product(x, weight, bias, config)
    assert_near(found, F.linear(x.double(), weight.double(), bias.double()))
    assert torch.equal(found, skinny_product(x, weight, bias, config))
    assert torch.equal(found[1:], skinny_product(x[1:], weight, bias, config))  # a row does not know the others


@on_device
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_products_of_any_size(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 16), "rows")
    outputs, inputs = data.draw(st.integers(1, 70), "outputs"), data.draw(st.integers(1, 300), "inputs")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    config = data.draw(
        st.sampled_from(configs(rows, outputs, inputs, data.draw(st.sampled_from((1, 4, 132))))), "config"
    )
    bias = some(outputs, dtype=dtype) if data.draw(st.booleans(), "bias") else None
    x, weight = some(rows, inputs, dtype=dtype), some(outputs, inputs, dtype=dtype, seed=1)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert_near(skinny_product(x, weight, bias, config), exact)


@on_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_norm_rounds_as_the_module_does(dtype: torch.dtype, rows: int) -> None:
    norm = LlamaRMSNorm(96, eps=1e-5).to(DEVICE, dtype)
    norm.weight.data = some(96, dtype=dtype)
    x = 3 * some(rows, 96, dtype=dtype)
    one = torch.eye(96, dtype=dtype, device=DEVICE)  # a product with it is the normalised input itself
    for config in SOME[2 * (rows > 2) :]:
        found = skinny_product(x, one, None, config, norm=norm.weight, eps=1e-5)
        torch.testing.assert_close(found, norm(x), rtol=1e-6 if dtype == torch.float32 else 0, atol=0)


@on_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "splits"), [(1, 2), (2, 1), (7, 2)])
def test_what_is_fused_rounds_as_the_operations_do(dtype: torch.dtype, splits: int, rows: int) -> None:
    x, weight, bias = some(rows, 200, dtype=dtype), some(40, 200, dtype=dtype) / 8, some(40, dtype=dtype)
    norm, residual = some(200, dtype=dtype), some(rows, 20, dtype=dtype)
    exact = composed(x, weight, bias, norm=norm, eps=1e-6, residual=residual, gated=True)
    step = BOUND[dtype]
    for config in SOME[2 * (rows > 2) :]:
        found = skinny_product(
            x, weight, bias, config._replace(splits=splits), norm=norm, eps=1e-6, residual=residual, gated=True
        )
        # products are added in another order, so that a few results are rounded to a neighbour on the way
        torch.testing.assert_close(found, exact, rtol=2 * step, atol=2 * step)
        assert float((found == exact).double().mean()) > (0.9 if dtype != torch.float32 else 0.0)


def seen_by(positions: torch.Tensor, slots: int, window: int | None) -> torch.Tensor:
    """[B, 1, T, S]: whether a query sees a slot."""
    slot = torch.arange(slots, device=positions.device)
    seen = slot <= positions.unsqueeze(-1)
    return (seen if window is None else seen & (slot > positions.unsqueeze(-1) - window)).unsqueeze(1)


@on_device
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_attention_of_any_shape(data: st.DataObject) -> None:
    batch, kv, group = (data.draw(st.integers(1, most), name) for most, name in ((2, "batch"), (2, "kv"), (5, "group")))
    tokens, width = (
        data.draw(st.sampled_from((1, 2, 5, 17, 40)), "tokens"),
        data.draw(st.sampled_from((8, 16, 24, 64)), "width"),
    )
    capacity = data.draw(st.integers(tokens, 150), "capacity")
    slots = data.draw(st.integers(tokens, capacity), "slots")
    window = data.draw(st.one_of(st.none(), st.integers(1, 220)), "window")
    splits = data.draw(st.sampled_from((None, 1, 2, 5)), "splits")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    last = torch.tensor([data.draw(st.integers(tokens - 1, slots - 1)) for _ in range(batch)], device=DEVICE)
    positions = last.unsqueeze(1) + torch.arange(1 - tokens, 1, device=DEVICE)
    queries = some(batch, tokens, kv * group, width, dtype=dtype).transpose(1, 2)
    stored = [some(batch, kv, capacity, width, dtype=dtype, seed=seed) for seed in (1, 2)]
    for tensor in stored:  # what is behind a row's last position is not even read
        for row, end in enumerate(last.tolist()):
            tensor[row, :, end + 1 :] = float("nan")
    keys, values = (tensor.narrow(2, 0, slots) for tensor in stored)
    found = decode_attention(queries, keys, values, positions, 0.3, window, splits=splits)
    exact = F.scaled_dot_product_attention(
        queries.double(),
        keys.double().nan_to_num(),
        values.double().nan_to_num(),
        seen_by(positions, slots, window),
        scale=0.3,
        enable_gqa=True,
    )
    exact = exact.transpose(1, 2).reshape(batch, tokens, -1)
    error = float((found.double() - exact).abs().max())
    assert error < 6 * BOUND[dtype], error
    again = decode_attention(queries, keys, values, positions, 0.3, window, splits=splits)
    assert torch.equal(found, again)


@on_device
@pytest.mark.parametrize("window", [None, 1, 5, 70])
@pytest.mark.parametrize("splits", [1, 3])
def test_a_window_ends_where_it_should(window: int | None, splits: int) -> None:
    """Values are their slots, and every score is 0: the output is the mean of what was seen."""
    queries, keys = torch.zeros(1, 2, 3, 16, device=DEVICE), some(1, 1, 150, 16)
    values = torch.arange(150.0, device=DEVICE).view(1, 1, 150, 1).expand(1, 1, 150, 16).contiguous()
    positions = torch.tensor([[4, 80, 131]], device=DEVICE)
    found = decode_attention(queries, keys, values, positions, 1.0, window, splits=splits)
    for token, last in enumerate(positions[0].tolist()):
        first = 0 if window is None else max(0, last - window + 1)
        torch.testing.assert_close(found[0, token], torch.full_like(found[0, token], (first + last) / 2))
    alone = decode_attention(queries[:, :, :1], keys, values, positions[:, 1:2], 1.0, window, splits=splits)
    torch.testing.assert_close(alone[0, 0], found[0, 1])


@on_device
def test_a_query_that_sees_nothing_gets_zeros() -> None:
    queries, keys, values = some(2, 2, 1, 16), some(2, 1, 40, 16), some(2, 1, 40, 16)
    positions = torch.tensor([[-1], [3]], device=DEVICE)
    torch.use_deterministic_algorithms(True)  # memory that nobody has written then is NaN
    try:
        for splits in (1, 3):
            found = decode_attention(queries, keys, values, positions, 1.0, splits=splits)
            assert bool((found[0] == 0).all())
            assert bool((found[1].abs() > 0).all())
    finally:
        torch.use_deterministic_algorithms(False)


@on_device
def test_torch_agrees_that_they_are_operators() -> None:
    x, weight, residual = some(2, 40), some(12, 40), some(2, 6)
    product = torch.ops.drafter_factory.skinny_product.default
    for config in (SUMMED[1], DOTTED[0]):
        torch.library.opcheck(product, (x, weight, None, None, 0.0, residual, True, [int(part) for part in config]))
    queries, keys = some(1, 2, 3, 16), some(1, 1, 20, 16)
    positions = torch.tensor([[4, 5, 6]], device=DEVICE)
    attention = torch.ops.drafter_factory.decode_attention.default
    torch.library.opcheck(attention, (queries, keys, keys.clone(), positions, 1.0, 0, 2, False))


def test_their_shapes_are_known_without_a_device() -> None:
    with FakeTensorMode():
        x = torch.empty(5, 64, device="cuda", dtype=torch.bfloat16)
        weight = torch.empty(100, 64, device="cuda", dtype=torch.bfloat16)
        found = skinny_product(x, weight, gated=True)
        assert (found.shape, found.dtype, found.device.type) == ((5, 50), torch.bfloat16, "cuda")
        queries = torch.empty(2, 8, 3, 32, device="cuda", dtype=torch.float16)
        keys = torch.empty(2, 4, 100, 32, device="cuda", dtype=torch.float16)
        positions = torch.empty(2, 3, device="cuda", dtype=torch.long)
        assert decode_attention(queries, keys, keys, positions, 1.0).shape == (2, 3, 256)


def test_what_no_kernel_takes_is_refused() -> None:
    x, weight = torch.randn(17, 8), torch.randn(6, 8)
    with pytest.raises(ValueError, match="1 to 16 rows, not 17"):
        skinny_product(x, weight)
    with pytest.raises(ValueError, match="1 to 2 rows, not 3"):
        skinny_product(x[:3], weight, config=SUMMED[0])
    with pytest.raises(ValueError, match="float64"):
        skinny_product(x[:2].double(), weight.double())
    with pytest.raises(ValueError, match="contiguous"):
        skinny_product(x[:2], torch.randn(8, 6).t())
    with pytest.raises(ValueError, match="7 rows"):
        skinny_product(x[:2], torch.randn(7, 8), gated=True)
    with pytest.raises(ValueError, match="3 heads cannot share 2"):
        decode_attention(
            torch.randn(1, 3, 1, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8), torch.zeros(1, 1).long(), 1.0
        )


@pytest.mark.skipif(INTERPRETING, reason="the interpreter runs on a CPU")
def test_they_are_for_cuda() -> None:
    assert "for CUDA, not cpu" in str(why_no_kernels(torch.device("cpu"), torch.bfloat16))
    with pytest.raises(ValueError, match="for CUDA, not cpu"):
        skinny_product(torch.randn(1, 8), torch.randn(6, 8))


def test_what_is_offered_fills_the_device() -> None:
    for rows, outputs, inputs in ((1, 4096, 4096), (5, 4096, 11008), (16, 22016, 4096), (9, 256, 256)):
        offered = configs(rows, outputs, inputs, 132)
        assert len(set(offered)) == len(offered)
        assert any(config.dotted for config in offered)
        for config in offered:
            programs = -(-outputs // config.block_n) * config.splits
            enough = programs >= 132 or 2 * config.splits > -(-inputs // config.block_k)
            assert enough, config
    assert attention_splits(32, 4096, 132) == 9
    assert attention_splits(512, 4096, 132) == 1
    assert attention_splits(1, 100_000, 132) == MOST_SPLITS
