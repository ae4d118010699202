"""Evaluations that are stopped in the middle, in this process and as a command, and begun again."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.measurement import CHOOSE, MODEL, Arm, Block, Cell, Timed
from eval.parity import Audit
from eval.report.writing import RESULTS
from eval.timing.partial import FOLDER, Partial
from factory.artifact import Artifact
from factory.decoding.decoder import Generation

Judge = Callable[..., dict[str, Any]]

llama = pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
BLOCK = Block("s", 0.7, 2, CHOOSE)
ARMS = [Arm(), Arm("a", MODEL, 3)]


def cells() -> list[Cell]:
    output = Generation([1, 2], [3, 4, 5], 2, [1], [2])
    runs = [[Timed((4, 7), [output, output], 1 / 3, 0.1, 0.0, 2e-17, 0.05)]]
    return [Cell(arm, "s", 0.7, CHOOSE, runs, batch=2, overlap=0.25, lossless=True) for arm in ARMS]


def test_what_is_kept_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    kept = Partial(tmp_path, {"plan": {}})
    assert kept.cells(BLOCK, ARMS) is None and kept.parity(ARMS) is None
    assert not (tmp_path / FOLDER).exists()  # nothing is written before something is measured
    audits = {ARMS[0]: Audit(3, 0, 0, None), ARMS[1]: Audit(3, 1, 0, 1e-5, ("token 1: ...",))}
    kept.keep_parity(audits, {(1, 3): 1e-5, (2, 0): 0.0})
    kept.keep(BLOCK, cells())
    again = Partial(tmp_path, {"plan": {}})
    assert again.cells(BLOCK, ARMS) == cells()
    assert again.parity(ARMS) == (audits, {(1, 3): 1e-5, (2, 0): 0.0})
    assert again.kept == 1
    again.remove()
    assert not (tmp_path / FOLDER).exists()


def test_blocks_of_other_arms_and_damaged_ones_are_not_there(tmp_path: Path) -> None:
    kept = Partial(tmp_path, {"plan": {}})
    kept.keep(BLOCK, cells())
    assert kept.cells(BLOCK, ARMS[:1]) is None
    assert kept.cells(Block("s", 0.7, 1, CHOOSE), ARMS) is None
    (file,) = tmp_path.glob(f"{FOLDER}/*/choose-*.json")
    for damaged in (file.read_text()[:-20], "{}", "[]", json.dumps({"cells": [{"arm": {}}]})):
        file.write_text(damaged)
        assert kept.cells(BLOCK, ARMS) is None


def test_another_question_begins_anew_and_says_which(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    facts = {"plan": {"ks": [2], "seed": 0}, "dtype": "float32"}
    Partial(tmp_path, facts).keep(BLOCK, cells())
    assert Partial(tmp_path, facts).cells(BLOCK, ARMS) is not None
    changed = Partial(tmp_path, {"plan": {"ks": [3], "seed": 0}, "dtype": "float64"})
    assert changed.cells(BLOCK, ARMS) is None
    assert caplog.messages == [
        f"{tmp_path}: goes on where an evaluation was interrupted",
        f"{tmp_path}: measured anew, since another dtype, plan.ks was asked for than before",
    ]
    assert not list((tmp_path / FOLDER).iterdir())


@llama
def test_an_interrupted_evaluation_measures_only_what_is_missing(built: Artifact, judge: Judge, tmp_path: Path) -> None:
    out = tmp_path / "out"
    changes = {"batches": (1, 2), "prompts": 4, "ks": (2,)}

    def until(stop: int) -> Callable[[int, int, str], None]:
        def progress(done: int, _total: int, what: str) -> None:
            if what == "timing" and done == stop:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        judge(built, out, progress=until(2 * 4 * 4 + 3), **changes)  # two blocks of four arms, and part of a third
    assert not (out / RESULTS).exists()
    files = {path: path.read_bytes() for path in out.glob(f"{FOLDER}/*/*.json")}
    assert sorted(path.name.split("-")[0] for path in files) == ["choose", "choose", "parity.json", "run.json"]
    blocks = [json.loads(text) for path, text in files.items() if path.name.startswith(CHOOSE)]

    said: list[tuple[int, str]] = []
    results = judge(built, out, progress=lambda done, _total, what: said.append((done, what)), **changes)
    assert not any("parity" in what for _, what in said)
    assert [done for done, what in said if what == "timing"][:4] == [0, 16, 32, 33]  # two blocks, then one by one
    assert not (out / FOLDER).exists()
    assert "Blocks (a suite at a temperature and a batch) kept of an interrupted run: 2." in results["notes"]
    rows = {(row["temperature"], row["batch"], row["artifact"], row["drafter"]): row for row in results["rows"][:16]}
    for block in blocks:
        for cell in block["cells"]:
            timed = [one for repeat in cell["runs"] for one in repeat]
            seconds = sum(one["total_s"] for one in timed)
            tokens = sum(len(text["tokens"]) for one in timed for text in one["generations"])
            arm = cell["arm"]
            row = rows[cell["temperature"], cell["batch"], arm["artifact"], arm["drafter"]]
            assert row["tokens_per_s"] == pytest.approx(tokens / seconds, rel=1e-12)


@llama
@pytest.mark.slow
def test_after_ctrl_c_the_same_command_goes_on(built: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = tmp_path / "plan.yaml"
    temperatures = ", ".join(f"{0.1 * step:.1f}" for step in range(8))
    plan.write_text(
        f"suites: [stories]\nprompts: 4\nconfirm_prompts: 2\nmax_new_tokens: 16\nks: [2]\n"
        f"temperatures: [{temperatures}]\nrepeats: 1\nconfirm_repeats: 1\n"
        "parity_prompts: 2\nparity_new_tokens: 8\nthreads: 1\n"
    )
    command = [sys.executable, "-m", "factory.cli", "eval", str(built.folder), "--plan", str(plan), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have had it ignored
    )
    deadline = time.monotonic() + 120
    while not list(out.glob(f"{FOLDER}/*/choose-*.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    asked = shlex.join([*command[3:], "--quiet"])
    assert errors.endswith(f"\ninterrupted: what is finished is kept; to go on from there: python -m factory {asked}\n")
    blocks = [path.name for path in out.glob(f"{FOLDER}/*/choose-*.json")]
    assert 0 < len(blocks) < 8 and not (out / RESULTS).exists()

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{out}: goes on where an evaluation was interrupted\n" in again.stderr
    assert "parity" not in again.stderr
    results = json.loads((out / RESULTS).read_text())
    assert (
        f"Blocks (a suite at a temperature and a batch) kept of an interrupted run: {len(blocks)}." in results["notes"]
    )
    assert len([row for row in results["rows"] if row["prompt_set"] == CHOOSE]) == 8 * 4
    assert not (out / FOLDER).exists()
