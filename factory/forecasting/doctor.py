"""`factory doctor`: what this machine is, what it has, what it can reach; and its profile, measured."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from factory.files.disk import free_bytes
from factory.forecasting import profile as profiles
from factory.forecasting.gauge import measured
from factory.forecasting.profile import DeviceProfile
from factory.hub import hub_access
from factory.progress import Progress, silent, step
from factory.wording import hardware_words, size

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "datasets",
    "gptqmodel",
    "optimum",
    "torch-pruning",
    "numpy",
)


@dataclass(frozen=True)
class Examination:
    """What `factory doctor` found."""

    hardware: dict[str, Any]
    versions: dict[str, str]
    kernels: dict[str, str]  # what there is, or why not
    folder: Path
    free_disk_bytes: int | None  # None: the system does not say
    hub: str  # "reachable", or why not
    profile: DeviceProfile
    profile_file: Path | None  # where a fresh profile was written
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For the terminal."""
        facts, profile = self.hardware, self.profile
        device = hardware_words({**facts, "cpu": f"{facts['cpu']}, {facts['cores']} cores"})
        rates = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in profile.peak_flop_per_s.items())
        few = [
            f"{dtype} {', '.join(f'{rate / 1e9:,.0f} GFLOP/s at {rows}' for rows, rate in points)}"
            for dtype, points in profile.few_rows_flop_per_s.items()
        ]
        overhead = f"{1e3 * profile.layer_overhead_s:.3f} ms a layer, {1e3 * profile.step_overhead_s:.3f} ms a step"
        if profile.draft_overhead_s is not None:
            overhead += f", {1e3 * profile.draft_overhead_s:.3f} ms a draft step, {1e3 * profile.round_overhead_s:.3f}"
            overhead += " ms a round"
        cached = "".join(f", {rate / 1e9:,.1f} GB/s of {size(held)}" for held, rate in profile.cached_bytes_per_s)
        memory = f"{size(profile.available_bytes)} free of {size(profile.memory_bytes)}"
        lines = {
            "device": f"{device}; {facts['system']}, {facts['cpu_capability']}",
            "memory": memory,
            "disk": f"{size(self.free_disk_bytes)} free in {self.folder}",
            "hub": self.hub,
            **{f"kernel {name}": found for name, found in self.kernels.items()},
            "versions": ", ".join(f"{name} {version}" for name, version in self.versions.items()),
            "profile": profile.words,
            "  reading": f"{profile.bandwidth_bytes_per_s / 1e9:,.1f} GB/s{cached}",
            "  products": rates,
            "  few rows": "; ".join(few) or "taken for as fast as large products",
            "  host": overhead,
            "  kept in": str(self.profile_file) if self.profile_file else "nothing was measured",
        }
        width = max(map(len, lines))
        return [*(f"{key.ljust(width)}  {value}" for key, value in lines.items()), *self.notes]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "hardware": self.hardware,
            "versions": self.versions,
            "kernels": self.kernels,
            "free_disk_bytes": self.free_disk_bytes,
            "hub": self.hub,
            "profile": self.profile.record(),
            "profile_file": str(self.profile_file) if self.profile_file else None,
            "notes": list(self.notes),
        }


def examine(measure: bool = True, folder: Path = Path(), progress: Progress = silent) -> Examination:
    """Look at this machine; `measure` also measures the profile and keeps it. `folder`: whose disk is meant.

    Raises FactoryError only where the profile cannot be kept.
    """
    with step(progress, "looking at this machine"):
        from factory import provenance
        from factory.models.loading import resolve_device

        hub = hub_access()
    device = resolve_device("auto")
    hardware = provenance.hardware(device)
    kind: profiles.Kind = "cuda" if device.startswith("cuda") else "cpu"
    profile, kept, notes = profiles.load(kind), None, []
    if measure:
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > cores / 2:
            notes.append(f"the machine is busy (load {load:.1f} on {cores} cores): measure again when it is quiet")
        profile = measured(device, str(hardware.get("gpu") or hardware["cpu"]), progress)
        kept = profiles.store(profile)
    return Examination(
        hardware=hardware,
        versions={"python": provenance.versions()["python"], **{name: _version(name) for name in PACKAGES}},
        kernels=kernels(),
        folder=folder.resolve(),
        free_disk_bytes=free_bytes(folder),
        hub=hub,
        profile=profile,
        profile_file=kept,
        notes=tuple(notes),
    )


def kernels() -> dict[str, str]:
    """What speeds a model up or reads a quantised one, each "yes" with its version or "no" with the reason."""
    import torch

    cuda = torch.cuda.is_available()
    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    quantised = "yes" if importlib.util.find_spec("gptqmodel") else "no: pip install 'drafter-factory[gptq]'"
    if quantised == "yes" and not cuda:
        quantised = "yes, without CUDA: 4-bit layers are read as they are stored, other widths only save size"
    onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return {
        "CUDA": f"yes, {torch.version.cuda}" if cuda else "no: torch finds no CUDA device",
        "triton": "yes" if importlib.util.find_spec("triton") else "no: not installed (it comes with torch for CUDA)",
        "gptqmodel": quantised,
        "oneDNN": "yes" if onednn else "no: this torch was built without it",
        "C++ compiler": f"yes, {compiler}" if compiler else "no: torch.compile needs one; install g++",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
