"""What multiplies by a weight on a CUDA device: cuBLAS, or the project's kernels in the best of a few configurations.

Which is fastest depends on the device, the shape of the weight and the number of rows, so it is
compared once, when a reader is opened, on the model's own weights: in a CUDA graph, as a step runs,
so that launches cost nothing, and over as many weights as do not fit into the L2 cache. A kernel is
tried against the plain product first, and kept only where it is clearly faster.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F

from factory.decoding.kernels import DOTTED, SUMMED, Config, configs, decode_attention, skinny_product
from factory.decoding.launching import DTYPES, interprets, name_of, of_device, processors_of
from factory.decoding.network import PRODUCTS, Network, Product, root_mean_square
from factory.decoding.products import GAIN, Now
from factory.decoding.wiring import Linear, plain_products

# Takes what runs on the device, gives its seconds.
Timer = Callable[[Callable[[], object]], float]

ROWS = (
    1,
    2,
    5,
    9,
    16,
)  # where kernels are compared: a step, and rounds of k = 1, 4, 8; the next of them serves those between
LIMIT_S = 20.0  # after that, what is not compared yet stays plain
REPEATS = 5
COMPILERS = 12  # threads that compile kernels ahead: most of that is done by other processes
_LAUNCHES = 128  # in one timing, at most: small weights are not worth more
_BYTES = 2**28  # of weights that are read before one is read again: several times an L2 cache
_READ = 2**31  # bytes read in one timing: half a millisecond of an H100, so that a graph's start does not count


def why_no_kernels(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot be used on that device for that dtype; None where they can.

    Each is tried there once. On a CPU they run in Triton's interpreter only (TRITON_INTERPRET=1), for tests.
    """
    if dtype not in DTYPES:
        return f"the Triton kernels are for bfloat16, float16 and float32, not {name_of(dtype)}"
    if device.type != "cuda":
        return _why_wrong(device, dtype) if interprets() else f"the Triton kernels are for CUDA, not {device.type}"
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than capability 8.0, which the Triton kernels need"
    return _why_wrong(device, dtype)


