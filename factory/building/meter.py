"""What a step took: seconds, and the most memory it held. For the record; nothing is decided by it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def metered(device: str) -> Iterator[dict[str, Any]]:
    """Fills the yielded facts when the body ends: `seconds`, `peak_memory_bytes`, and what `was_held_bytes` before.

    On CUDA memory is what torch holds on the device, on a CPU the whole process's, libraries included
    (Linux only; None elsewhere).
    """
    facts: dict[str, Any] = {}
    _reset_peak(device)
    facts["was_held_bytes"] = _memory_bytes(device, peak=False)
    begun_s = time.monotonic()
    yield facts
    facts["seconds"] = round(time.monotonic() - begun_s, 3)
    facts["peak_memory_bytes"] = _memory_bytes(device, peak=True)


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # else torch has nothing to reset, and says so
            torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        _RESET.write_text("5")  # sets the high-water mark to what is held now (man 5 proc)


def _memory_bytes(device: str, *, peak: bool) -> int | None:
    if device.startswith("cuda"):
        import torch

        held = torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
        return int(held)
    key = "VmHWM:" if peak else "VmRSS:"
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024
