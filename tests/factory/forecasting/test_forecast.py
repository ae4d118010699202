"""Costs by hand, and the published sizes of the shipped configs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from round_figures import DEVICE, small

from factory.anatomy.families import shape_from_config
from factory.anatomy.shapes import Shape
from factory.forecasting.forecast import (
    Costs,
    cost_ratio,
    costs_in_bytes,
    costs_in_time,
    expected_tokens,
    modelled_speedup,
    served,
    step_seconds,
)

RECIPES = Path(__file__).parents[3] / "recipes"


CONFIGS = RECIPES / "configs"


EAGER = replace(DEVICE, layer_overhead_s=0.5, step_overhead_s=0.25)


def shape_of(config: str) -> Shape:
    return shape_from_config(json.loads((CONFIGS / f"{config}.json").read_text()))


@pytest.mark.parametrize(
    ("config", "published"),
    [
        ("llama-2-7b-chat", 6_738_415_616),
        ("llama-3.1-8b-instruct", 8_030_261_248),
        ("qwen3-8b", 8_190_735_360),
        ("gpt2", 124_439_808),
    ],
)
def test_shipped_configs_have_the_published_sizes(config: str, published: int) -> None:
    assert shape_of(config).parameters == published


def test_half_depth_can_never_pay_much() -> None:
    llama = served(shape_of("llama-2-7b-chat"), "bfloat16")
    c = cost_ratio(replace(llama, layers=16), llama)
    assert c == pytest.approx(0.51, abs=5e-4)
    speedup, k = costs_in_bytes(replace(llama, layers=16), llama).best(0.8)
    assert (
        k == 2 and speedup == pytest.approx((1 + 0.8 + 0.64) / (2 * c + 1)) and speedup == pytest.approx(1.21, abs=5e-3)
    )


@pytest.mark.parametrize(
    ("keep", "llama2", "llama3"), [(1, 0.050, 0.099), (2, 0.081, 0.128), (4, 0.142, 0.186), (8, 0.265, 0.303)]
)
def test_cost_in_bytes_of_the_first_layers(keep: int, llama2: float, llama3: float) -> None:
    for name, expected in (("llama-2-7b-chat", llama2), ("llama-3.1-8b-instruct", llama3)):
        target = shape_of(name)
        assert cost_ratio(replace(target, layers=keep), target) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("alpha", "c", "speedup", "k"),
    [(0.6, 0.02, 2.17, 6), (0.8, 0.1, 2.47, 6), (0.9, 0.05, 4.67, 13), (0.7, 0.3, 1.37, 2), (0.6, 0.5, 1.07, 1)],
)
def test_best_speedup_at_best_k(alpha: float, c: float, speedup: float, k: int) -> None:
    assert Costs(0.0, c, lambda _k: 1.0).best(alpha) == (pytest.approx(speedup, abs=5e-3), k)


def test_tau_and_speedup_by_hand() -> None:
    assert expected_tokens(0.5, 2) == 1.75 and expected_tokens(1.0, 4) == 5 and expected_tokens(0.0, 4) == 1
    assert modelled_speedup(0.5, 2, 0.25) == 1.75 / 1.5
    assert modelled_speedup(0.5, 2, 0.25, verify=1.25) == 1.0


def test_a_step_reads_or_computes_whichever_takes_longer() -> None:
    shape = small()
    reading_s = shape.step_bytes / 1e3
    assert step_seconds(shape, 1, DEVICE, "float32") == reading_s
    assert step_seconds(shape, 1000, DEVICE, "float32") == shape.step_operations * 1000 / 1e4 > reading_s
    # 2 bytes a weight at 1000 bytes/s against 2 operations a token at 10,000/s: from 20 tokens on (vectors apart).
    costs = costs_in_time(shape, shape, DEVICE, "float32")
    assert costs.verify(4) == 1.0 and costs.verify(40) > 1.5 and costs.c == 1.0


def test_the_hosts_time_adds_on_a_cpu_and_hides_behind_a_gpu() -> None:
    shape = small()
    device_s, host_s = shape.step_bytes / 1e3, 4 * 0.5 + 0.25
    assert step_seconds(shape, 1, EAGER, "float32") == max(device_s, host_s)
    slow_host = replace(EAGER, layer_overhead_s=100.0)
    assert step_seconds(shape, 1, slow_host, "float32") == 400.25
    assert step_seconds(shape, 1, replace(slow_host, kind="cpu"), "float32") == pytest.approx(device_s + 400.25)
    # Where only the host counts, c is the share of the layers, whatever the bytes.
    costs = costs_in_time(replace(shape, layers=1), shape, replace(slow_host, step_overhead_s=0.0), "float32")
    assert costs.c == 0.25


def test_what_drafting_verifying_and_a_round_add_on_the_host() -> None:
    shape = small()
    host = replace(EAGER, kind="cpu", verify_layer_overhead_s=0.75, draft_overhead_s=0.125, round_overhead_s=2.0)
    plain, costs = (costs_in_time(shape, shape, device, "float32") for device in (replace(EAGER, kind="cpu"), host))
    assert costs.target_s == plain.target_s
    assert costs.draft_s == pytest.approx(plain.draft_s - 0.125)
    assert costs.verify_s(3) == pytest.approx(plain.verify_s(3) + shape.layers * 0.25)
    tokens = 1 + 0.5 + 0.25 + 0.125
    round_s = 3 * costs.draft_s + costs.verify_s(3) + 2.0
    assert costs.speedup(0.5, 3) == pytest.approx(tokens * costs.target_s / round_s)


def test_few_rows_reach_a_smaller_share_of_the_peak() -> None:
    shape = small()
    slow = replace(DEVICE, few_rows_flop_per_s={"float32": ((5, 1e3), (9, 1e3))})
    plain, here = (costs_in_time(shape, shape, device, "float32").verify(4) for device in (DEVICE, slow))
    assert plain == 1.0
    assert here == pytest.approx(shape.step_operations * 5 / 1e3 / step_seconds(shape, 1, slow, "float32"))
    assert here > 2


def test_quantised_layers_cost_less_where_a_kernel_reads_them() -> None:
    shape = served(small(), "bfloat16")
    int4 = replace(shape, bits=4.25)
    assert served(int4, "float32").bits == 4.25 and served(int4, "float32").table_bits == 32
    assert served(shape, "float32").bits == 32
    assert costs_in_time(int4, shape, DEVICE, "bfloat16").c == pytest.approx(costs_in_bytes(int4, shape).c)
    assert costs_in_bytes(int4, shape).c < 0.5
    cpu = replace(DEVICE, kind="cpu")
    assert costs_in_time(int4, shape, cpu, "bfloat16").c < 1
    for bits in (2.2, 3.2, 8.3):  # unpacked first
        assert costs_in_time(replace(shape, bits=bits), shape, cpu, "bfloat16").c == 1.0
        assert costs_in_time(replace(shape, bits=bits), shape, DEVICE, "bfloat16").c < 1
