"""Floors by hand, and the roofline of a real evaluation."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.measurement import CHOOSE, CONFIRM, MODEL, PROMPT_LOOKUP, Arm, ArmFacts, Cell, Timed
from eval.report.charts.roofline_plot import roofline_plot
from eval.verdict.roofline import figures, roofline
from factory.anatomy.shapes import Shape
from factory.artifact import Artifact
from factory.decoding.decoder import Generation
from factory.forecasting.profile import DeviceProfile

NONE = dict.fromkeys(("hidden_vectors", "query_vectors", "kv_vectors", "head_vectors", "ffn_vectors"), 0)
TARGET = Shape(
    layers=2,
    hidden=16,
    heads=2,
    kv_heads=2,
    head_dim=8,
    ffn=32,
    ffn_matrices=3,
    fused_qkv=False,
    embedding_rows=100,
    head_rows=100,
    positions=0,
    context=64,
    tied=True,
    **NONE,
    final_vectors=0,
    bits=32.0,
    table_bits=32.0,
)
WEIGHTS = 2 * (4 * 16 * 16 + 3 * 16 * 32) + 100 * 16  # two layers and the head
DRAFTER = Shape(**{**TARGET.__dict__, "layers": 1})
DRAFTER_WEIGHTS = 4 * 16 * 16 + 3 * 16 * 32 + 100 * 16


def profile(bandwidth: float, peak: float) -> DeviceProfile:
    """A device whose products of few rows are slow: the roof is that of large ones."""
    return DeviceProfile(
        name="d",
        kind="cpu",
        measured=True,
        source="s",
        memory_bytes=None,
        available_bytes=None,
        bandwidth_bytes_per_s=bandwidth,
        peak_flop_per_s={"float32": peak, "bfloat16": peak},
        few_rows_flop_per_s={"float32": ((2, peak / 100), (5, peak / 100))},
    )


def test_a_step_is_no_shorter_than_its_bytes_and_its_operations() -> None:
    memory = figures(TARGET, 3.0, 1.5, profile(4.0 * WEIGHTS, 1e9), "float32")
    assert memory["bytes"] == 4 * WEIGHTS and memory["operations"] == 3 * 2 * WEIGHTS
    assert memory["intensity_flop_per_byte"] == pytest.approx(3 * 2 / 4)
    assert memory["floor_s"] == pytest.approx(1.0)  # reading takes a second, computing far less
    assert memory["floor_share"] == pytest.approx(1 / 1.5) and memory["bound"] == "memory"
    computing = figures(TARGET, 3.0, 1.5, profile(1e12, 6.0 * WEIGHTS), "float32")
    assert computing["floor_s"] == pytest.approx(1.0) and computing["bound"] == "arithmetic"
    # float64 reads nothing less here (the shape says how wide weights are) but computes at half the rate
    assert figures(TARGET, 3.0, 9.0, profile(1e12, 6.0 * WEIGHTS), "float64")["floor_s"] == pytest.approx(2.0)


def test_more_than_two_floors_are_the_hosts() -> None:
    device = profile(4.0 * WEIGHTS, 1e9)
    assert figures(TARGET, 1.0, 2.0, device, "float32")["bound"] == "memory"
    assert figures(TARGET, 1.0, 2.01, device, "float32")["bound"] == "host"


def test_weights_that_no_kernel_reads_as_stored_are_streamed_unpacked() -> None:
    eight_bits = Shape(**{**TARGET.__dict__, "bits": 8.5})
    assert figures(eight_bits, 1.0, 1.0, profile(1e6, 1e9), "float32")["bytes"] == 4 * WEIGHTS
    four_bits = Shape(**{**TARGET.__dict__, "bits": 4.25})
    read = figures(four_bits, 1.0, 1.0, profile(1e6, 1e9), "float32")["bytes"]
    assert read == pytest.approx((4.25 * (WEIGHTS - 1600) + 32 * 1600) / 8)


def test_what_a_cache_holds_is_read_at_its_rate() -> None:
    cached = replace(profile(1e6, 1e9), cached_bytes_per_s=((8 * WEIGHTS, 4.0 * WEIGHTS),))
    found = figures(TARGET, 1.0, 1.5, cached, "float32")
    assert found["bandwidth_bytes_per_s"] == 4 * WEIGHTS and found["floor_s"] == pytest.approx(1.0)


def test_a_drafter_read_in_8_bits_streams_8_bits() -> None:
    arm = Arm("a", MODEL, 3)
    cell = Cell(arm, "s", 0.0, CHOOSE, [[timed([3], 3.0, 1.0)]])
    facts = {arm: ArmFacts(1, 1, 0.5, DRAFTER, TARGET, "packed-int8")}
    made = roofline([cell], facts, profile(1e6, 1e9), "float32")
    assert made is not None
    assert [(step["step"], step["bytes"]) for step in made["steps"]] == [
        ("verify", 4 * WEIGHTS),
        ("draft", DRAFTER_WEIGHTS),
    ]


def timed(proposed: list[int], draft_s: float, verify_s: float, rows: int = 1) -> Timed:
    output = Generation([1], [7] * (1 + len(proposed)), 1 + len(proposed), [0] * len(proposed), proposed)
    return Timed(tuple(range(rows)), [output] * rows, 100.0, 1.0, draft_s, verify_s, 0.0)


def found(batch: int = 1) -> dict[str, Any]:
    alone = Cell(Arm(), "s", 0.0, CHOOSE, [[timed([0, 0, 0, 0], 0.0, 8.0, batch)]], batch=batch)
    trained = Cell(Arm("a", MODEL, 3), "s", 0.0, CHOOSE, [[timed([3, 3, 1], 14.0, 9.0, batch)]] * 2, batch=batch)
    lookup = Cell(Arm(None, PROMPT_LOOKUP, 5), "s", 0.0, CHOOSE, [[timed([0, 5], 0.1, 50.0, batch)]], batch=batch)
    fresh = Cell(Arm("a", MODEL, 3), "s", 0.0, CONFIRM, [[timed([3, 3, 1], 1e3, 1e3, batch)]], batch=batch)
    other = Cell(Arm(), "s", 0.0, CHOOSE, [[timed([0], 0.0, 1e3, 9)]], batch=9)
    facts = {Arm(): ArmFacts(1, 1, None), Arm("a", MODEL, 3): ArmFacts(1, 1, 0.5, DRAFTER, TARGET)}
    made = roofline([alone, trained, lookup, fresh, other], facts, profile(4.0 * WEIGHTS, 1e9), "float32")
    assert made is not None
    return made


def test_steps_by_hand() -> None:
    target, verify, draft = found()["steps"]
    assert (target["step"], target["measured_s"], target["tokens"]) == ("target", pytest.approx(2.0), 1.0)
    # Three rounds a repeat read 4, 4 and 2 tokens. Lookup, fresh prompts and other batches take no part.
    assert (verify["step"], verify["k"]) == ("verify", 3)
    assert (verify["measured_s"], verify["tokens"]) == (pytest.approx(3.0), pytest.approx(10 / 3))
    assert verify["operations"] == pytest.approx(10 / 3 * 2 * WEIGHTS)
    # Seven tokens drafted a repeat.
    assert (draft["step"], draft["artifact"]) == ("draft", "a")
    assert (draft["measured_s"], draft["bytes"]) == (pytest.approx(2.0), 4 * DRAFTER_WEIGHTS)


def test_a_batch_reads_its_weights_once() -> None:
    for alone, together in zip(found()["steps"], found(4)["steps"], strict=True):
        assert together["tokens"] == pytest.approx(4 * alone["tokens"])
        assert together["operations"] == pytest.approx(4 * alone["operations"])
        assert together["bytes"] == alone["bytes"] and together["measured_s"] == pytest.approx(alone["measured_s"])


def test_without_a_shape_there_is_no_roofline() -> None:
    alone = Cell(Arm(), "s", 0.0, CHOOSE, [[timed([0], 0.0, 1.0)]])
    assert roofline([alone], {Arm(): ArmFacts(1, 1, None)}, profile(1.0, 1.0), "float32") is None


def test_the_plot_names_every_step_and_its_share() -> None:
    roof = found()
    drawn = ElementTree.fromstring(roofline_plot(roof, "Floors"))
    texts = ["".join(element.itertext()) for element in drawn.iter("text")]
    assert {"target, one token: 50%", "target, verifying k = 3: 33%"} <= set(texts)
    assert sum("spot" in one.get("class", "") for one in drawn.iter("g")) == len(roof["steps"])
    assert (drawn.findtext("desc") or "").count("of its floor") == len(roof["steps"])
    # No mark lies above the roof: a step cannot do more operations a second than bandwidth and peak allow.
    for step in roof["steps"]:
        rate = step["operations"] / step["measured_s"]
        allowed = min(roof["peak_flop_per_s"], step["intensity_flop_per_byte"] * roof["bandwidth_bytes_per_s"])
        assert rate / allowed == pytest.approx(step["floor_share"])


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_a_real_evaluation_has_its_roofline(
    built: Artifact, judge: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    results = judge(built, tmp_path / "out", temperatures=(0.0,))
    steps = results["roofline"]["steps"]
    named = [(step["step"], step["k"], step["artifact"]) for step in steps]
    assert named == [
        ("target", None, None),
        *(("verify", k, None) for k in (1, 2, 3)),
        ("draft", None, "tiny"),
        ("draft", None, "tiny--raw"),
    ]
    rows = {(row["artifact"], row["k"]): row for row in results["rows"] if row["prompt_set"] == "choose"}
    assert steps[0]["measured_s"] == pytest.approx(rows[None, None]["t_verify_s"])
    assert steps[3]["measured_s"] == pytest.approx(rows["tiny", 3]["t_verify_s"])
    assert all(1 <= step["tokens"] <= 1 + (step["k"] or 0) for step in steps)
    html = (tmp_path / "out" / "report.html").read_text()
    assert "target, verifying k = 3" in html and results["profile"]["words"] in html
