"""The tests that need a GPU, run as pytest runs them; what each one said goes into the JSON."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from decoder_pairs import SkippedError
from decoder_passes import Row
from gpu_pairs import ROOT, Bench

NO_TESTS = 5  # pytest's exit code where none was collected
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors")
MARK = "pytest.mark.gpu"
MARKED = ("gpu and not slow", "gpu and slow")  # whole builds come last
REPORTS_S = 8.0  # in which pytest, interrupted, ends its test and writes its report
LEAST_S = 30.0  # with less left nothing more begins


def tests(bench: Bench) -> Iterator[Row]:
    """No rows: counts, and every test that failed or was skipped, by name; without a GPU all are skipped.

    Raises SkippedError without a GPU, without pytest, or without such tests.
    """
    if find_spec("pytest") is None:
        raise SkippedError("pytest is not installed")
    if not bench.cuda:
        names = collected()
        bench.facts["tests"] = {"passed": 0, "failed": 0, "skipped": len(names)}
        bench.left_out += [{"what": name, "status": "skipped", "reason": "needs a CUDA device"} for name in names]
        raise SkippedError(f"{len(names)} tests need a CUDA device")
    counts: dict[str, int] = {"passed": 0, "failed": 0, "skipped": 0}
    ran = False
    files = marked()
    for kind in MARKED:
        if bench.left_s < LEAST_S:
            bench.left_out.append({"what": f"tests: {kind}", "status": "skipped", "reason": "no time was left"})
            continue
        report = bench.work / "tests.xml"
        report.unlink(missing_ok=True)
        status = finished([*PYTEST, "-m", kind, "-v", f"--junitxml={report}", *files], bench.left_s - REPORTS_S)
        if status == NO_TESTS:
            continue
        ran = True
        if report.is_file():
            found, told = outcomes(report, cut=status is None)
            counts = {name: count + found[name] for name, count in counts.items()}
            bench.facts["tests"] = counts
            bench.left_out += told
        if status is None:
            bench.left_out.append({"what": f"tests: {kind}", "status": "skipped", "reason": "time ran out on them"})
        elif status not in (0, 1):
            bench.left_out.append({"what": "pytest", "status": "failed", "reason": f"exit code {status}"})
    if not ran:
        raise SkippedError("no test is marked gpu")
    yield from ()


def marked(folder: Path = ROOT / "tests") -> list[str]:
    """The test files that mark something, and the folders whose conftest.py does.

    No other is imported: that takes time, and needs packages that such a machine may lack.
    """
    found = [path for path in sorted(folder.rglob("*.py")) if MARK in path.read_text(encoding="utf-8")]
    return [str(path.parent if path.name == "conftest.py" else path) for path in found]


def finished(command: Sequence[str], limit_s: float) -> int | None:
    """The exit code of pytest; None where its time ran out: it was interrupted, and has told of what it had done."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(REPORTS_S)
        return None
    finally:  # with all that its tests started, which would take time from what is measured next
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def collected() -> list[str]:
    """The names of all tests that need a GPU. Raises SkippedError where there are none or they cannot be read."""
    command = [*PYTEST, "-m", "gpu", "--collect-only", *marked()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = [line.strip() for line in done.stdout.splitlines() if "::" in line]
    if done.returncode != 0 or not names:
        raise SkippedError(f"pytest collected no test that is marked gpu (exit code {done.returncode})")
    return names


def outcomes(report: Path, cut: bool = False) -> tuple[dict[str, int], list[dict[str, str]]]:
    """How many passed, failed and were skipped; and the latter by name with their reasons.

    `cut`: the run was interrupted, so the last test that is in the report did not end.
    """
    counts: dict[str, int] = {"passed": 0, "failed": 0, "skipped": 0}
    told: list[dict[str, str]] = []
    cases = list(ElementTree.parse(report).iter("testcase"))
    for case in cases[: len(cases) - cut]:
        found: Any = next(
            (case.find(kind) for kind in ("failure", "error", "skipped") if case.find(kind) is not None), None
        )
        status = "passed" if found is None else "skipped" if found.tag == "skipped" else "failed"
        counts[status] += 1
        if found is not None:
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            reason = (found.get("message") or "").strip().splitlines() or [""]
            told.append({"what": name, "status": status, "reason": reason[0][:300]})
    return counts, told
