"""What is drawn of results: the account of a round, bars, labels, and pages of results old and new."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from eval.report.charts.lengths import lengths_chart, lengths_of
from eval.report.charts.spent import Bar, spent_charts, stacked
from eval.report.contents import report
from eval.report.drawing.labels import Box, Room, apart
from eval.report.drawing.svg import decade_ticks, fitted, si, ticks
from eval.report.tables import speedup_table
from eval.report.writing import PLOTS, REPORT, RESULTS, TOKENS, draw, redraw, terminal_table
from eval.verdict.account import accounts
from factory.artifact import Artifact
from factory.errors import DataError

EARLIER = Path(__file__).resolve().parents[3] / "docs/benchmarks/demo-cpu-eager.json"  # knows no accept, no roofline


def row(**changes: Any) -> dict[str, Any]:
    """Two outputs of 11 tokens, three repeats: 20 tokens behind the prefills in 10 rounds a repeat."""
    made = {"artifact": "a", "drafter": "model", "k": 2, "suite": "s", "temperature": 0.0, "batch": 1}
    made |= {"prompt_set": "choose", "prompts": 2, "repeats": 3, "new_tokens": 22, "target_passes": 12, "rounds": 30}
    made |= {"t_draft_s": 0.004, "t_verify_s": 0.010, "t_accept_s": 0.001, "t_host_s": 0.002, "t_overhead_s": 0.003}
    made |= {"speedup": 1.2, "speedup_low": 1.1, "speedup_high": 1.3, "forecast_speedup": 1.0, "modelled_speedup": 1.25}
    return {**made, **changes}


def alone(**changes: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("artifact", "drafter", "k", "t_draft_s", "forecast_speedup", "modelled_speedup"))
    return row(**{**nothing, "target_passes": 22, "rounds": 60, **changes})


def test_a_round_is_accounted_for_and_so_is_a_token() -> None:
    target, drafted = accounts([alone(), row()])
    assert (target.drafter, target.batch, target.tokens) == (None, 1, 1.0)
    assert target.seconds == {"verify": 0.010, "accept": 0.001, "host": 0.002}
    assert list(drafted.seconds) == ["draft", "verify", "accept", "host"]
    assert drafted.round_s == pytest.approx(0.017) and drafted.tokens == pytest.approx(2.0)
    assert drafted.per_token_s()["draft"] == pytest.approx(0.002)


def test_rows_are_weighted_by_their_rounds_and_fresh_prompts_take_no_part() -> None:
    # 30 rounds of 4 ms drafting and 60 rounds of 1 ms: 2 ms a round.
    other = row(suite="t", t_draft_s=0.001, target_passes=22, new_tokens=42, rounds=60)
    (found,) = accounts([row(), other, row(prompt_set="confirm", t_draft_s=9.0)])
    assert found.seconds["draft"] == pytest.approx(0.002)
    assert found.tokens == pytest.approx((60 + 120) / 90)


def test_a_round_of_a_batch_brings_the_tokens_of_all_its_rows() -> None:
    single, batched = accounts([row(), row(batch=2, rounds=15)])
    assert (single.batch, batched.batch) == (1, 2)
    assert batched.tokens == pytest.approx(60 / 15) and batched.seconds["draft"] == 0.004


def test_what_is_not_split_stays_one_part() -> None:
    earlier = row()
    for key in ("t_accept_s", "t_host_s", "rounds"):
        del earlier[key]
    (found,) = accounts([earlier])
    assert found.seconds == {"draft": 0.004, "verify": 0.010, "accept and host": 0.003}
    assert found.tokens == pytest.approx(2.0)


def test_outputs_of_one_token_have_no_round() -> None:
    assert accounts([alone(t_verify_s=None, t_accept_s=None, t_host_s=None, t_overhead_s=None, rounds=0)]) == []
    assert spent_charts({"rows": [], "candidates": []}) == []


def test_bars_are_as_long_as_they_say() -> None:
    drawn = stacked("time", "A round", [Bar("x", {"draft": 1.0, "verify": 3.0}), Bar("y", {"verify": 2.0})], "ms")
    svg = ElementTree.fromstring(drawn)
    bars = [element for spot in svg.iter("g") if "spot" in spot.get("class", "") for element in spot.iter("rect")]
    ends = [(float(bar.get("x", "")), float(bar.get("width", "")) + 0.75) for bar in bars]  # a hair is left between
    assert [wide for _, wide in ends] == pytest.approx([ends[0][1], 3 * ends[0][1], 2 * ends[0][1]], abs=0.2)
    assert ends[1][0] == pytest.approx(sum(ends[0]), abs=0.2) and ends[2][0] == ends[0][0]
    assert svg.findtext("desc") == "A round, in ms: x 4: draft 1, verify 3; y 2: verify 2"


def test_forecast_modelled_and_measured_stand_side_by_side() -> None:
    html = speedup_table({"rows": [alone(), row(), row(k=4, forecast_speedup=None, modelled_speedup=None)]})
    assert html.count("<tr>") == 2  # the head, and the one row that anything was said of
    cells = [part.split("</td>")[0].split(">")[-1] for part in html.split("<td")[1:]]
    assert cells[-4:] == ["1.00", "1.25", "1.20x (1.10 to 1.30)", "+20%"]


@given(st.lists(st.floats(0, 300), max_size=12))
def test_labels_lie_apart_in_their_order_within_bounds(places: list[float]) -> None:
    moved = apart(places, 12, 10, 290)
    order = sorted(range(len(places)), key=lambda i: places[i])
    for before, after in pairwise(order):
        assert moved[after] - moved[before] >= 12 - 1e-6
    assert all(10 - 1e-6 <= place <= 290 + 1e-6 for place in moved)


def test_labels_with_room_stay_where_they_are() -> None:
    assert apart([100.0, 20.0, 60.0], 12, 10, 290) == [100.0, 20.0, 60.0]
    assert apart([50.0, 50.0], 20, 0, 100) == [50.0, 70.0]
    assert apart([0.0] * 5, 50, 0, 100) == [0.0, 25.0, 50.0, 75.0, 100.0]


def test_a_label_takes_its_place() -> None:
    room = Room(Box(0, 0, 400, 300))
    assert room.take(Box(90, 40, 110, 52)) and not room.take(Box(100, 45, 120, 57))
    assert room.take(Box(110, 40, 130, 52)) and room.take(Box(90, 52, 110, 64))
    assert not room.take(Box(390, 40, 410, 52))  # it would leave the drawing


def test_a_label_goes_beside_its_mark_and_else_is_led_to_it() -> None:
    room = Room(Box(0, 0, 400, 300))
    room.mark(100, 100)
    beside = room.label(100, 100, "k=2", "own") or ""
    assert 'x="109.0"' in beside and "<line" not in beside
    room.block(60, 60, 160, 140)
    assert room.label(100, 100, "k=3", "own", far=True) is not None
    full = Room(Box(0, 0, 40, 20))
    full.block(0, 0, 40, 20)
    assert full.label(20, 10, "k=4", "own", far=True) is None


def test_round_numbers_and_names() -> None:
    assert ticks(0, 1.7, 5) == [0.0, 0.5, 1.0, 1.5]
    assert decade_ticks(0, 1) == pytest.approx([0, 0.30103, 0.69897, 1])
    assert (si(999, "B"), si(2.5e6, "B"), si(33.7e9, "B/s"), si(0.5, "FLOP")) == (
        "999 B",
        "2.5 MB",
        "33.7 GB/s",
        "0.5 FLOP",
    )
    assert fitted("short", 10) == "short" and fitted("abcdefghijklm", 10) == "abc…hijklm"


def test_results_of_an_earlier_version_still_draw(tmp_path: Path) -> None:
    results = json.loads(EARLIER.read_text())
    html = draw(results, tmp_path / TOKENS, tmp_path).read_text()
    assert "accept and host" in html and "Where the time goes" in html and "These results hold no accepted" in html
    assert "operations / byte" not in html and 'id="map"' not in html
    names = {row["artifact"] for row in results["rows"] if row["artifact"]}
    assert names and all(f"{name}, k = " in html for name in names)


def test_accepted_lengths_of_an_earlier_version_are_counted_from_its_tokens(tmp_path: Path) -> None:
    results = json.loads(EARLIER.read_text())
    first = next(row for row in results["rows"] if row["artifact"] == "quick" and row["k"] == 2)
    line = {key: first[key] for key in ("artifact", "drafter", "suite", "k", "batch", "temperature", "prompt_set")}
    lines = [{**line, "accepted": [2, 0, 2], "proposed": [2, 2, 2]}, {**line, "accepted": [1, 0], "proposed": [2, 1]}]
    (tmp_path / TOKENS).write_text("".join(json.dumps(one) + "\n" for one in lines))
    html = draw(results, tmp_path / TOKENS, tmp_path).read_text()
    assert "quick, k = 2, greedy: 0 accepted in 2 rounds, 40%" in html and "mean 1.00" in html
    (tmp_path / TOKENS).write_text('{"accepted": [1]}\n')
    with pytest.raises(DataError, match=r"tokens\.jsonl: not what `factory eval` of this version writes"):
        draw(results, tmp_path / TOKENS, tmp_path)


def test_lengths_of_suites_are_added_and_those_of_other_batches_left_out() -> None:
    rows = [
        row(accepted_lengths=[3, 1]),
        row(suite="t", accepted_lengths=[1, 0, 2]),
        row(batch=4, accepted_lengths=[9]),
    ]
    rows += [row(temperature=1.0, accepted_lengths=[5]), row(prompt_set="confirm", accepted_lengths=[7]), row(k=9)]
    (found,) = lengths_of(rows, 1)
    assert (found.name, found.k, found.most) == ("a", 2, 2) and found.counts == {0.0: [4, 1, 2], 1.0: [5]}


def test_each_length_has_its_place_and_figures_lie_apart() -> None:
    results = json.loads(EARLIER.read_text())
    for one in results["rows"]:
        one["accepted_lengths"] = [1] * 33 if one["drafter"] else None
    chart = lengths_chart(results)
    assert chart is not None
    svg = ElementTree.fromstring(chart.svg)
    bars = [(float(bar.get("x", "")), float(bar.get("width", ""))) for bar in svg.iter("rect")]
    both = len({one["temperature"] for one in results["rows"]})
    panel = sorted(bars[: 33 * both])
    assert len(panel) == 33 * both and all(x + wide <= after + 0.15 for (x, wide), (after, _) in pairwise(panel))
    base = max(float(one.get("y", "")) for one in svg.iter("text"))
    figures = [float(one.get("x", "")) for one in svg.iter("text") if float(one.get("y", "")) == base]
    assert len(figures) > 5 and all(b - a >= 16 or b < a for a, b in pairwise(figures))


def test_names_cannot_write_into_the_page() -> None:
    text = EARLIER.read_text().replace('"quick"', '"<script>x</script>"').replace('"code"', '"of\\u0001 a file"')
    html = report(json.loads(text), None, [])
    assert "&lt;script&gt;x" in html and html.count("<script") == 1 and r"of\x01 a file, greedy" in html
    for svg in html.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")  # well-formed


def test_a_folder_without_results_says_what_writes_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no results\.json there; `factory eval ARTIFACTS --out .*` writes one"):
        redraw(tmp_path)
    (tmp_path / RESULTS).write_text("{}")
    with pytest.raises(DataError, match=r"results\.json: not what `factory eval` of this version writes"):
        redraw(tmp_path)


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_an_evaluation_in_two_batches_is_drawn_apart(
    built: Artifact, judge: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    results = judge(built, out, batches=(1, 2), prompts=4, ks=(2,), temperatures=(0.0,))
    html = (out / REPORT).read_text()
    for title in ("A round, batch 1", "A new token, batch 2", "Forecast, modelled, measured", "floor reached"):
        assert title in html
    assert {"size.png", "by-k.svg", "lengths.png", "token-time-1.svg", "round-time-2.png"} <= {
        path.name for path in (out / PLOTS).iterdir()
    }
    # Histograms are of the batch that decides: each round of it once.
    lines = [json.loads(line) for line in (out / TOKENS).read_text().splitlines()]
    mine = [
        line for line in lines if line["artifact"] == "tiny" and line["batch"] == 1 and line["prompt_set"] == "choose"
    ]
    none = sum(accepted == 0 for line in mine for accepted in line["accepted"])
    counted = [row["accepted_lengths"][0] for row in results["rows"] if (row["artifact"], row["batch"]) == ("tiny", 1)]
    assert counted[0] == none and f"tiny, k = 2, greedy: 0 accepted in {none} rounds" in html
    assert redraw(out).read_text() == html
    console = Console(width=200, record=True, file=(tmp_path / "table.txt").open("w"))
    console.print(terminal_table(results))
    assert "batch" in console.export_text()
    # How it was trained goes along; its untrained sibling has nothing to tell.
    (trained,) = results["trainings"]
    assert (trained["artifact"], trained["stage"], trained["kind"]) == ("tiny", 1, "distill")
    assert trained["looks"][0]["step"] == 0 and trained["looks"][-1]["tokens"] == trained["trained_tokens"]
    assert trained["losses"][-1][0] == trained["steps"] == trained["planned_steps"]
    section = html.split('<section id="training"')[1].split("</section>")[0]
    modelled = "speedup" in trained["looks"][0]  # only where the build knew of a device's profile
    assert section.count("<svg") == 2 + modelled and section.count('class="kept"') == 1 + modelled
    assert "## Training" in (built.folder / "README.md").read_text()
    # The parts of a round make what a token took, and that is what the rows say.
    for account in accounts(results["rows"]):
        (row,) = (
            one
            for one in results["rows"]
            if one["prompt_set"] == "choose"
            and (one["artifact"], one["drafter"], one["k"], one["batch"])
            == (account.artifact, account.drafter, account.k, account.batch)
        )
        assert account.round_s == pytest.approx((row["t_draft_s"] or 0) + row["t_verify_s"] + row["t_overhead_s"])
        decoded = row["repeats"] * (row["new_tokens"] - row["prompts"])
        assert sum(account.per_token_s().values()) == pytest.approx(account.round_s * row["rounds"] / decoded)
