"""Trainings, from a manifest's facts to the curves and the table of a report."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.report.charts.curves import Level, loss_chart, overlap_chart, speedup_chart, training_charts
from eval.report.drawing.looks import looks_of
from eval.report.drawing.plane import LEFT
from eval.report.tables import training_table
from eval.report.writing import RESULTS, TOKENS, draw, redraw
from eval.verdict.trainings import MOST_LOSSES, thinned, trainings_of

EARLIER = Path(__file__).resolve().parents[3] / "docs/benchmarks/demo-cpu-eager.json"  # knows no trainings
LOOKS = looks_of(["quick", "patient", "prompt lookup"])


def look(step: int, overlap: float, **changes: Any) -> dict[str, Any]:
    made = {"step": step, "tokens": 900 * step, "forward_kl": 3.0 - 3 * overlap, "overlap": overlap}
    made |= {"judged_tokens": 3492, "loss": 2.0 - overlap, "tau": 1 + overlap, "speedup": 0.8 + overlap, "k": 2}
    if step == 0:
        del made["loss"]
    return {**made, **changes}


def judged(overlap: float) -> dict[str, float]:
    return {"forward_kl": 3.0 - 3 * overlap, "overlap": overlap, "judged_tokens": 3492}


def facts(overlaps: list[float], *, planned: int = 400, kept: int = -1, every: int = 100) -> dict[str, Any]:
    """Of a distillation that was looked at every hundredth step."""
    looks = [look(every * place, overlap) for place, overlap in enumerate(overlaps)]
    steps = looks[-1]["step"]
    return {
        "kind": "distill",
        "steps": steps,
        "planned_steps": planned,
        "kept_step": looks[kept]["step"],
        "rows": 608,
        "answer_tokens": 67206,
        "trained_tokens": 900 * steps,
        "held_out_before": judged(overlaps[0]),
        "held_out_after": judged(overlaps[kept]),
        "looks": looks,
        "losses": [2.9 * math.exp(-step / 90) + 0.4 + 0.1 * math.sin(7 * step) for step in range(steps)],
    }


def manifest() -> list[dict[str, Any]]:
    return [{"kind": "drop_layers", "edit": {"keep_layers": [0, 3]}}, facts([0.26, 0.41, 0.49, 0.52, 0.51], kept=3)]


def candidate(artifact: str | None, k: int, speedup: float, **changes: Any) -> dict[str, Any]:
    made = {"artifact": artifact, "drafter": "model" if artifact else "prompt_lookup", "k": k, "prompt_set": "choose"}
    made |= {"speedup": speedup, "speedup_low": speedup - 0.1, "speedup_high": speedup + 0.1, "matches_target": True}
    return {**made, **changes}


CANDIDATES = [
    candidate(None, 4, 1.9),
    candidate("quick", 1, 1.1),
    candidate("quick", 2, 1.26),
    candidate("quick", 3, 1.8, matches_target=False),
    candidate("quick", 2, 3.1, prompt_set="confirm"),
    candidate("patient", 3, 1.43, speedup_low=None, speedup_high=None),
]


def trainings() -> list[dict[str, Any]]:
    again = facts([0.40, 0.58, 0.62])
    return trainings_of("quick", manifest()) + trainings_of("patient", [facts([0.27, 0.5]), {"kind": "x"}, again])


def parsed(svg: str) -> ElementTree.Element:
    assert "nan" not in svg and "inf," not in svg
    return ElementTree.fromstring(svg)


def spots(svg: ElementTree.Element) -> list[ElementTree.Element]:
    """What can be pointed at: every mark, every joint, and a level without room for its name."""
    return [element for element in svg.iter("g") if "spot" in element.get("class", "")]


def titles(svg: ElementTree.Element) -> list[str]:
    return [one.get("aria-label", "") for one in spots(svg)]


def said(svg: ElementTree.Element) -> str:
    (words,) = svg.findall("desc")
    return words.text or ""


def marks(svg: ElementTree.Element) -> list[ElementTree.Element]:
    return [mark for spot in spots(svg) for mark in spot if mark.get("class") in ("dot", "hollow")]


def middle(mark: ElementTree.Element) -> float:
    """How far down a circle or a square lies."""
    return float(mark.get("cy") or float(mark.get("y", "")) + float(mark.get("height", "")) / 2)


def section(trainings: list[dict[str, Any]], candidates: list[dict[str, Any]]) -> str:
    """What the page says of trainings."""
    charts = training_charts({"trainings": trainings, "candidates": candidates})
    return "".join(chart.svg + chart.caption for chart in charts) + training_table(trainings)


def drawn(svg: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [element for element in svg.iter() if element.get("class") == kind]


def test_only_what_was_trained_is_a_training() -> None:
    (found,) = trainings_of("quick", manifest())
    assert (found["artifact"], found["stage"], found["kind"]) == ("quick", 1, "distill")
    assert (found["steps"], found["planned_steps"], found["kept_step"]) == (400, 400, 300)
    assert found["trained_tokens"] == 360000 and len(found["looks"]) == 5
    assert trainings_of("raw", manifest()[:1]) == []


def test_an_earlier_manifest_has_losses_alone() -> None:
    earlier = {key: facts([0.2, 0.5])[key] for key in ("kind", "steps", "held_out_before", "held_out_after", "losses")}
    (found,) = trainings_of("old", [earlier])
    assert found["looks"] == [] and found["trained_tokens"] is None and found["planned_steps"] is None
    assert overlap_chart([found], {}) == "" and speedup_chart([found], {}, {}) == ""
    # Tokens were not counted: steps are what all of the page's trainings have.
    svg = parsed(loss_chart([*trainings(), found], {**LOOKS, **looks_of(["old"])}))
    assert "over optimizer steps" in said(svg)
    html = section([found], [])
    assert html.count("<svg") == 1 and "0.200 → 0.500" in html and "None" not in html and "stopped" not in html


def test_what_is_no_number_does_not_reach_the_file() -> None:
    broken = facts([0.3, 0.4])
    broken["losses"][7], broken["looks"][1]["speedup"], broken["held_out_after"]["overlap"] = (math.nan, math.inf, 1.0)
    found = trainings_of("quick", [broken])
    json.dumps(found, allow_nan=False)
    assert found[0]["looks"][1]["speedup"] is None and found[0]["looks"][1]["overlap"] == 0.4
    assert len(found[0]["losses"]) == 99
    assert len(marks(parsed(speedup_chart(found, LOOKS, {})))) == 1


@given(st.lists(st.floats(-5, 5), max_size=1300))
def test_thinned_losses_keep_their_end_and_their_mean(losses: list[float]) -> None:
    points = thinned(losses)
    assert len(points) <= MOST_LOSSES
    starts = [0, *(step for step, _ in points)]
    assert starts[-1] == len(losses) and starts == sorted(set(starts))
    total = sum(loss * (step - start) for (step, loss), start in zip(points, starts, strict=False))
    assert total == pytest.approx(sum(losses), abs=1e-5 * (1 + len(losses)))
    if len(losses) <= MOST_LOSSES:
        assert [loss for _, loss in points] == pytest.approx(losses, abs=1e-5)


def test_every_drafter_is_named_in_its_colour_and_its_kept_look_has_a_ring() -> None:
    svg = parsed(overlap_chart(trainings(), LOOKS))
    assert len(drawn(svg, "kept")) == 3  # one a distillation
    assert len(marks(svg)) == 5 + 2 + 3
    legend = {element.text for element in drawn(svg, "title")}
    assert legend == {"quick", "patient"}
    for spot in spots(svg):
        assert ("s0" if "quick" in spot.get("aria-label", "") else "s1") in spot.get("class", "").split()
    (kept,) = [words for words in titles(svg) if words.startswith("quick") and words.endswith("; kept")]
    assert kept == (
        "quick, step 300 of 400, 270 k tokens: overlap 0.520, forward KL 1.440, training loss 1.480, "
        "modelled 1.32x at k = 2; kept"
    )
    assert "quick from 0.260 to 0.510, kept 0.520" in said(svg)


def test_a_second_distillation_goes_on_where_the_first_ended() -> None:
    svg = parsed(overlap_chart(trainings(), LOOKS))
    (joint,) = drawn(svg, "joint")
    lines = [element.get("points", "").split() for element in drawn(svg, "curve")]
    first, second = (line for line in lines if len(line) < 5)
    assert float(joint.get("x1", "")) == float(first[-1].split(",")[0]) == float(second[0].split(",")[0])
    assert any("patient: stage 3 of its recipe distils again" in words for words in titles(svg))


def test_the_measured_speedup_is_a_level_beside_the_modelled() -> None:
    html = section(trainings(), CANDIDATES)
    assert html.count("<svg") == 3 and html.count('class="level"') == 2
    # Of exact candidates on the prompts to choose by the best: neither the inexact one nor that of fresh prompts.
    assert "quick measured 1.26x, k = 2" in html and "patient measured 1.43x, k = 3" in html
    svg = parsed(speedup_chart(trainings(), LOOKS, {"quick": Level(1.4, "quick measured 1.40x, k = 2", "s0")}))
    (level,) = drawn(svg, "level")
    # A look of the same speedup lies on it: 0.8 + 0.58 and 0.8 + 0.62 lie on either side.
    heights = [middle(element) for element in marks(svg)]
    below, above = heights[3:5]  # of the second distillation of patient, which stands first
    assert above < float(level.get("y1", "")) < below


def test_a_speedup_that_was_not_modelled_is_not_drawn() -> None:
    one = facts([0.3, 0.4])
    for each in one["looks"]:
        del each["speedup"], each["tau"], each["k"]
    html = section(trainings_of("quick", [one]), CANDIDATES)
    assert html.count("<svg") == 2 and "What that is worth" not in html and "sizes promise" not in html


def test_where_nothing_was_held_out_there_is_loss_alone() -> None:
    one = facts([0.3, 0.4]) | {"looks": [], "held_out_before": None, "held_out_after": None}
    html = section(trainings_of("quick", [one]), CANDIDATES)
    assert html.count("<svg") == 1 and "training loss over trained tokens" in html
    assert "→" not in html and "None" not in html and "each mark is a look" not in html


def test_one_look_is_one_mark() -> None:
    one = facts([0.3, 0.4])
    one["looks"] = one["looks"][:1]
    svg = parsed(overlap_chart(trainings_of("quick", [one]), LOOKS))
    assert len(marks(svg)) == 1 and not drawn(svg, "curve") and not drawn(svg, "kept")
    one |= {"steps": 1, "losses": [0.0], "trained_tokens": 7, "looks": [look(0, 0.0), look(1, 0.0, tokens=7)]}
    for chart in (overlap_chart, loss_chart):
        parsed(chart(trainings_of("quick", [one]), LOOKS))


def test_steps_that_were_not_made_are_said() -> None:
    stopped = trainings_of("quick", [facts([0.3, 0.4, 0.4], planned=1000, kept=1)])
    html = section(stopped, [])
    assert "200 of 1000, stopped early" in html and "0.300 → 0.400" in html and "180 k" in html


def test_the_loss_is_drawn_through_its_means_at_the_tokens_of_its_looks() -> None:
    one = facts([0.3, 0.4, 0.5])
    one["looks"][1]["tokens"] = 150_000  # its first half took most of the tokens
    svg = parsed(loss_chart(trainings_of("quick", [one]), LOOKS))
    assert len(marks(svg)) == 12
    (noise,) = drawn(svg, "noise")
    places = [tuple(map(float, pair.split(","))) for pair in noise.get("points", "").split()]
    assert len(places) == 200
    across = [places[step - 1][0] - LEFT for step in (100, 200)]
    assert across[0] / across[1] == pytest.approx(150 / 180, rel=1e-3)
    assert any(words.startswith("quick, steps 1 to 17: training loss") for words in titles(svg))


def test_names_of_many_lie_apart() -> None:
    names = [f"grid--keep{place}" for place in range(9)]
    many = [one for name in names for one in trainings_of(name, [facts([0.3, 0.5 + 0.001 * len(name), 0.55])])]
    styles = looks_of(names)
    measured = {name: Level(1.2, f"{name} measured 1.20x, k = 2", styles[name].colour) for name in names}
    svg = parsed(speedup_chart(many, styles, measured))
    assert [one.text for one in drawn(svg, "title")] == names  # the legend has all of them, in rows
    own = [(float(one.get("x", "")), float(one.get("y", "")), len(one.text or "")) for one in drawn(svg, "own")]
    assert 3 <= len(own) < 10
    for place, (x, y, letters) in enumerate(own):
        assert all(abs(y - v) >= 12 or x + 5 * letters < u or u + 5 * more < x for u, v, more in own[:place])
    for name in names:  # a level without room for its name says it where it is pointed at, and to who listens
        words = f"{name} measured 1.20x, k = 2"
        assert words in titles(svg) or words in {one.text for one in drawn(svg, "own")}
        assert words in said(svg) and f"{name} from " in said(svg)


def test_a_report_is_drawn_again_with_its_trainings_from_files_alone(tmp_path: Path) -> None:
    results = json.loads(EARLIER.read_text())
    (tmp_path / TOKENS).write_text("")
    assert 'id="training"' not in draw(results, tmp_path / TOKENS, tmp_path).read_text()
    name = next(row["artifact"] for row in results["candidates"] if row["artifact"])
    results["trainings"] = trainings_of(name, manifest())
    (tmp_path / RESULTS).write_text(json.dumps(results, allow_nan=False))
    html = redraw(tmp_path).read_text()
    trained = html.split('<section id="training"')[1].split("</section>")[0]
    assert trained.count("<svg") == 3 and f"{name} measured " in trained
    for svg in re.findall("<svg.*?</svg>", trained):
        assert name in said(parsed(svg))


def test_names_cannot_write_into_the_curves() -> None:
    name = '<script>"x"&'
    html = section(trainings_of(name, manifest()), [candidate(name, 2, 1.2)])
    assert "<script" not in html
    for svg in re.findall("<svg.*?</svg>", html):
        assert name in said(parsed(svg))
