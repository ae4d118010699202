"""Files that survive a kill: atomic writes, and one build at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from factory.errors import FactoryError
from factory.processes import is_alive

SHARD_BYTES = 512 << 20  # a file of weights that is written here is at most this large, or one tensor

LOCK_FILE = ".lock"
_LAST_BREATH_S = 5.0  # how long the workers of a killed build may take to end


def write_atomically(path: Path, content: str | bytes) -> None:
    """The whole content or nothing: a killed process leaves the old file, and so does a full disk."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def readable(path: Path) -> None:
    """Give a file the mode that any new file has here; libraries that write through a temporary one make it private."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder's lock file; yields its descriptor. Raises FactoryError where another process holds it.

    The kernel drops the lock with the last process that has the descriptor, however it ends: no stale
    lock is possible. A build's workers have it too, so that none of them writes when the lock is free.
    """
    path = folder / LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    patience_ends_s = time.monotonic() + _LAST_BREATH_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            # Where the build itself is dead, its workers are about to be.
            if holder.isdecimal() and not is_alive(int(holder)) and time.monotonic() < patience_ends_s:
                time.sleep(0.02)
                continue
            raise FactoryError(
                f"{folder}: another build (process {holder}) is at work here; wait for it, or give another --out"
            ) from error
