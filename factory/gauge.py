"""A device's profile, measured: what it reads, what it computes, what eager transformers add on the host.

A few seconds and about half a gigabyte: reading weights that no cache holds, matrix products in each
dtype, the same weights with a few rows, and one decode step of tiny Llamas of two depths, whose
difference is what a layer costs besides its bytes. Knows nothing of recipes and reads no model.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from factory import profile as profiles
from factory.profile import DeviceProfile

if TYPE_CHECKING:
    import torch

ROWS = (2, 5, 9, 17)  # what verifying k = 1, 4, 8 and 16 tokens reads at once
_STREAMED_BYTES = 512 << 20  # more than any CPU's cache
_MATRIX = 4096  # rows and columns of a streamed matrix
_BUDGET_S = 0.7  # of each figure
_PRODUCT_S = 0.03  # a product that takes so long is large enough


def measured(device: str, name: str) -> DeviceProfile:
    """The profile of a torch device, measured now."""
    import torch

    kind: profiles.Kind = "cuda" if device.startswith("cuda") else "cpu"
    streamed = torch.float32 if kind == "cpu" else torch.bfloat16
    total, free = profiles.machine_memory()
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    with torch.inference_mode():
        one_row_s, streamed_bytes = _streaming(device, streamed, 1)
        peaks = {str(t).removeprefix("torch."): _product_rate(device, t) for t in (torch.float32, torch.bfloat16)}
        few = {str(t).removeprefix("torch."): _few_rows(device, t) for t in (torch.float32, torch.bfloat16)}
        layer_s, step_s = _overheads(device)
    return DeviceProfile(
        name=name,
        kind=kind,
        measured=True,
        source="`factory doctor`",
        memory_bytes=total,
        available_bytes=free,
        bandwidth_bytes_per_s=streamed_bytes / one_row_s,
        peak_flop_per_s=peaks,
        few_rows_flop_per_s=few,
        layer_overhead_s=layer_s,
        step_overhead_s=step_s,
        threads=torch.get_num_threads() if kind == "cpu" else None,
    )


def _fastest_s(work: Callable[[], object], device: str, budget_s: float = _BUDGET_S) -> float:
    """Seconds of the fastest run within the budget, at least two: what disturbs a run only ever slows it."""
    import torch

    def once() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        begun_s = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun_s

    first_s = once()  # warms up
    runs = [once()]
    while sum(runs) + first_s < budget_s and len(runs) < 50:
        runs.append(once())
    return min(runs)


def _streaming(device: str, dtype: torch.dtype, rows: int) -> tuple[float, int]:
    """(seconds, bytes) of one pass of `rows` rows through weights that no cache holds, as nn.Linear does it."""
    import torch

    _, available = profiles.machine_memory()
    room = _STREAMED_BYTES if available is None else min(_STREAMED_BYTES, available // 4)
    count = max(2, int(room // (_MATRIX * _MATRIX * dtype.itemsize)))
    weights = [torch.ones(_MATRIX, _MATRIX, dtype=dtype, device=device) for _ in range(count)]
    x = torch.ones(rows, _MATRIX, dtype=dtype, device=device)
    taken_s = _fastest_s(lambda: [torch.nn.functional.linear(x, weight) for weight in weights], device)
    return taken_s, count * _MATRIX * _MATRIX * dtype.itemsize


def _few_rows(device: str, dtype: torch.dtype) -> tuple[tuple[int, float], ...]:
    """(rows, FLOP/s) of products of a few rows with weights that no cache holds."""
    found = []
    for rows in ROWS:
        taken_s, streamed_bytes = _streaming(device, dtype, rows)
        found.append((rows, 2 * rows * streamed_bytes / dtype.itemsize / taken_s))
    return tuple(found)


def _product_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a square product, grown until it takes long enough to be timed."""
    import torch

    width, rate = 512, 0.0
    while width <= 16384:
        a = torch.ones(width, width, dtype=dtype, device=device)
        taken_s = _fastest_s(functools.partial(torch.matmul, a, a), device, _BUDGET_S / 5)
        rate = max(rate, 2 * width**3 / taken_s)
        if taken_s > _PRODUCT_S:
            break
        width *= 2
    return rate


def _overheads(device: str) -> tuple[float, float]:
    """Seconds of the host for a layer and for a step besides: from decode steps of Llamas with 2 and 10 tiny layers.

    On one thread: Python has no more, and tensors this small gain nothing from a second.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from factory.decoding.eager import EagerReader

    taken: dict[int, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for layers in (2, 10):
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=512,
        )
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
            reader = EagerReader(LlamaForCausalLM(config).to(device).eval())
        reader.start(1, 64)
        token = torch.ones(1, 1, dtype=torch.long, device=device)
        reader.feed(token)

        def step(reader: EagerReader = reader, token: torch.Tensor = token) -> None:
            reader.feed(token)
            reader.rewind([1])

        taken[layers] = _fastest_s(step, device)
    torch.set_num_threads(threads)
    layer_s = max(0.0, (taken[10] - taken[2]) / 8)
    return layer_s, max(0.0, taken[2] - 2 * layer_s)
