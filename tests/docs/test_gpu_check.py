"""docs/benchmarks/gpu_check.py: a part that fails, hangs or dies costs no other; the time that is left; the table."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"

# What a part's process does, by the part's name.
KEEP = "import json, sys; json.dump({kept}, open(sys.argv[1], 'w'))"
ROW = {"what": "a row", "model": "m", "goal": None, "value": 1.0, "low": None, "high": None, "detail": {}}
KEPT: dict[str, Any] = {
    "part": "good",
    "size": "full",
    "status": "measured",
    "reason": None,
    "rows": [{**ROW, "seconds": 1.0, "met": None, "enlarged": None}],
    "left_out": [],
    "facts": {},
    "seconds": 1.0,
}
DOES = {
    "good": KEEP.format(kept=repr(KEPT)),
    "says nothing": "pass",
    "fails": "raise SystemExit('no such kernel')",
    "dies": KEEP.format(kept=repr({**KEPT, "part": "dies", "status": "running"}))
    + "\nimport os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
    "hangs": textwrap.dedent("""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
        open(sys.argv[1] + '.child', 'w').write(str(child.pid))
        time.sleep(600)
    """),
}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`module(name)` imports a part of the script."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def run(
    check: ModuleType, parts: Sequence[Any], folder: Path, budget_s: float = 60.0
) -> tuple[dict[str, Any], list[str]]:
    told: list[str] = []

    def command_of(part: Any, _seconds: float) -> list[str]:
        return [sys.executable, "-c", DOES[part.name], str(check.file_of(part.name, folder))]

    found = check.run(parts, command_of, folder, folder, budget_s, told.append)
    return {outcome.name: outcome for outcome in found}, told


def is_alive(process: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_a_part_that_fails_hangs_or_dies_costs_no_other(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = module("gpu_check")
    monkeypatch.setattr(check, "LEAST_S", 0.1)
    limits = {"fails": 20.0, "dies": 20.0, "hangs": 2.0, "says nothing": 20.0, "good": 20.0}
    found, told = run(check, [check.Part(name, limit) for name, limit in limits.items()], tmp_path)

    assert {name: outcome.status for name, outcome in found.items()} == {
        **dict.fromkeys(("fails", "dies", "hangs", "says nothing"), "failed"),
        "good": "measured",
    }
    assert found["fails"].reason == "exit code 1: no such kernel"
    assert found["dies"].reason == "ended by SIGSEGV; 1 rows were measured before"
    assert found["hangs"].reason == "took longer than 2 s"
    assert found["says nothing"].reason.startswith("exit code 0")
    assert [line for line in told if not line.startswith("--")] == [outcome.words for outcome in found.values()]

    kept = {name: json.loads(check.file_of(name, tmp_path).read_text()) for name in limits}
    assert all(
        kept[name]["status"] == "failed" and kept[name]["reason"] == found[name].reason
        for name in limits
        if name != "good"
    )
    assert kept["dies"]["rows"] == KEPT["rows"] and kept["good"] == KEPT
    assert kept["fails"]["log"] == ["no such kernel"]
    child = int(Path(f"{check.file_of('hangs', tmp_path)}.child").read_text())
    assert not is_alive(child)  # what it had started ended with it


def test_what_no_time_is_left_for_is_skipped_by_name(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = module("gpu_check")
    monkeypatch.setattr(check, "LEAST_S", 0.5)
    found, _ = run(check, [check.Part("hangs", 60.0), check.Part("good", 60.0)], tmp_path, budget_s=2.0)
    assert found["hangs"].status == "failed"  # its own limit was longer than all the time there was
    assert found["good"].status == "skipped" and found["good"].reason == "no time left of 2 s"
    assert not check.file_of("good", tmp_path).exists()


def test_a_part_beside_the_next_does_not_keep_it_waiting(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = module("gpu_check")
    monkeypatch.setattr(check, "LEAST_S", 0.1)
    seen = tmp_path / "seen"
    monkeypatch.setitem(
        DOES, "first", f"import time\nfrom pathlib import Path\nwhile not Path({str(seen)!r}).exists(): time.sleep(.05)"
    )
    monkeypatch.setitem(DOES, "second", f"open({str(seen)!r}, 'w')")
    found, _ = run(check, [check.Part("first", 30.0, beside=True), check.Part("second", 30.0)], tmp_path)
    assert list(found) == ["second", "first"]
    assert found["first"].reason.startswith("exit code 0")  # it ended because the second one had begun
    alone, _ = run(check, [check.Part("first", 30.0, beside=True)], tmp_path)
    assert list(alone) == ["first"]


def test_an_interrupted_part_is_ended_and_keeps_its_rows(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = module("gpu_check")
    monkeypatch.setitem(DOES, "through", KEEP.format(kept=repr({**KEPT, "part": "through"})))
    running = {**KEPT, "part": "begun", "status": "running"}
    script = KEEP.format(kept=repr(running)) + "\nimport os, signal, time\nos.kill(os.getppid(), signal.SIGUSR1)"
    monkeypatch.setitem(DOES, "begun", script + "\ntime.sleep(600)")
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)  # SIGINT is ignored where a shell has it so
    try:
        with pytest.raises(KeyboardInterrupt):
            run(check, [check.Part("through", 30.0, beside=True), check.Part("begun", 30.0)], tmp_path)
    finally:
        signal.signal(signal.SIGUSR1, before)
    kept = json.loads(check.file_of("begun", tmp_path).read_text())
    assert (kept["status"], kept["rows"]) == ("failed", KEPT["rows"])
    assert kept["reason"] == "interrupted; 1 rows were measured before"


def test_only_files_that_mark_a_test_are_imported(module: Any, tmp_path: Path) -> None:
    for name, text in {
        "a/test_marked.py": "@pytest.mark.gpu\ndef test_it(): ...",
        "a/test_other.py": "import nothing_that_is_installed",
        "b/conftest.py": "marks=pytest.mark.gpu",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert module("gpu_tests").marked(tmp_path) == [str(tmp_path / "a/test_marked.py"), str(tmp_path / "b")]


def test_the_table_says_what_waits_and_labels_what_is_enlarged(module: Any, tmp_path: Path) -> None:
    table = module("gpu_table")
    goals = len(table.GOALS)
    assert table.table(tmp_path).count(table.WAITS) == goals

    row = {
        **ROW,
        "what": "speedup, int4 drafter, k = 4, greedy",
        "model": "shipped target, enlarged",
        "goal": {"relation": ">=", "value": 2.4},
        "value": 2.5,
        "low": 2.41,
        "high": 2.6,
        "detail": {"alpha": 0.7},
        "seconds": 3.0,
        "met": "met",
        "enlarged": "enlarged from 20 layers x 256",
    }
    hardware = {"gpu": "a GPU", "cpu": "a CPU"}
    kept = {
        **KEPT,
        "part": "enlarged",
        "rows": [row],
        "hardware": hardware,
        "dtype": "bfloat16",
        "peak_memory_bytes": 2**30,
    }
    (tmp_path / "cuda-enlarged.json").write_text(json.dumps(kept))
    failed = {**KEPT, "part": "gpt-fast", "rows": [], "status": "failed", "reason": "ended by SIGKILL", "seconds": 9.0}
    (tmp_path / "cuda-gpt-fast.json").write_text(json.dumps(failed))
    (tmp_path / "cuda-kernels.json").write_text(json.dumps({"schema": 1}))  # another script's

    shown = table.table(tmp_path)
    assert shown.count(table.WAITS) == goals - 1
    assert "| 2.50 (2.41 to 2.60) | met | **enlarged**: enlarged from 20 layers x 256; alpha 0.7 |" in shown
    assert f"{table.WAITS}; last run: failed, ended by SIGKILL" in shown
    assert "`enlarged` on a GPU, bfloat16, 1 s; measured. At most 1.0 GiB were held." in shown
    assert "Small size" not in shown
    (tmp_path / "cuda-gpt-fast.json").write_text(json.dumps({**failed, "size": "small"}))
    assert "Small size: the figures show that everything runs, and nothing else" in table.table(tmp_path)


def test_tests_are_told_by_name(module: Any, tmp_path: Path) -> None:
    tests = module("gpu_tests")
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_right(): pass\ndef test_wrong(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='no card')\ndef test_later(): pass\n"
    )
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "test_it.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=60)
    counts, told = tests.outcomes(report)
    assert counts == {"passed": 1, "failed": 1, "skipped": 1}
    assert [(one["what"], one["status"]) for one in told] == [
        ("test_it::test_wrong", "failed"),
        ("test_it::test_later", "skipped"),
    ]
    assert "assert 1 == 2" in told[0]["reason"] and told[1]["reason"] == "no card"


def test_tests_that_take_too_long_leave_what_was_done(module: Any, tmp_path: Path, monkeypatch: Any) -> None:
    tests = module("gpu_tests")
    monkeypatch.setattr(tests, "ROOT", tmp_path)
    (tmp_path / "test_it.py").write_text("import time\ndef test_right(): pass\ndef test_long(): time.sleep(100)\n")
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "test_it.py"]
    assert tests.finished(command, 8.0) is None
    assert tests.outcomes(report, cut=True) == ({"passed": 1, "failed": 0, "skipped": 0}, [])


def test_one_measurement_that_fails_costs_no_other(module: Any, tmp_path: Path) -> None:
    pairs = module("gpu_pairs")
    bench = pairs.Bench("small", "cpu", 60.0, tmp_path)

    def fails() -> Any:
        yield {"what": "half"}
        raise RuntimeError("CUDA error: an illegal address\nand more")

    def cannot() -> Any:
        raise module("decoder_pairs").SkippedError("no drafter")

    items = [
        ("bad", 0, fails),
        ("none", 0, cannot),
        ("long", 1e6, fails),
        ("good", 0, lambda: iter([{"what": "whole"}])),
    ]
    assert [row["what"] for row in pairs.in_order(bench, items)] == ["half", "whole"]
    assert [(one["what"], one["status"]) for one in bench.left_out] == [
        ("bad", "failed"),
        ("none", "skipped"),
        ("long", "skipped"),
    ]
    assert bench.left_out[0]["reason"] == "RuntimeError: CUDA error: an illegal address"


def test_acceptance_is_arranged_by_halves_and_the_drafter_stays_as_it_is(module: Any, tmp_path: Path) -> None:
    pairs, decoder_pairs = module("gpu_pairs"), module("decoder_pairs")
    settings = pairs.SMALL
    before = decoder_pairs.random_llama(settings, "float32")
    pair = pairs.seven(pairs.Bench("small", "cpu", 60.0, tmp_path))
    drafter = pair.drafters[pair.drafter()]
    assert pairs.agreement(pair.target, drafter) >= pairs.AGREEING > pairs.agreement(before, drafter)
    one, other = (model.model.layers[-1].mlp.down_proj.weight for model in (before, pair.target))
    halvings = torch.log2((one / other).abs())
    assert torch.equal(halvings, halvings.round()) and halvings.min() == halvings.max() >= 1
    assert torch.equal(drafter.model.layers[0].mlp.down_proj.weight, before.model.layers[0].mlp.down_proj.weight)
    assert {len(prompt.ids) for prompt in pair.prompts} == {pairs.PROMPT}


def test_modelled_rounds_are_guesses_and_a_verification_each(module: Any) -> None:
    rounds = module("gpu_rounds")
    generation = module("factory.decoding.batch").Generation
    written = generation([1], proposed=[4, 2, 0])
    # 6 draft steps; verifications of 5, 3 and 1 tokens, the middle one half way
    assert rounds._rounds_s(written, 4, draft_s=1.0, step_s=10.0, verify_s=14.0) == 6 + 14 + 12 + 10


def test_text_for_calibration_has_its_answers_marked(module: Any) -> None:
    generation = module("factory.decoding.batch").Generation
    text = module("gpu_text").blocks([generation([5, 6], [7, 8, 9]), generation([5], [7])])
    assert text.ids.tolist() == [[5, 6, 7, 8, 9], [5, 7, 0, 0, 0]] and text.length.tolist() == [5, 2]
    assert text.answer.tolist() == [[False, False, True, True, True], [False, True, False, False, False]]


def test_what_cannot_be_done_is_said_before_anything_begins(module: Any, tmp_path: Path) -> None:
    check = module("gpu_check")
    for wrong in (
        ["--drafter", "nowhere"],
        ["--gpt-fast", str(tmp_path)],
        ["--only", "everything"],
        ["--budget", "0"],
        ["--budget", "nan"],
        ["--to", __file__],
        ["--table", str(tmp_path / "none")],
    ):
        with pytest.raises(SystemExit) as ended:
            check.arguments_of(wrong)
        assert ended.value.code == 2
    assert check.missing({**os.environ, "PYTHONPATH": ""}) == []
    assert check.install(tmp_path / "none", tmp_path / "site") is None  # no wheels, nothing to install