@cache
def _why_wrong(device: torch.device, dtype: torch.dtype) -> str | None:
    """Tries both operators on small tensors."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    x, weight, bias = some(2, 96), some(48, 96), some(48)
    queries, keys, values = some(1, 4, 3, 16), some(1, 2, 80, 16), some(1, 2, 80, 16)
    positions = torch.tensor([[68, 69, 70]], device=device)
    mask = torch.arange(80, device=device) <= positions.unsqueeze(-1)
    try:
        found = [
            skinny_product(x, weight, bias, config) for config in (SUMMED[1], DOTTED[1], DOTTED[1]._replace(splits=2))
        ]
        attended = decode_attention(queries, keys, values, positions, 0.25, splits=2)
    except Exception as error:  # Triton has a class of its own for each of a dozen failures
        return f"the Triton kernels do not run here: {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    exact = F.linear(x.float(), weight.float(), bias.float())
    wrong = max(float((each.float() - exact).abs().max()) for each in found)
    exact = F.scaled_dot_product_attention(
        queries.float(), keys.float(), values.float(), mask, scale=0.25, enable_gqa=True
    )
    off = float((attended.float() - exact.transpose(1, 2).reshape(1, 3, 64)).abs().max())
    if wrong < 0.25 and off < 0.05:  # bfloat16 is 0.06 off at 30
        return None
    return f"the Triton kernels are wrong here, by {wrong:.2g} (product) and {off:.2g} (attention)"


# Of this process, by kind of weight and rows: a drafter's layers are often of its target's shapes.
_KNOWN: dict[tuple[tuple[Any, ...], int], tuple[Config | None, dict[str, Any]]] = {}


class SkinnyProduct:
    """A product with one weight: for each number of rows by cuBLAS, or by a kernel where that is faster.

    What stands around a product may be given with it, and then is part of the kernel, or of a few
    torch operations where none is used: see `kernels.skinny_product`, which rounds alike.
    """

    joins = True

    def __init__(self, linear: Linear, chosen: dict[int, Config]) -> None:
        self.linear = linear
        self.chosen = chosen  # rows -> configuration; other numbers of rows are plain

    def __call__(
        self,
        x: torch.Tensor,  # [..., in]
        rows: int,
        *,
        norm: torch.Tensor | None = None,  # [in]
        eps: float = 0.0,
        residual: torch.Tensor | None = None,  # [..., out]
        gated: bool = False,
    ) -> torch.Tensor:  # [..., out], or half of that where gated
        """x @ weight.T + bias of so many rows."""
        weight, bias = self.linear
        config = self.chosen.get(rows)
        if config is None:
            return composed(x, weight, bias, norm=norm, eps=eps, residual=residual, gated=gated)
        added = None if residual is None else residual.reshape(rows, -1)
        flat = x.reshape(rows, weight.shape[1])
        found = skinny_product(flat, weight, bias, config, norm=norm, eps=eps, residual=added, gated=gated)
        return found.view(*x.shape[:-1], found.shape[1])


def start_late(network: Network) -> bool:
    """Have each kernel of a network begin when the one before it has ended; whether any did not."""
    products = [getattr(layer, name) for layer in network.layers for name in PRODUCTS] + [network.head]
    changed = False
    for product in products:
        if isinstance(product, SkinnyProduct) and any(config.early for config in product.chosen.values()):
            product.chosen = {rows: config._replace(early=False) for rows, config in product.chosen.items()}
            changed = True
    return changed


def composed(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    gated: bool = False,
) -> torch.Tensor:
    """What a skinny product computes, of torch's operations, for any number of rows."""
    if norm is not None:
        x = root_mean_square(x, norm, eps)
    y = F.linear(x, weight, bias)
    if gated:
        gate, up = y.chunk(2, dim=-1)
        y = F.silu(gate) * up
    return y if residual is None else y + residual


def tuned_cuda_products(
    linears: Sequence[Linear],
    now_s: Now | None = None,
    *,
    choices: dict[str, Any] | None = None,
    timer: Timer | None = None,
) -> list[Product]:
    """For each weight, at each number of rows up to 16, the fastest product there is on this device.

    `choices` takes what was chosen: for "outputs x inputs dtype" and each of ROWS the kernel, its
    microseconds and those of cuBLAS, and the bytes of the weight a second; "why" says where no kernel can
    run. With a clock, comparing ends after LIMIT_S. Where kernels cannot run, all products are plain.
    """
    said: dict[str, Any] = {} if choices is None else choices
    weight = linears[0][0]
    why = why_no_kernels(weight.device, weight.dtype)
    if why is not None:
        said["why"] = why
        return plain_products(linears)
    begun_s = now_s() if now_s else 0.0
    groups: dict[tuple[Any, ...], list[Linear]] = defaultdict(list)
    for linear in linears:
        groups[_kind(linear)].append(linear)
    chosen: dict[tuple[Any, ...], dict[int, Config]] = {kind: {} for kind in groups}
    with torch.no_grad(), of_device(weight):
        for place, rows in enumerate(ROWS):
            before = ROWS[place - 1] if place else 0
            for kind, alike in groups.items():
                if now_s and now_s() - begun_s > LIMIT_S:
                    said["why"] = f"comparing products ended after {LIMIT_S:.0f} s: those not reached are cuBLAS's"
                    break
                if timer is not None:
                    config, facts = _fastest(alike, rows, timer)
                elif (kind, rows) in _KNOWN:
                    config, facts = _KNOWN[kind, rows]
                else:
                    config, facts = _KNOWN[kind, rows] = _fastest(alike, rows, graph_seconds)
                said.setdefault(_title(alike[0]), {})[str(rows)] = facts
                if config is not None:
                    chosen[kind].update(dict.fromkeys(range(before + 1, rows + 1), config))
    return [SkinnyProduct(linear, chosen[_kind(linear)]) for linear in linears]


