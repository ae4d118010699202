"""Files that survive a kill: atomic writes, and one build at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from factory.errors import FactoryError


def write_atomically(path: Path, text: str) -> None:
    """The whole text or nothing: a killed process leaves the old file."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock file. Raises FactoryError where another process holds it.

    The kernel drops the lock with the process, however it ends: no stale lock is possible.
    """
    path = folder / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise FactoryError(
                f"{folder}: another build (process {holder}) is at work here; wait for it, or give another --out"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
