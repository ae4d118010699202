"""Where and with what something was made: hardware, package versions, git revision, checksums."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

_AT_ONCE = 4 << 20  # bytes: a part of a second's work
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def sha256_file(path: Path, more: Callable[[int], None] | None = None) -> str:
    """Hex sha256 of a file's bytes. `more` is told how many were read since it was told before."""
    found, part = hashlib.sha256(), bytearray(_AT_ONCE)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(part):
            found.update(memoryview(part)[:count])
            if more is not None:
                more(count)
    return found.hexdigest()


def sha256_text(text: str) -> str:
    """Hex sha256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the interpreter, of this package and of those that decide results."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, "drafter-factory"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_sha() -> str | None:
    """The revision of the checkout this package runs from, or None outside one."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(device: str) -> dict[str, Any]:
    """What the work runs on, as far as it decides speed."""
    import torch

    facts: dict[str, Any] = {
        "device": device,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
