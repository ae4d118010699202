"""Whole evaluations of tiny artifacts: really built, really decoded, really timed."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from eval.plan import EvalPlan
from eval.report.writing import REPORT, RESULTS, TOKENS, draw, redraw, terminal_table
from eval.timing.arms import entries
from factory.artifact import Artifact, write_manifest
from factory.errors import ArtifactError, DataError

Judge = Callable[..., dict[str, Any]]

# What readers of results.json and tokens.jsonl rely on.
ROW_FIELDS = """artifact drafter suite k temperature batch device dtype reader drafter_reader baseline_reader
    prompts repeats matches_target divergences near_ties near_tie_bound new_tokens target_passes rounds
    tokens_per_s baseline_tokens_per_s latency_s_per_token time_to_first_token_s speedup speedup_low
    speedup_high speedup_decode alpha accepted_per_proposed overlap tau t_draft_s t_verify_s t_accept_s
    t_host_s t_overhead_s repetition parameters bytes_on_disk peak_memory_bytes forecast_speedup
    modelled_speedup"""
TOKEN_FIELDS = "prompt_ids output_ids artifact drafter suite k temperature new_tokens target_passes accepted"


def test_an_evaluation_is_complete_and_true(built: Artifact, judge: Judge, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = judge(built, out)

    assert results == json.loads((out / RESULTS).read_text())
    assert {"schema_version", "hardware", "verdict", "rows"} <= set(results)
    assert {"artifact", "k", "speedup", "speedup_low", "speedup_high", "reason"} <= set(results["verdict"])
    rows = results["rows"]
    assert all(set(row) >= set(ROW_FIELDS.split()) for row in rows)
    arms = {(None, None, None), (None, "prompt_lookup", 2)}
    arms |= {("tiny", "model", 1), ("tiny", "model", 3), ("tiny--raw", "model", 2)}
    for temperature in (0.0, 1.0):
        here = [row for row in rows if row["prompt_set"] == "choose" and row["temperature"] == temperature]
        assert {(row["artifact"], row["drafter"], row["k"]) for row in here} == arms
    assert len(rows) in (10, 16)  # 5 arms, and the best two with their baseline again where any was faster
    assert all(row["matches_target"] is True for row in rows)
    assert all((row["divergences"] is None) == (row["temperature"] > 0 or row["drafter"] is None) for row in rows)
    assert all(found["passed"] and found["dtype"] == "float64" for found in results["parity"])
    assert results["suites"][0]["version"] == 1

    lines = [json.loads(line) for line in (out / TOKENS).read_text().splitlines()]
    assert all(set(line) >= set(TOKEN_FIELDS.split()) for line in lines)
    check_rows_against_tokens(rows, lines)
    check_greedy_against_generate(lines, tiny_folder)

    # A round is accounted for: what the spans cover and what they leave.
    assert all(row["t_accept_s"] > 0 and row["t_host_s"] > 0 for row in rows)
    assert all(row["t_overhead_s"] == pytest.approx(row["t_accept_s"] + row["t_host_s"]) for row in rows)
    assert all(row["rounds"] == row["repeats"] * (row["target_passes"] - row["prompts"]) for row in rows)

    # The forecast stands beside every measurement that there is a forecast of.
    beside = ("t_draft_s", "t_verify_s", "c")
    drafted = [row for row in rows if row["drafter"] == "model"]
    assert all(row[key] > 0 and row[f"forecast_{key}"] > 0 for row in drafted for key in beside)
    assert all(row["forecast_speedup"] > 0 and row["ceiling_speedup"] > 0 for row in drafted)
    assert all(row["forecast_t_verify_s"] > 0 for row in rows)
    assert all((row["modelled_speedup"] is None) == (row["drafter"] is None) for row in rows)
    assert all(row["modelled_speedup"] > 0 for row in drafted)

    html = (out / REPORT).read_text()
    assert results["profile"]["words"] in html
    assert "://" not in html.replace("http://www.w3.org", "")
    assert redraw(out).read_text() == html
    results["target"]["model"] = "<script>alert(1)</script>"
    assert draw(results, out / TOKENS, tmp_path).read_text().count("<script") == 1
    console = Console(width=200, record=True, file=(tmp_path / "table.txt").open("w"))
    console.print(terminal_table(results))
    shown = console.export_text()
    assert "tiny--raw" in shown and "prompt lookup" in shown and "target" in shown

    for name in ("tiny", "tiny--raw"):
        artifact = Artifact.open(built.folder.parent / name)
        assert artifact.evals()[-1]["verdict"] == results["verdict"]
        assert results["verdict"]["reason"] in (artifact.folder / "README.md").read_text()


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_batches_stand_beside_each_other_and_write_the_same(built: Artifact, judge: Judge, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = judge(
        built,
        out,
        batches=(3, 1),
        prompts=7,
        confirm_prompts=3,
        temperatures=(0.0,),
        dtype="float64",
        ks=(2,),
        repeats=2,
    )
    rows = [row for row in results["rows"] if row["prompt_set"] == "choose"]
    assert [row["batch"] for row in rows] == [3] * 4 + [1] * 4
    assert {row["prompts"] for row in rows if row["batch"] == 3} == {6}  # the seventh fills no batch
    assert {row["prompts"] for row in rows if row["batch"] == 1} == {7}
    # the verdict is about the first batch, and that one alone is measured again
    assert {row["batch"] for row in results["candidates"]} == {3} == {results["verdict"]["batch"]}
    assert {row["batch"] for row in results["rows"] if row["prompt_set"] == "confirm"} <= {3}
    # every arm at batch 3 is compared with the target at batch 1, the target alone too
    assert all(row["matches_target"] is True for row in rows)
    assert all(row["divergences"] == 0 for row in rows if row["batch"] == 3)
    assert all(found["batches"] == [3, 1] and found["passed"] for found in results["parity"])
    assert {found["outputs"] for found in results["parity"]} == {2 * 2}
    lines = [json.loads(line) for line in (out / TOKENS).read_text().splitlines()]
    lines = [line for line in lines if line["prompt_set"] == "choose"]
    check_rows_against_tokens(rows, lines)
    written = {(line["request"], tuple(line["output_ids"])) for line in lines}
    assert len(written) == 7
    assert all(row["time_to_first_token_s"] > 0 and row["latency_s_per_token"] > 0 for row in rows)
    assert all(row["forecast_speedup"] is None for row in rows if row["batch"] == 3)


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_sampled_outputs_do_not_depend_on_the_batch(built: Artifact, judge: Judge, tmp_path: Path) -> None:
    judge(built, tmp_path / "out", batches=(2, 1), prompts=4, temperatures=(1.0,), dtype="float64", ks=(2,))
    lines = [json.loads(line) for line in (tmp_path / "out" / TOKENS).read_text().splitlines()]
    chosen = [line for line in lines if line["prompt_set"] == "choose"]
    by_batch = [
        {(line["artifact"], line["drafter"], line["k"], line["request"]): line["output_ids"] for line in mine}
        for mine in ([line for line in chosen if line["batch"] == batch] for batch in (1, 2))
    ]
    assert by_batch[0] == by_batch[1] and len(by_batch[0]) == 4 * 4


def test_a_batch_that_no_prompts_fill_is_told_before_anything_is_loaded(
    built: Artifact, judge: Judge, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="suite stories: 3 prompts to choose by do not fill a batch of 4; give more"):
        judge(built, tmp_path / "out", batches=(1, 4))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_k_may_be_chosen_in_each_round(built: Artifact, judge: Judge, tmp_path: Path) -> None:
    results = judge(built, tmp_path / "out", auto_k=True, confirm_prompts=2)
    auto = [row for row in results["rows"] if row["k"] == "auto" and row["prompt_set"] == "choose"]
    assert {(row["drafter"], row["temperature"]) for row in auto} == set(
        itertools.product(("model", "prompt_lookup"), (0.0, 1.0))
    )
    assert all(row["matches_target"] is True for row in auto)
    checked = [found for found in results["parity"] if found["k"] == "auto"]
    assert len(checked) == 2 and all(found["passed"] for found in checked)
    lines = [json.loads(line) for line in (tmp_path / "out" / TOKENS).read_text().splitlines()]
    assert all(max(line["proposed"], default=0) <= 8 for line in lines if line["k"] == "auto")
    assert REPORT in {path.name for path in (tmp_path / "out").iterdir()}


def test_the_plan_says_which_readers_run(built: Artifact, judge: Judge, tmp_path: Path) -> None:
    results = judge(built, tmp_path / "out", reader="eager", temperatures=(0.0,))
    assert results["target"]["reader"] == "eager"
    assert {(row["reader"], row["baseline_reader"]) for row in results["rows"]} == {("eager", "eager")}
    assert all((row["drafter_reader"] is None) == (row["drafter"] != "model") for row in results["rows"])
    assert all(row["matches_target"] is True for row in results["rows"])
    exact = judge(
        built, tmp_path / "exact", reader="packed", drafter_reader="lean", dtype="float64", temperatures=(0.0,)
    )
    assert {(row["reader"], row["drafter_reader"]) for row in exact["rows"] if row["drafter"] == "model"} == {
        ("lean", "lean")
    }
    assert "the target runs by the reader lean: oneDNN packs no float64 weights" in exact["notes"]


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_penalties_hold_for_every_arm_and_are_audited_with_them(built: Artifact, judge: Judge, tmp_path: Path) -> None:
    penalties = {"repetition_penalty": 1.3, "presence_penalty": 2.0, "no_repeat_ngram_size": 2, "min_new_tokens": 10}
    kinds = {"reader": "packed", "drafter_reader": "packed-int8"}
    results = judge(built, tmp_path / "out", batches=(1, 2), prompts=4, **penalties, **kinds)
    assert all(row["matches_target"] is True for row in results["rows"])
    lines = [json.loads(line) for line in (tmp_path / "out" / TOKENS).read_text().splitlines()]
    for line in lines:
        pairs = list(itertools.pairwise([*line["prompt_ids"], *line["output_ids"]]))[len(line["prompt_ids"]) - 1 :]
        assert len(set(pairs)) == len(pairs) and len(line["output_ids"]) >= 10
    # parity was seen without penalties and with them
    assert {found["outputs"] for found in results["parity"] if found["drafter"]} == {2 * 2 * 2}
    assert {found["outputs"] for found in results["parity"] if not found["drafter"]} == {2 * 2}


def check_rows_against_tokens(rows: list[dict[str, Any]], lines: list[dict[str, Any]]) -> None:
    keys = ("artifact", "drafter", "suite", "k", "temperature", "batch", "prompt_set")
    for row in rows:
        mine = [line for line in lines if all(line[key] == row[key] for key in keys)]
        assert len(mine) == row["prompts"]
        assert sum(len(line["output_ids"]) for line in mine) == row["new_tokens"]
        assert sum(line["target_passes"] for line in mine) == row["target_passes"]
        if row["alpha"] is not None:
            accepted = sum(sum(line["accepted"]) for line in mine)
            proposed = sum(sum(line["proposed"]) for line in mine)
            assert row["accepted_per_proposed"] == pytest.approx(accepted / proposed)
    chosen = {tuple(line["prompt_ids"]) for line in lines if line["prompt_set"] == "choose"}
    assert not chosen & {tuple(line["prompt_ids"]) for line in lines if line["prompt_set"] == "confirm"}


def check_greedy_against_generate(lines: list[dict[str, Any]], folder: Path) -> None:
    """transformers alone, knowing nothing of this project, writes the same."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    greedy = [line for line in lines if line["temperature"] == 0]
    distinct = set()
    for line in greedy:
        prompt = torch.tensor([line["prompt_ids"]])
        with torch.no_grad():
            written = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12, pad_token_id=0
            )
        assert written[0, prompt.shape[1] :].tolist() == line["output_ids"]
        distinct |= set(line["output_ids"])
    assert len(distinct) >= 15


