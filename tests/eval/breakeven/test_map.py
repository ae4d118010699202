"""Break-even maps: a real one of a tiny drafter, its interruption, its figures and its rule by hand."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from eval.breakeven.map import KEPT, best_artifact, measure_map, memory_for
from eval.breakeven.map_prompts import Lengthener
from eval.breakeven.switch import best_of, cell_figures, rule
from eval.measurement import CHOOSE, MODEL, PROMPT_LOOKUP, Arm, Cell, Timed
from eval.plan import EvalPlan, load_plan
from eval.report.heatmap import cells_table, heat_map, map_rules, map_table
from eval.report.writing import MAP, REPORT, RESULTS, redraw
from eval.suites import Suite
from eval.timing.memory import Load
from eval.verdict.rows import drafter_name
from factory.artifact import Artifact
from factory.cli import app
from factory.decoding.decoder import Generation
from factory.errors import ArtifactError, DataError

SMALL = {"map_batches": (1, 3), "map_contexts": (9, 500), "map_samples": 2, "map_new_tokens": 6, "ks": (1, 3)}

llama = pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def mapped(artifact: Artifact, out: Path, progress: Callable[[int, int, str], None] = silent, **changes: Any) -> Any:
    plan = EvalPlan.model_validate({**load_plan("smoke").model_dump(), **SMALL, **changes})
    return measure_map([artifact], plan, target=None, out=out, prompts_file=None, progress=progress)


def test_a_map_is_complete_and_stays(built: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = mapped(built, out)
    assert found == json.loads((out / MAP).read_text())
    assert not (out / KEPT).exists()
    # 500 tokens do not fit into a context of 160: 6 new ones and one more must find room.
    assert (found["batches"], found["contexts"], found["temperatures"]) == ([1, 3], [9, 153], [0.0, 1.0])
    places = [(cell["context"], cell["temperature"], cell["batch"]) for cell in found["cells"]]
    assert places == [(c, t, b) for c in (9, 153) for t in (0.0, 1.0) for b in (1, 3)]
    arms = [("tiny", "model", 1), ("tiny", "model", 3), (None, "prompt_lookup", 2)]
    for cell in found["cells"]:
        assert cell["samples"] == 2 and cell["tokens_per_s"] > 0
        assert [(row["artifact"], row["drafter"], row["k"]) for row in cell["rows"]] == arms
        assert all(row["matches_target"] is True for row in cell["rows"])
        assert all(row["speedup_low"] <= row["speedup"] <= row["speedup_high"] for row in cell["rows"])
        assert all((row["divergences"] is None) == (cell["temperature"] > 0) for row in cell["rows"])
        assert [best["artifact"] for best in cell["best"]] == ["tiny", None]
        for best in cell["best"]:
            assert {key: best[key] for key in best if key != "pays"} in cell["rows"]
            assert best["pays"] == (best["speedup_low"] > 1)
    assert [one["ks"] for one in found["drafters"]] == [[1, 3], [2]]

    html = (out / REPORT).read_text()  # of the map alone: nothing was evaluated here
    assert all(one["rule"].replace("'", "&#x27;") in html for one in found["drafters"])
    assert html.count("<svg") == 2 and "No evaluation lies beside" in html
    assert redraw(out).read_text() == html
    console = Console(width=160, record=True, file=(tmp_path / "table.txt").open("w"))
    console.print(map_table(found))
    shown = console.export_text()
    assert "batch 3" in shown and "prompt lookup" in shown
    assert " ".join(found["drafters"][0]["rule"].split()[:4]) in " ".join(shown.split())


@llama
def test_a_map_stands_in_the_report_of_an_evaluation(
    built: Artifact, judge: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    judge(built, out, temperatures=(0.0,))
    before = (out / REPORT).read_text()
    assert "Where drafting pays" not in before
    mapped(built, out, temperatures=(0.0,), map_contexts=(9,), map_batches=(1,))
    both = (out / REPORT).read_text()
    assert "Where drafting pays" in both and "Where the time goes" in both and (out / RESULTS).is_file()
    (out / MAP).write_text("[]")
    with pytest.raises(DataError, match=r"map\.json: not what `factory eval --map` of this version writes"):
        redraw(out)


@llama
def test_an_interrupted_map_measures_only_the_cells_that_are_missing(built: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told: list[tuple[int, int, str]] = []

    def until_the_third_cell(done: int, total: int, what: str) -> None:
        told.append((done, total, what))
        if what.startswith("cells") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mapped(built, out, until_the_third_cell)
    assert [total for _, total, what in told if what.startswith("cells")] == [8, 8, 8]
    assert not (out / MAP).exists()
    kept = sorted((path, path.read_text()) for path in (out / KEPT).rglob("choose-*.json"))
    assert len(kept) == 2

    told.clear()
    found = mapped(built, out, lambda *said: told.append(said))
    assert {total for _, total, what in told if what.startswith("cells")} == {6}
    assert not any(what.startswith("parity") for _, _, what in told)
    assert len(found["cells"]) == 8
    # The two cells are those that were kept, to the last bit.
    first = json.loads(kept[0][1])["cells"][0]["runs"][0]
    spent_s = sum(one["total_s"] - one["prefill_s"] for one in first)
    tokens = sum(len(text["tokens"]) - 1 for one in first for text in one["generations"])
    assert tokens / spent_s in [cell["tokens_per_s"] for cell in found["cells"][:2]]


@llama
def test_a_k_that_is_chosen_as_it_goes_takes_part(built: Artifact, tmp_path: Path) -> None:
    found = mapped(built, tmp_path / "out", auto_k=True, ks=(2,), map_contexts=(9,), map_batches=(2,))
    ks = {drafter_name(one): one["ks"] for one in found["drafters"]}
    assert ks == {"tiny": [2, "auto"], "prompt lookup": [2, "auto"]}
    for cell in found["cells"]:
        assert [row["k"] for row in cell["rows"]] == [2, "auto", 2, "auto"]
        assert all(row["matches_target"] is True for row in cell["rows"])


@llama
def test_what_cannot_be_mapped_is_said_before_anything_is_loaded(built: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"48 prompts do not make two batches of 32.*lower map_batches"):
        mapped(built, out, map_batches=(1, 32))
    with pytest.raises(DataError, match=r"map_new_tokens 159 leaves no room for a prompt in a context of 160"):
        mapped(built, out, map_new_tokens=159)
    with pytest.raises(ArtifactError, match="no artifact to map"):
        best_artifact([])
    assert list(out.iterdir()) == []


def test_memory_that_runs_out_names_the_cell_and_the_keys_of_a_map() -> None:
    said = r"memory ran out at batch 8, k 4 and 288 tokens.*map_batches"
    with pytest.raises(DataError, match=said), memory_for(Load(8, 4, 256, 32)):
        raise MemoryError


@llama
def test_the_drafter_whose_evaluation_was_the_best_is_mapped(built: Artifact, tmp_path: Path) -> None:
    raw = Artifact.open(built.folder.with_name("tiny--raw"))
    assert best_artifact([raw, built]).name == "tiny"  # the untrained one takes no part beside a trained one
    assert best_artifact([raw]).name == "tiny--raw"
    other = copied(built, tmp_path / "other", "other")
    with pytest.raises(ArtifactError, match=r"tiny, .*other: not evaluated"):
        best_artifact([built, other])
    for low, best in ((1.4, "tiny"), (0.7, "second")):
        second = copied(built, tmp_path / f"second-{low}", "second")
        for artifact, figure in ((built, low), (second, 1.1)):
            row = {"artifact": artifact.name, "prompt_set": CHOOSE, "speedup_low": figure, "matches_target": True}
            wrong = {**row, "speedup_low": 9.0, "matches_target": False}
            (artifact.folder / "evals").mkdir(exist_ok=True)
            record = {"manifest_sha256": artifact.manifest_digest(), "candidates": [row, wrong]}
            (artifact.folder / "evals" / f"{low}.json").write_text(json.dumps(record))
        assert best_artifact([built, second]).name == best


def copied(artifact: Artifact, folder: Path, name: str) -> Artifact:
    folder.mkdir()
    manifest = {**artifact.manifest, "name": name}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Artifact(folder, manifest)


@llama
def test_the_command_prints_table_and_rule(built: Artifact, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "suites: [stories]\nks: [2]\nlookup_ks: [2]\ntemperatures: [0.0]\nmap_batches: [1, 2]\nmap_contexts: [12]\n"
        "map_samples: 2\nmap_new_tokens: 4\nparity_prompts: 1\ndevice: cpu\nthreads: 1\n"
    )
    out = tmp_path / "out"
    given = ["eval", str(built.folder), "--plan", str(plan), "--map", "--out", str(out), "--quiet", "--json"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert "batch 2" in done.output and f"report: {out / 'report.html'}" in done.output
    last = json.loads(done.output.splitlines()[-1])
    assert last == {"rules": [one["rule"] for one in json.loads((out / MAP).read_text())["drafters"]], "out": str(out)}
    plan.write_text("map_batches: [0]\nmap_contexts: []\n")
    refused = CliRunner().invoke(app, given)
    assert refused.exit_code == 2
    assert "map_batches" in refused.output and "map_contexts" in refused.output


# A cell by hand.


def timed(tokens: int, decode_s: float, requests: tuple[int, ...], proposed: int = 0) -> Timed:
    texts = [Generation([1], [7] * tokens, tokens, [0] * (tokens - 1), [proposed] * (tokens - 1)) for _ in requests]
    return Timed(requests, texts, 1.0 + decode_s, 1.0, 0.0, decode_s, 0.0)


def cell(arm: Arm, seconds: list[float], tokens: int = 5) -> Cell:
    runs = [[timed(tokens, spent, (2 * n, 2 * n + 1), 0 if arm.k is None else 1) for n, spent in enumerate(seconds)]]
    return Cell(arm, "map", 0.7, CHOOSE, runs, batch=2, lossless=True)


def test_a_cell_is_that_of_decoding_alone() -> None:
    base = cell(Arm(), [8.0, 8.0])
    fast, slow = cell(Arm("a", MODEL, 2), [4.0, 4.0]), cell(Arm("a", MODEL, 4), [16.0, 16.0])
    found = cell_figures([base, slow, fast, cell(Arm(None, PROMPT_LOOKUP, 3), [8.0, 8.0])], 64, seed=0)
    assert (found["context"], found["temperature"], found["batch"], found["samples"]) == (64, 0.7, 2, 2)
    assert found["tokens_per_s"] == pytest.approx(2 * 2 * 4 / 16)  # the first token of each row is the prefill's
    assert [row["speedup"] for row in found["rows"]] == pytest.approx([0.5, 2.0, 1.0])
    assert [row["speedup_total"] for row in found["rows"]] == pytest.approx([9 / 17, 9 / 5, 1.0])
    assert [(drafter_name(best), best["k"], best["pays"]) for best in found["best"]] == [
        ("a", 2, True),
        ("prompt lookup", 3, False),
    ]
    assert found["rows"][1]["alpha"] == 0.0


def test_a_cell_without_decoding_says_so() -> None:
    base, arm = cell(Arm(), [0.0, 0.0], tokens=1), cell(Arm("a", MODEL, 2), [0.0, 0.0], tokens=1)
    with pytest.raises(DataError, match=r"context 64, temperature 0\.7, batch 2: every output ended"):
        cell_figures([base, arm], 64, seed=0)


def row(k: int, low: float | None, value: float, matches: bool | None = True) -> dict[str, Any]:
    return {"k": k, "speedup": value, "speedup_low": low, "speedup_high": value, "matches_target": matches}


@pytest.mark.parametrize(
    ("rows", "k", "pays"),
    [
        ([row(2, 1.1, 1.2), row(4, 1.05, 1.9)], 2, True),  # the best lower bound, not the best figure
        ([row(2, 0.9, 1.2), row(4, 0.8, 1.3)], 2, False),
        ([row(2, 1.0, 1.0)], 2, False),
        ([row(2, 1.5, 1.6, False), row(4, 0.7, 0.8)], 4, False),  # a wrong output is no speedup
        ([row(2, 1.5, 1.6, False), row(4, 1.4, 1.5, None)], 2, False),
        ([row(2, None, 1.6)], 2, False),
    ],
)
def test_the_best_k_of_a_cell(rows: list[dict[str, Any]], k: int, pays: bool) -> None:
    best = best_of(rows)
    assert (best["k"], best["pays"]) == (k, pays)


def pays(*off: tuple[float, int, int]) -> dict[tuple[int, float, int], bool]:
    """Batches 1, 2, 4; greedy and temperature 1; contexts 64 and 256. `off`: (temperature, context, batch)."""
    return {(c, t, b): (t, c, b) not in off for c in (64, 256) for t in (0.0, 1.0) for b in (1, 2, 4)}


def everywhere(temperature: float, *batches: int) -> list[tuple[float, int, int]]:
    return [(temperature, context, batch) for context in (64, 256) for batch in batches]


@pytest.mark.parametrize(
    ("off", "said"),
    [
        ([], "q: draft everywhere; in every cell the interval lies above 1."),
        (
            [*everywhere(0.0, 1, 2, 4), *everywhere(1.0, 1, 2, 4)],
            "q: switch drafting off everywhere; in no cell does the interval lie above 1.",
        ),
        (everywhere(1.0, 4), "q: switch drafting off from batch 4 on at temperature 1; draft elsewhere."),
        (
            [*everywhere(0.0, 2, 4), *everywhere(1.0, 2, 4)],
            "q: switch drafting off from batch 2 on; draft elsewhere.",
        ),
        (
            [*everywhere(0.0, 4), *everywhere(1.0, 1, 2, 4)],
            "q: switch drafting off from batch 4 on under greedy decoding, and at every batch at temperature 1; "
            "draft elsewhere.",
        ),
        (
            [(t, 256, b) for t in (0.0, 1.0) for b in (1, 2)],
            "q: switch drafting off up to batch 2 with 256 tokens of context; draft elsewhere.",
        ),
        (
            [(0.0, 64, 4), (1.0, 256, 4), (1.0, 64, 2)],
            "q: switch drafting off from batch 4 on under greedy decoding with 64 tokens of context and at temperature "
            "1 with 256 tokens of context, and at batch 2 at temperature 1 with 64 tokens of context; draft elsewhere.",
        ),
        (everywhere(0.0, 1), "q: switch drafting off at batch 1 under greedy decoding; draft elsewhere."),
        (
            [*everywhere(0.0, 1, 4), *everywhere(1.0, 1, 4)],
            "q: switch drafting off at batch 1 and 4; draft elsewhere.",
        ),
    ],
)
def test_the_rule_in_words(off: list[tuple[float, int, int]], said: str) -> None:
    assert rule("q", pays(*off)) == said


def test_the_rule_of_one_batch_names_no_batch() -> None:
    one = {(64, 0.0, 8): True, (64, 1.0, 8): False}
    assert rule("q", one) == "q: switch drafting off at temperature 1; draft elsewhere."


# Its drawing.


def drawn_map() -> dict[str, Any]:
    def made(batch: int, value: float) -> dict[str, Any]:
        best = {"artifact": "<b>a</b>", "drafter": MODEL, "k": 2 * batch, "speedup": value, "speedup_low": value - 0.1}
        best |= {"speedup_high": value + 0.1, "speedup_total": value, "tokens_per_s": 10.0, "alpha": None}
        best["pays"] = best["speedup_low"] > 1
        return {"context": 64, "temperature": 0.0, "batch": batch, "best": [best]}

    return {
        "batches": [1, 2, 4],
        "contexts": [64],
        "temperatures": [0.0],
        "words": "words",
        "drafters": [{"artifact": "<b>a</b>", "drafter": MODEL, "rule": "<i>rule</i>"}],
        "cells": [made(1, 1.9), made(2, 1.05), made(4, 0.5)],
    }


def test_a_heat_map_says_figure_and_k_or_off_and_shades_by_distance_from_one() -> None:
    found = drawn_map()
    svg = ElementTree.fromstring(heat_map(found, found["drafters"][0], "map-0"))
    texts = ["".join(element.itertext()) for element in svg.iter("text")]
    assert texts[-6:] == ["1.90x", "k = 2", "1.05x", "off", "0.50x", "off"]
    depths = [float(element.get("fill-opacity", "1")) for element in svg.iter("rect") if element.get("class") == "bar"]
    assert depths[1] < depths[0] < depths[2]
    colours = [element.get("class") for element in svg.iter("g")]
    assert colours[0] == colours[1] != colours[2]
    assert "batch 4: 0.50x (0.40 to 0.60) at k = 8, off" in (svg.findtext("desc") or "")


def test_names_and_rules_are_escaped() -> None:
    html = map_rules(drawn_map()) + cells_table(drawn_map())
    assert "<i>" not in html and "<b>" not in html and "&lt;i&gt;rule" in html


# Its prompts.


def characters(text: str) -> list[int]:
    return [1, *(ord(letter) for letter in text)]  # 1 begins every text


def test_prompts_are_lengthened_from_the_front_and_end_as_the_suite_has_them() -> None:
    suite = Suite("s", 1, "", ("abc", "defgh", "ij"))
    lengthener = Lengthener([suite], characters, frozenset({1}))
    prompts = lengthener.prompts(7, 9)
    assert lengthener.count == len(prompts) == 3
    texts = ["".join(map(chr, prompt.ids[1:])) for prompt in prompts]
    assert texts == ["ij\n\nabc"[-6:], "c\n\ndefgh"[-6:], "gh\n\nij"[-6:]]
    assert all(prompt.ids[0] == 1 and len(prompt.ids) == 7 for prompt in prompts)
    assert [prompt.request for prompt in prompts] == [0, 1, 2]
    # One that is too long loses its beginning, never what begins every text.
    assert [prompt.ids for prompt in lengthener.prompts(3, 1)] == [[1, ord("b"), ord("c")]]
    assert [prompt.ids for prompt in lengthener.prompts(1, 1)] == [[ord("c")]]


def test_suites_take_turns_and_do_not_mix() -> None:
    suites = [Suite("s", 1, "", ("aa", "bb")), Suite("t", 1, "", ("cc",))]
    prompts = Lengthener(suites, lambda text: list(map(ord, text)), frozenset()).prompts(2, 3)
    assert ["".join(map(chr, prompt.ids)) for prompt in prompts] == ["aa", "cc", "bb"]


def test_a_suite_too_short_for_the_context_is_named() -> None:
    lengthener = Lengthener([Suite("s", 1, "", ("abc", "de"))], characters, frozenset({1}))
    assert len(lengthener.prompts(8, 2)) == 2
    with pytest.raises(DataError, match="suite s: all its prompts joined have 8 tokens, and map_contexts asks for 9"):
        lengthener.prompts(9, 2)
