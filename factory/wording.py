"""Numbers as a terminal says them, each with its unit; devices by name; texts that can be shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def count(parameters: float) -> str:
    """6738415616 -> 6.74 B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.2f} {name}"
    return f"{parameters:.0f}"


def size(of_bytes: float | None) -> str:
    """13476831232 -> 13.5 GB."""
    if of_bytes is None:
        return "unknown"
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if of_bytes >= unit:
            return f"{of_bytes / unit:.1f} {name}"
    return f"{of_bytes:.0f} B"


def seconds(of_seconds: float) -> str:
    """0.0032 -> 3.2 ms; 5400 -> 1.5 h."""
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if of_seconds >= unit:
            return f"{of_seconds / unit:.1f} {name}"
    return f"{1000 * of_seconds:.2f} ms"


def hardware_words(hardware: Mapping[str, Any]) -> str:
    """What decides the speed, of a record's `hardware`: the GPU, or the CPU with its threads."""
    threads = hardware.get("threads")
    return str(hardware.get("gpu") or f"{hardware.get('cpu')}, {threads} thread{'' if threads == 1 else 's'}")


def visible(text: str) -> str:
    """A text in one line as it is to be seen: what cannot be printed, or would turn or break the line, is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "replace").decode() for letter in text
    )