def test_own_prompts_replace_the_suites_and_those_that_do_not_fit_are_counted(
    built: Artifact, judge: Judge, tmp_path: Path
) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("one\ntwo words\nthree\n" + "x" * 200 + "\nfour\n")
    changes = {"ks": (2,), "temperatures": (0.0,), "max_new_tokens": 6, "repeats": 2, "prompts": 16}
    results = judge(built, tmp_path / "out", path, confirm_prompts=16, dtype="float64", **changes)
    (suite,) = results["suites"]
    assert (suite["name"], suite["version"], suite["skipped_prompts"]) == ("mine", None, 1)
    assert (suite["prompts"], suite["confirm_prompts"]) == (2, 2)
    assert results["skipped_prompts"] == 1
    assert all(row["dtype"] == "float64" and row["near_tie_bound"] is None for row in results["rows"])


def test_prompts_too_long_for_the_context_stop_the_run_before_it_starts(
    built: Artifact, judge: Judge, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="suite code: 0 different prompts fit"):
        judge(built, tmp_path / "out", suites=("code",), max_new_tokens=20)
    assert not list((tmp_path / "out").iterdir())


SIZES = "layers hidden heads kv_heads head_dim ffn ffn_matrices embedding_rows head_rows positions"
SHAPE = dict.fromkeys(SIZES.split(), 4) | {"tied": False, "bits": 32.0}


