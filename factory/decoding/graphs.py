"""Functions of tensors, recorded once as CUDA graphs and then replayed: one launch in place of hundreds.

A replay runs the very kernels that were recorded, on the very addresses: so inputs are copied into tensors that
stay, outputs lie in tensors that the next replay writes over, and nothing in between may ask the host. On a CPU a
replay is the function called on the same tensors that stay: everything but the recording itself can be tried there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Outputs = torch.Tensor | tuple[torch.Tensor, ...]
Function = Callable[..., Outputs]
_WARM_UPS = 2  # runs before a recording: kernels are loaded, compiled and given their workspaces


@dataclass(frozen=True)
class _Recording:
    inputs: tuple[torch.Tensor, ...]
    outputs: Outputs
    replay: Callable[[], object]


class Graphs:
    """Recordings by key, which share one pool of memory: they are replayed one after another, on one stream.

    It does not know what it records. `seconds` is what warming up and recording took.
    """

    def __init__(self, device: torch.device, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._device = device
        self._now_s = now_s
        self._recordings: dict[Hashable, _Recording] = {}
        self._pool: Any = None  # a handle; torch's own name for its type is private
        self._stream: torch.cuda.Stream | None = None
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self._recordings)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._recordings

    def clear(self) -> None:
        """Forget all: what they read or wrote has moved."""
        self._recordings.clear()
        self._pool = None  # torch gives a pool back with its last graph

    def run(self, key: Hashable, function: Function, inputs: Sequence[torch.Tensor]) -> Outputs:
        """What `function` makes of these inputs. Outputs are written over by the next run of the same key.

        Recorded at the first run of a key, whose inputs' shapes and dtypes hold for all others. The function may be run
        several times then, and must not mind; it must ask nothing of the host and leave all tensors where they are.
        Inputs may lie on the host: from pinned memory they are copied without waiting.
        """
        recording = self._recordings.get(key)
        if recording is None:
            begun_s = self._now_s()
            recording = self._recordings[key] = self._record(function, inputs)
            self.seconds += self._now_s() - begun_s
        else:
            for held, given in zip(recording.inputs, inputs, strict=True):
                held.copy_(given, non_blocking=True)
        recording.replay()
        return recording.outputs

    def _record(self, function: Function, inputs: Sequence[torch.Tensor]) -> _Recording:
        held = tuple(given.to(self._device, copy=True) for given in inputs)
        if self._device.type != "cuda":
            return _rehearsed(function, held)
        with torch.cuda.device(self._device):
            if self._stream is None:
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    function(*held)
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # other threads may use the device meanwhile: a library's, or torch's own that frees pinned memory
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                outputs = function(*held)
        return _Recording(held, outputs, graph.replay)


def _rehearsed(function: Function, held: tuple[torch.Tensor, ...]) -> _Recording:
    """A recording whose replay calls the function, and writes into the same outputs each time."""
    outputs = function(*held)

    def replay() -> None:
        for old, new in zip(_listed(outputs), _listed(function(*held)), strict=True):
            old.copy_(new)

    return _Recording(held, outputs, replay)


def _listed(outputs: Outputs) -> tuple[torch.Tensor, ...]:
    return (outputs,) if isinstance(outputs, torch.Tensor) else outputs
