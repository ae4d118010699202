"""A device's profile, measured: what it reads, what it computes, what the engine adds on the host.

A few seconds and about half a gigabyte: reading weights that no cache holds, matrix products in each
dtype, the same weights with a few rows, and real decoding with tiny Llamas of two depths, whose
difference is what a layer costs besides its bytes. Knows nothing of recipes and reads no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from factory.forecasting import profile as profiles
from factory.forecasting.profile import DeviceProfile
from factory.progress import Progress, silent

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from factory.decoding.drafters import Drafter
    from factory.decoding.reader import Reader

ROWS = (2, 5, 9, 17)  # what verifying k = 1, 4, 8 and 16 tokens reads at once
_CACHED_BYTES = (8 << 20, 64 << 20)  # models that a cache may hold
_MATRIX = 4096  # rows and columns of a streamed matrix
_TOKENS = 48  # written by the tiny Llamas
_BUDGET_S = 0.7  # of each figure
_PRODUCT_S = 0.03  # a product that takes so long is large enough


def measured(device: str, name: str, progress: Progress = silent) -> DeviceProfile:
    """The profile of a torch device, measured now."""
    import torch

    def figures(done: int, what: str) -> None:
        progress(done, 5, f"measuring this machine, {what}")

    kind: profiles.Kind = "cuda" if device.startswith("cuda") else "cpu"
    streamed = torch.float32 if kind == "cpu" else torch.bfloat16
    total, free = profiles.machine_memory()
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    with torch.inference_mode():
        figures(0, "how fast it reads")
        one_row_s, streamed_bytes = _streaming(device, streamed, 1)
        cached = tuple(_cached(device, streamed, size) for size in _CACHED_BYTES) if kind == "cpu" else ()
        figures(1, "how fast it computes")
        peaks = {str(t).removeprefix("torch."): _product_rate(device, t) for t in (torch.float32, torch.bfloat16)}
        figures(2, "a few rows at a time")
        few = {str(t).removeprefix("torch."): _few_rows(device, t) for t in (torch.float32, torch.bfloat16)}
        figures(4, "what decoding adds")
        host = _overheads(device)
    figures(5, "all of it")
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
        cached_bytes_per_s=cached,
        **host,
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


def _streaming(
    device: str, dtype: torch.dtype, rows: int, streamed_bytes: int | None = None, width: int | None = None
) -> tuple[float, int]:
    """(seconds, bytes) of one pass of `rows` rows through square weights of that width, as a reader multiplies them."""
    import torch

    from factory.decoding.products import tuned_products, why_no_packing
    from factory.decoding.wiring import plain_products

    streamed_bytes, width = streamed_bytes or profiles.STREAMED_BYTES, width or _MATRIX
    _, available = profiles.machine_memory()
    room = streamed_bytes if available is None else min(streamed_bytes, available // 4)
    count = max(2, int(room // (width * width * dtype.itemsize)))
    weights = [(torch.ones(width, width, dtype=dtype, device=device), None) for _ in range(count)]
    packs = not device.startswith("cuda") and why_no_packing(dtype) is None
    products = tuned_products(weights, time.perf_counter, (rows,)) if packs else plain_products(weights)
    x = torch.ones(1, rows, width, dtype=dtype, device=device)
    taken_s = _fastest_s(lambda: [product(x, rows) for product in products], device)
    return taken_s, count * width * width * dtype.itemsize


def _cached(device: str, dtype: torch.dtype, size: int) -> tuple[int, float]:
    """(bytes, bytes/s) of one row through weights of that size, read again and again."""
    taken_s, streamed_bytes = _streaming(device, dtype, 1, size, 512)
    return streamed_bytes, streamed_bytes / taken_s


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

    width, rate, generator = 512, 0.0, torch.Generator(device).manual_seed(0)
    while width <= 16384:
        a = torch.randn(width, width, device=device, generator=generator).to(dtype)  # a GPU multiplies ones faster
        taken_s = _fastest_s(partial(torch.matmul, a, a), device, _BUDGET_S / 5)
        rate = max(rate, 2 * width**3 / taken_s)
        if taken_s > _PRODUCT_S:
            break
        width *= 2
    return rate


def _overheads(device: str) -> dict[str, float]:
    """Seconds of the host by what it is for: from decoding with Llamas of 2 and 10 tiny layers.

    What a layer adds is the difference of two depths, of single steps and of verifications; what a
    draft step adds is the difference of two k; what is left is a round's own.
    """
    from factory.decoding.drafters import ModelDrafter
    from factory.decoding.readers import open_reader

    readers = {layers: open_reader(_tiny_llama(layers, device)) for layers in (2, 10)}
    drafter = ModelDrafter(open_reader(_tiny_llama(2, device)), "drafter")
    plain = {layers: _seconds(partial(_write, reader), device) for layers, reader in readers.items()}
    rounds = {
        (layers, k): _seconds(partial(_write, readers[layers], drafter, k), device)
        for layers, k in ((2, 1), (2, 4), (10, 4))
    }
    layer_s = max(0.0, (plain[10] - plain[2]) / 8)
    verify_layer_s = max(0.0, (rounds[10, 4] - rounds[2, 4]) / 8)
    step_s = max(0.0, plain[2] - 2 * layer_s)
    draft_s = max(0.0, (rounds[2, 4] - rounds[2, 1]) / 3)
    return {
        "layer_overhead_s": layer_s,
        "verify_layer_overhead_s": verify_layer_s,
        "step_overhead_s": step_s,
        "draft_overhead_s": max(0.0, draft_s - 2 * layer_s),
        "round_overhead_s": max(0.0, rounds[2, 4] - 4 * draft_s - 2 * verify_layer_s - step_s),
    }


def _tiny_llama(layers: int, device: str) -> PreTrainedModel:
    """So small that its arithmetic is nothing; equal from call to call where the layers are."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(device).eval()


def _write(reader: Reader, drafter: Drafter | None = None, k: int = 1) -> int:
    """Write a text from one token; returns the rounds after the prefill."""
    from factory.decoding.decoder import Limits, autoregressive, speculative
    from factory.decoding.sampling import Noise, Sampling

    limits, noise = Limits(1 + _TOKENS * (k + 1) // 2, frozenset(), 512), Noise(0, [0], reader.device)
    if drafter is None:
        return autoregressive(reader, [[1]], Sampling(), limits, noise)[0].target_passes - 1
    return speculative(reader, drafter, [[1]], k, Sampling(), limits, noise)[0].target_passes - 1


def _seconds(write: Callable[[], int], device: str) -> float:
    """Seconds a round: the fastest writing / its rounds. The prefill of one token counts as one of them."""
    rounds = write() + 1
    return _fastest_s(write, device) / rounds