def graph_seconds(run: Callable[[], object]) -> float:
    """Seconds of the device for one run, the best of some, captured in a CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        run()  # compiles
        stream.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")  # other threads may use the device meanwhile
        try:
            run()
        finally:
            graph.capture_end()
        best_s = math.inf
        for _ in range(1 + REPEATS):
            begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            begun.record()
            graph.replay()
            ended.record()
            ended.synchronize()
            best_s = min(best_s, begun.elapsed_time(ended) / 1000)
    return best_s


def _kind(linear: Linear) -> tuple[Any, ...]:
    weight, bias = linear
    return (*weight.shape, *weight.stride(), weight.dtype, weight.device, bias is None)


def _title(linear: Linear) -> str:
    weight, bias = linear
    return f"{weight.shape[0]} x {weight.shape[1]} {name_of(weight.dtype)}" + ", bias" * (bias is not None)


def compared(alike: Sequence[Linear], rows: int, timer: Timer = graph_seconds) -> tuple[float, dict[Config, float]]:
    """Seconds of one product with weights of one shape: cuBLAS's, and those of each configuration that is right here.

    One that does not fit the device, or is off by more than rounding, has infinity.
    """
    weight = alike[0][0]
    size = weight.numel() * weight.element_size()
    probes = alike[: max(1, min(math.ceil(_BYTES / size), _LAUNCHES))]
    times = max(1, min(math.ceil(_READ / (size * len(probes))), _LAUNCHES // len(probes))) if weight.is_cuda else 1
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, weight.shape[1], generator=generator).to(weight)
    exact = composed(x, *probes[0]).float()

    def timed(products: Sequence[Product]) -> float:
        return timer(_over(products, x, times)) / (times * len(probes))

    def tried(config: Config) -> float:
        try:
            error = (skinny_product(x, *probes[0], config).float() - exact).abs().max() / exact.abs().max()
            if not float(error) < 0.02:  # NaN among them
                return math.inf
            return timed([SkinnyProduct(probe, {rows: config}) for probe in probes])
        except Exception:  # Triton has a class of its own for each way in which one configuration does not fit a device
            return math.inf

    plain_s = timed(plain_products(probes))
    offered = configs(rows, weight.shape[0], weight.shape[1], processors_of(weight.device))
    if weight.is_cuda:

        def compiled(config: Config) -> None:
            with suppress(Exception):  # said again when it is tried
                skinny_product(x, *probes[0], config)

        with ThreadPoolExecutor(COMPILERS) as pool:
            list(pool.map(compiled, offered))
    seconds = {config: tried(config) for config in offered}
    fastest = min(offered, key=lambda config: seconds[config])
    if weight.is_cuda and torch.cuda.get_device_capability(weight.device) >= (9, 0):
        hurried = fastest._replace(early=True)
        seconds[hurried] = tried(hurried)
    return plain_s, seconds


def _fastest(alike: Sequence[Linear], rows: int, timer: Timer) -> tuple[Config | None, dict[str, Any]]:
    """The best configuration for weights of one shape, None for the plain product, and what to say about it."""
    plain_s, seconds = compared(alike, rows, timer)
    fastest = min(seconds, key=lambda config: seconds[config])
    best = fastest if seconds[fastest] <= GAIN * plain_s else None
    found_s = plain_s if best is None else seconds[best]
    weight = alike[0][0]
    facts = {
        "kernel": "plain" if best is None else str(best),
        "us": round(found_s * 1e6, 2),
        "plain_us": round(plain_s * 1e6, 2),
        "gb_per_s": round(weight.numel() * weight.element_size() / found_s / 1e9, 1),
    }
    return best, facts


def _over(products: Sequence[Product], x: torch.Tensor, times: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(times):
            for product in products:
                product(x, len(x))

    return run
