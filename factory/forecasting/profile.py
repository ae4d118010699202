"""What a device can do, in the few figures that a forecast needs: measured by `factory doctor`, or built in.

No torch here: `factory check` forecasts without it. A measured profile lies in the user's cache folder;
without one a built-in is taken, and every forecast says which one, where its figures are from, and
whether they were measured on this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from factory.errors import FactoryError
from factory.files.atomic import write_atomically
from factory.files.documents import did_you_mean

Kind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class DeviceProfile:
    """A device's memory, its two roofs, and what the engine adds on the host. Figures by dtype name."""

    name: str
    kind: Kind
    measured: bool  # on this machine, by `factory doctor`
    source: str  # where the figures are from, in words
    memory_bytes: int | None  # in all; None: not known
    available_bytes: int | None  # free when it was asked
    bandwidth_bytes_per_s: float  # reading weights for one token, more than any cache holds
    peak_flop_per_s: dict[str, float]  # large matrix products: training, prefill
    # (rows, FLOP/s) of products of a few rows, which is what verification is: CPUs reach a small share of their peak.
    few_rows_flop_per_s: dict[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    # (bytes, bytes/s) of smaller models, whose weights a processor's cache keeps from step to step; ascending
    cached_bytes_per_s: tuple[tuple[int, float], ...] = ()
    layer_overhead_s: float = 0.0  # host time of one layer in one step
    step_overhead_s: float = 0.0  # host time of one step besides its layers, sampling among it
    verify_layer_overhead_s: float | None = None  # of one layer where a pass reads several tokens; None: the same
    draft_overhead_s: float | None = None  # the same of a draft step; None: as step_overhead_s
    round_overhead_s: float = 0.0  # what a round of speculation adds to its draft steps and its verification
    threads: int | None = None

    @property
    def words(self) -> str:
        """One line for a report."""
        return f"{self.name} ({'measured here' if self.measured else 'not measured here'}: {self.source})"

    def peak(self, dtype: str, tokens: int | None = None) -> float:
        """FLOP/s of matrix products in `dtype`; with `tokens`, of products of that many rows.

        float16 counts as bfloat16, and float64 as half of float32. One row is bound by reading alone.
        """
        name = {"float16": "bfloat16", "float64": "float32"}.get(dtype, dtype)
        share = 0.5 if dtype == "float64" else 1.0
        points = self.few_rows_flop_per_s.get(name, ())
        if tokens is None or tokens == 1 or tokens > FEW_ROWS or not points:  # one row is as fast as it is read
            return share * self.peak_flop_per_s[name]
        return share * _rate_at(tokens, points)

    def bandwidth(self, streamed_bytes: float) -> float:
        """Bytes/s at which so many bytes of weights are read again and again: on a line between measured sizes."""
        points = (*self.cached_bytes_per_s, (STREAMED_BYTES, self.bandwidth_bytes_per_s))
        if streamed_bytes <= points[0][0]:
            return points[0][1]
        for (fewer, faster), (more, slower) in pairwise(points):
            if streamed_bytes <= more:
                share = (streamed_bytes - fewer) / (more - fewer)
                return streamed_bytes / ((1 - share) * fewer / faster + share * more / slower)
        return self.bandwidth_bytes_per_s

    def default_dtype(self, asked: str = "auto") -> str:
        """What `target.dtype: auto` becomes on this device, as models.resolve_dtype has it."""
        if asked != "auto":
            return asked
        return "float32" if self.kind == "cpu" else "bfloat16"

    def record(self) -> dict[str, Any]:
        """As JSON."""
        few = {dtype: [list(point) for point in points] for dtype, points in self.few_rows_flop_per_s.items()}
        cached = [list(point) for point in self.cached_bytes_per_s]
        return {**asdict(self), "few_rows_flop_per_s": few, "cached_bytes_per_s": cached}


STREAMED_BYTES = 512 << 20  # what the bandwidth of memory is measured on
FEW_ROWS = 32  # up to so many rows a matrix product is taken for one of few rows
_OVERHEAD_S = 0.7e-3  # transformers' modules, a layer and step, on an AMD EPYC: the lean reader adds less

BUILT_IN: dict[str, DeviceProfile] = {
    "cpu": DeviceProfile(
        name="CPU as built in",
        kind="cpu",
        measured=False,
        source="AMD EPYC with AVX2, 2 threads, float32",
        memory_bytes=None,
        available_bytes=None,
        bandwidth_bytes_per_s=25e9,
        peak_flop_per_s={"float32": 136e9, "bfloat16": 136e9},
        # 5 and 8 rows through the 110 M weights of a 12-layer Llama took 29.6 and 34.8 ms there, packed.
        few_rows_flop_per_s={"float32": ((5, 37.1e9), (8, 50.4e9))},
        layer_overhead_s=_OVERHEAD_S,
        threads=2,
    ),
    "h200": DeviceProfile(
        name="NVIDIA H200 as built in",
        kind="cuda",
        measured=False,
        source="4.3 TB/s and 790 TFLOP/s bfloat16 measured on one; float32 from its data sheet; host as on an AMD EPYC",
        memory_bytes=139 << 30,
        available_bytes=None,
        bandwidth_bytes_per_s=4.3e12,
        peak_flop_per_s={"float32": 67e12, "bfloat16": 790e12},
        layer_overhead_s=_OVERHEAD_S,
    ),
    "a100": DeviceProfile(
        name="NVIDIA A100 80 GB as built in",
        kind="cuda",
        measured=False,
        source="upper bounds of the 80 GB SXM card's data sheet; host as on an AMD EPYC",
        memory_bytes=80 << 30,
        available_bytes=None,
        bandwidth_bytes_per_s=2.039e12,
        peak_flop_per_s={"float32": 19.5e12, "bfloat16": 312e12},
        layer_overhead_s=_OVERHEAD_S,
    ),
}


def _rate_at(rows: int, points: tuple[tuple[int, float], ...]) -> float:
    """FLOP/s at so many rows: the time of a product is taken to be a line between measured points, a rate beyond."""
    for (fewer, slower), (more, faster) in pairwise(points):
        if fewer <= rows <= more:
            share = (rows - fewer) / (more - fewer)
            return rows / ((1 - share) * fewer / slower + share * more / faster)
    return points[0][1] if rows < points[0][0] else points[-1][1]


def named(device: str) -> DeviceProfile:
    """The profile that `--device` means: `here`, or a built-in. Raises FactoryError with those known.

    `cpu` is this machine's measured CPU where there is one, since nothing built in is nearer to it.
    """
    if device == "here":
        return load()
    if device == "cpu":
        return load("cpu")
    if device.lower() not in BUILT_IN:
        known = ["here", *BUILT_IN]
        others = f"; known: {', '.join(known)}; `factory doctor` measures this machine's own"
        raise FactoryError(f"--device {device}: no such profile{did_you_mean(device, known) or others}")
    return BUILT_IN[device.lower()]


def load(kind: Kind | None = None) -> DeviceProfile:
    """This machine's profile: the measured one, else the nearest built-in with this machine's memory.

    `kind` None: CUDA where the driver shows a GPU, as a build would choose. Raises nothing: a damaged
    file is a profile not measured.
    """
    gpu = _gpu() if kind in (None, "cuda") else None
    kind = kind or ("cuda" if gpu else "cpu")
    measured = _stored(kind)
    if kind == "cpu":
        total, available = machine_memory()
        return replace(measured or BUILT_IN["cpu"], memory_bytes=total, available_bytes=available)
    if gpu is None:
        return measured or BUILT_IN["h200"]
    name, total, free = gpu
    if measured is not None and measured.name == name:
        return replace(measured, memory_bytes=total, available_bytes=free)
    near = next((BUILT_IN[key] for key in BUILT_IN if key.upper() in name.upper()), BUILT_IN["a100"])
    return replace(near, name=f"{name}, taken for {near.name}", memory_bytes=total, available_bytes=free)


def store(profile: DeviceProfile) -> Path:
    """Keep a measured profile for the forecasts to come; returns the file. Raises FactoryError."""
    path = profile_file(profile.kind)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(profile.record(), indent=1) + "\n")
    except OSError as error:
        raise FactoryError(f"{path}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to a folder") from error
    return path


