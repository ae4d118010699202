"""Products on packed and 8-bit weights, and which reader is opened for whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from factory.decoding import products as room
from factory.decoding.products import ROWS, int8_products, tuned_products, why_no_int8, why_no_packing
from factory.decoding.readers import open_reader, require_target_reader
from factory.errors import UnsupportedModel


def linears(count: int = 2, bias: bool = True) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(96, 64, generator=generator), torch.randn(96, generator=generator) if bias else None)
        for _ in range(count)
    ]


def ticking(plain_s: float, packed_s: float) -> Callable[[], float]:
    """A clock on which plain products take so long and packed ones so long: they are timed in turn."""

    def ticks() -> Iterator[float]:
        now = 0.0
        while True:
            for step in (plain_s, packed_s):
                yield now
                now += step
                yield now

    told = ticks()
    return lambda: next(told)


@pytest.mark.skipif(why_no_packing(torch.float32) is not None, reason=str(why_no_packing(torch.float32)))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 4, 70])
@pytest.mark.parametrize("packed_s", [0.5, 2.0])
def test_either_product_is_the_product(bias: bool, rows: int, packed_s: float) -> None:
    given = linears(bias=bias)
    x = torch.randn(1, rows, 64)
    for product, (weight, b) in zip(tuned_products(given, ticking(1.0, packed_s)), given, strict=True):
        torch.testing.assert_close(product(x, rows), F.linear(x, weight, b), rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(why_no_packing(torch.float32) is not None, reason=str(why_no_packing(torch.float32)))
def test_the_faster_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    packed = room._packed
    monkeypatch.setattr(
        room, "_packed", lambda linear: lambda x, rows: (called.append(rows), packed(linear)(x, rows))[1]
    )
    slower = tuned_products(linears(), ticking(1.0, 2.0))
    faster = tuned_products(linears(), ticking(2.0, 1.0))
    called.clear()
    for rows in (*ROWS, 7, 200):
        slower[0](torch.randn(1, rows, 64), rows)
    assert called == []
    for rows in (*ROWS, 7, 200):
        faster[0](torch.randn(1, rows, 64), rows)
    assert called == [*ROWS, 7, 200]


@pytest.mark.skipif(why_no_int8(torch.float32) is not None, reason=str(why_no_int8(torch.float32)))
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_8_bit_weights_are_off_by_their_rounding(rows: int) -> None:
    (weight, bias) = linears(1)[0]
    x = torch.randn(2, rows, 64)
    found = int8_products([(weight, bias)])[0](x, 2 * rows)
    exact = F.linear(x, weight, bias)
    error = float((found - exact).abs().max() / exact.abs().max())
    assert error < 0.02
    assert (error > 1e-4) == (2 * rows <= room.INT8_ROWS)


def test_auto_is_the_fastest_that_keeps_the_model(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    exact = open_reader(families["llama"](layers=1))
    assert exact.name == "lean"
    assert "float64" in str(exact.why)
    served = open_reader(families["llama"](layers=1, dtype=torch.float32))
    assert served.name == ("packed" if why_no_packing(torch.float32) is None else "lean")
    assert (served.why is None) == (served.name == "packed")


def test_an_operator_that_is_missing_or_wrong_is_noticed(
    families: dict[str, Callable[..., PreTrainedModel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families["llama"](layers=1, dtype=torch.float32)

    def missing(linear: object) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(room, "_packed", missing)
    reader = open_reader(model, "packed")
    assert reader.name == "lean"
    assert "oneDNN's packed product is not there" in str(reader.why)
    monkeypatch.setattr(room, "_packed", lambda linear: lambda x, rows: F.linear(x, linear[0], linear[1]) + 1)
    assert "wrong here by 1" in str(open_reader(model, "packed").why)


def test_a_model_of_another_family_is_read_by_its_own_modules() -> None:
    config = AutoConfig.for_model(
        "phi", vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    reader = open_reader(AutoModelForCausalLM.from_config(config).eval())
    assert reader.name == "eager"
    assert "phi" in str(reader.why)


def test_rounded_weights_are_not_for_targets() -> None:
    require_target_reader("packed")
    with pytest.raises(UnsupportedModel, match="drafters only"):
        require_target_reader("packed-int8")
