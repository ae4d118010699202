"""What the tests that kill builds share."""

import os
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