def profile_file(kind: Kind) -> Path:
    """Where a measured profile lies."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "drafter-factory" / f"profile-{kind}.json"


def _stored(kind: Kind) -> DeviceProfile | None:
    try:
        facts = json.loads(profile_file(kind).read_text(encoding="utf-8"))
        few = {dtype: tuple((int(n), float(r)) for n, r in at) for dtype, at in facts["few_rows_flop_per_s"].items()}
        facts["few_rows_flop_per_s"] = few
        facts["cached_bytes_per_s"] = tuple((int(n), float(rate)) for n, rate in facts["cached_bytes_per_s"])
        profile = DeviceProfile(**{known.name: facts[known.name] for known in fields(DeviceProfile)})
        rates = [profile.bandwidth_bytes_per_s, *profile.peak_flop_per_s.values()]
        rates += [rate for points in (*few.values(), profile.cached_bytes_per_s) for _, rate in points]
        sound = profile.kind == kind and min(rates) > 0 and {"float32", "bfloat16"} <= set(profile.peak_flop_per_s)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return profile if sound else None


def machine_memory() -> tuple[int | None, int | None]:
    """(total, available) bytes of this machine's memory, within the control group's limit; None: not known."""
    try:
        text = Path("/proc/meminfo").read_text()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines() if line.endswith("kB")}
        total, available = sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None, None
    try:  # a container's limit is smaller than its machine
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return total, available
    return min(total, limit), min(available, max(limit - used, 0))


def _gpu() -> tuple[str, int, int] | None:
    """(name, total bytes, free bytes) of the first GPU that the driver shows, else None."""
    if not Path("/dev/nvidiactl").exists():
        return None
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
        shown = subprocess.run(query, capture_output=True, text=True, check=True, timeout=5).stdout
        name, total, free = (part.strip() for part in shown.splitlines()[0].split(","))
        return name, int(total) << 20, int(free) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
