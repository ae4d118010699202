"""What the tests that kill builds share."""

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest


@pytest.fixture
def changes() -> Callable[[Path, set[tuple[str, int]]], int]:
    """`changes(folder, seen)`: how many things were written, renamed or made anew since `seen` was empty.

    It looks while others write: whatever is renamed or removed meanwhile is passed over, folders too (which
    `Path.rglob` of Python 3.11 and 3.12 does not bear).
    """

    def count(folder: Path, seen: set[tuple[str, int]]) -> int:
        for root, folders, files in os.walk(folder):
            for entry in (Path(root, name) for name in (*folders, *files)):
                with suppress(OSError):
                    seen.add((str(entry), entry.stat().st_mtime_ns))
        return len(seen)

    return count


@pytest.fixture
def processes_of() -> Callable[[subprocess.Popen[str]], dict[str, int]]:
    """`processes_of(launcher)`: the ids of the processes that it started, by rank. Each is a child of the launcher."""

    def by_rank(launcher: subprocess.Popen[str]) -> dict[str, int]:
        found = {}
        for one in Path("/proc").glob("[0-9]*"):
            try:
                parent = (one / "stat").read_text().rsplit(")", 1)[1].split()[1]
                told = dict(entry.split("=", 1) for entry in (one / "environ").read_text().split("\0") if "=" in entry)
            except (OSError, ValueError):
                continue
            if parent == str(launcher.pid) and "RANK" in told:
                found[told["RANK"]] = int(one.name)
        return found

    return by_rank
