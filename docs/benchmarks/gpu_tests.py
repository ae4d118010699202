"""The tests that need a GPU, run as pytest runs them; what each one said goes into the JSON."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from decoder_pairs import SkippedError
from decoder_passes import Row
from gpu_pairs import ROOT, Bench

NO_TESTS = 5  # pytest's exit code where none was collected
PYTEST = (sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider")
MARK = "pytest.mark.gpu"


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
    report = bench.work / "tests.xml"
    report.unlink(missing_ok=True)
    status = subprocess.run([*PYTEST, *marked(), "-v", f"--junitxml={report}"], cwd=ROOT, check=False).returncode
    if status == NO_TESTS:
        raise SkippedError("no test is marked gpu")
    counts, told = outcomes(report)
    bench.facts["tests"] = counts
    bench.left_out += told
    if status not in (0, 1):
        bench.left_out.append({"what": "pytest", "status": "failed", "reason": f"exit code {status}"})
    yield from ()


def marked(folder: Path = ROOT / "tests") -> list[str]:
    """The test files that mark something, and the folders whose conftest.py does.

    No other is imported: that takes time, and needs packages that such a machine may lack.
    """
    found = [path for path in sorted(folder.rglob("*.py")) if MARK in path.read_text(encoding="utf-8")]
    return [str(path.parent if path.name == "conftest.py" else path) for path in found]


def collected() -> list[str]:
    """The names of all tests that need a GPU. Raises SkippedError where there are none or they cannot be read."""
    done = subprocess.run([*PYTEST, *marked(), "--collect-only"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [line.strip() for line in done.stdout.splitlines() if "::" in line]
    if done.returncode != 0 or not names:
        raise SkippedError(f"pytest collected no test that is marked gpu (exit code {done.returncode})")
    return names


def outcomes(report: Path) -> tuple[dict[str, int], list[dict[str, str]]]:
    """How many passed, failed and were skipped; and the latter by name with their reasons."""
    counts: dict[str, int] = {"passed": 0, "failed": 0, "skipped": 0}
    told: list[dict[str, str]] = []
    for case in ElementTree.parse(report).iter("testcase"):
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
