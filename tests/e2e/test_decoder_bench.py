"""docs/benchmarks/decoder.py, as `make bench` runs it, with its tiny settings. No figure is asserted."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "benchmarks"


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "decoder.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`module(name)` imports a part of the script."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_parts_stand_alone_and_the_table_comes_from_the_json(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{")
    kept = tmp_path / "kept.json"
    only = ("--quick", "--no-compile", "--to", str(kept), "--only", "verify", "batch", "--drafter", str(damaged))
    done = run(*only, cwd=tmp_path)
    assert done.returncode == 1, done.stderr

    found = json.loads(kept.read_text())
    status = {(part["part"], part["model"]): part for part in found["parts"]}
    assert {key: part["status"] for key, part in status.items()} == {
        ("verify", "110M shape"): "measured",
        ("batch", "shipped target"): "failed",
        ("batch", "110M shape"): "measured",
    }
    assert "manifest.json" in status["batch", "shipped target"]["reason"]
    assert {row["part"] for row in found["rows"]} == {"verify", "batch"}
    (goal,) = [row for row in found["rows"] if row["goal"] and row["part"] == "verify"]
    assert goal["what"].endswith("(taken by auto)") and goal["goal"] == {"relation": "<=", "value": 1.3}
    assert all(row["low"] <= row["value"] <= row["high"] and row["low"] > 0 for row in found["rows"])
    assert {"hardware", "versions", "git", "changed", "settings", "profile", "seconds"} <= set(found)

    shown = run("--table", str(kept), cwd=tmp_path)
    assert shown.returncode == 0 and shown.stdout == done.stdout
    assert "show that everything runs, and nothing else" in shown.stdout
    assert shown.stdout.count("| verification of 5 tokens") == sum(row["part"] == "verify" for row in found["rows"])
    assert "- batch, shipped target: failed, ArtifactError" in shown.stdout
    assert "acceptance is arranged" in shown.stdout


def test_without_a_drafter_what_needs_one_is_skipped_with_the_reason(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    done = run("--quick", "--only", "speedup", "--to", str(kept), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (part,) = json.loads(kept.read_text())["parts"]
    assert part["status"] == "skipped" and "factory build recipes/demo/quick.yaml" in part["reason"]
    missing = run("--drafter", "nowhere", cwd=tmp_path)
    assert missing.returncode == 2 and "nowhere" in missing.stderr


def test_a_goal_is_judged_by_its_value_and_doubted_by_its_interval(module: Any) -> None:
    table = module("decoder_table")

    def said(relation: str, bound: float, value: float, low: float | None, high: float | None) -> str:
        goal = {"relation": relation, "value": bound}
        return str(table.verdict({"goal": goal, "value": value, "low": low, "high": high}))

    assert said(">=", 2.0, 2.1, 2.0, 2.2) == "met"
    assert said(">=", 2.0, 2.1, 1.9, 2.2) == "met, not sure"
    assert said(">=", 2.0, 1.9, 1.8, 1.95) == "**missed**"
    assert said("<=", 1.3, 1.2, 1.1, 1.3) == "met"
    assert said("<=", 1.3, 1.4, 1.2, 1.5) == "**missed**, not sure"
    assert said("within", 0.1, 0.95, 0.91, 1.09) == "met"
    assert said("within", 0.1, 1.2, 1.15, 1.3) == "**missed**"
    assert said("within", 0.1, 0.85, 0.8, 1.2) == "**missed**, not sure"
    assert said(">=", 2.0, 2.1, None, None) == "met, not sure"  # one prompt has no interval


def test_the_arranged_pair_shares_its_first_layer_and_agrees_more_than_chance(module: Any) -> None:
    pairs, passes = module("decoder_pairs"), module("decoder_passes")
    pair = pairs.big(pairs.QUICK)
    whole, part = pair.target.state_dict(), pair.drafters[pair.drafter()].state_dict()
    assert part and all(torch.equal(tensor, whole[name]) for name, tensor in part.items())
    assert len(part) < len(whole) and pair.limits.eos == frozenset()

    undone = passes.pass_of(pair.reader(), 5)
    before = list(pair.reader().lengths)
    undone()
    assert pair.reader().lengths == before == [passes.AT]  # so that every repeat does the same work


def test_a_round_is_timed_over_full_rounds_only(module: Any) -> None:
    pairs, passes = module("decoder_pairs"), module("decoder_passes")
    sampling = importlib.import_module("factory.decoding.sampling").Sampling
    pair = pairs.big(pairs.QUICK)
    row = passes.rounds(pair, pair.drafter(), sampling())
    prompts = len(pair.timed) * pair.settings.repeats
    assert 0 < row["detail"]["rounds"] <= prompts * (pair.limits.max_new_tokens - 1)
    short = pairs.big(pairs.Settings(**{**pairs.QUICK.facts(), "big_new_tokens": 3}))
    with pytest.raises(pairs.SkippedError, match="no round of 3 new tokens had room for 4 guesses"):
        passes.rounds(short, short.drafter(), sampling())


def test_batches_count_every_token_once(module: Any) -> None:
    pairs, contests = module("decoder_pairs"), module("decoder_contests")
    pair = pairs.big(pairs.QUICK)
    (row,) = contests.batches(pair)
    assert row["detail"]["prompts"] == 16 and row["goal"] == {"relation": ">=", "value": 3.0}
    few = pairs.big(pairs.Settings(**{**pairs.QUICK.facts(), "groups": 1}))
    with pytest.raises(pairs.SkippedError, match="less than two batches of 8"):
        list(contests.batches(few))