@pytest.fixture
def stub(tmp_path: Path) -> Callable[..., Artifact]:
    """An artifact folder whose weights are never loaded."""

    def make(name: str, parent: str = "a", identity: str = "ab", raw: bool = False) -> Artifact:
        folder = tmp_path / parent / name
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "model.safetensors").write_bytes(b"weights")
        target = {"model": "m", "path": None, "revision": None, "identity": identity, "parameters": 10}
        facts = {"dtype": "float32", "parameters": 5, "bytes_on_disk": 20, "shape": SHAPE, "target_shape": SHAPE}
        chain = ["first"] if raw else ["first", f"{name} trained"]
        made = {"name": name, "raw": raw, "target": target, "digest": chain[-1], "chain": chain, "facts": [], **facts}
        return write_manifest(folder, made)

    return make


def test_a_raw_sibling_of_another_recipe_takes_no_part(stub: Callable[..., Artifact]) -> None:
    trained, raw = stub("x"), stub("x--raw", raw=True)
    write_manifest(raw.folder, {**raw.manifest, "digest": "another"})
    assert [entry.artifact and entry.artifact.name for entry in entries([trained], EvalPlan())] == [None, "x"]


def test_the_raw_sibling_takes_part_once_with_its_own_k(stub: Callable[..., Artifact]) -> None:
    trained, raw = stub("x"), stub("x--raw", raw=True)
    plan = EvalPlan(ks=(2, 3), raw_ks=(4,), lookup_ks=(5,))
    for given in ([trained], [trained, raw]):
        field = entries(given, plan)
        assert [(entry.artifact and entry.artifact.name, entry.ks) for entry in field] == [
            (None, (5,)),
            ("x", (2, 3)),
            ("x--raw", (4,)),
        ]


def test_what_cannot_be_compared_is_refused_before_anything_is_loaded(stub: Callable[..., Artifact]) -> None:
    plan = EvalPlan()
    with pytest.raises(ArtifactError, match="no artifact to evaluate"):
        entries([], plan)
    with pytest.raises(ArtifactError, match="different targets"):
        entries([stub("x"), stub("y", identity="cd")], plan)
    with pytest.raises(ArtifactError, match="one name"):
        entries([stub("z"), stub("z", parent="b")], plan)
    damaged = stub("w")
    (damaged.model_folder / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(ArtifactError, match=r"model\.safetensors: damaged"):
        entries([damaged], plan)
