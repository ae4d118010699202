"""What multiplies by a weight on a CPU: torch's product, oneDNN's on packed weights, or 8-bit weights.

At one row a product is bound by reading its weight; at a few rows torch's general matrix product is
far from that bound, and verifying k + 1 tokens costs k + 1 steps or nearly. oneDNN on weights laid
out for it stays near the bound up to a dozen rows. Which is faster depends on the processor, the
shape and the number of rows, so it is measured once, when a reader is opened, on the model's own
weights. The operators are private to torch: each is tried against the plain product first.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count
from typing import ClassVar
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F

from factory.decoding.network import Product
from factory.decoding.wiring import Linear, plain_products

Now = Callable[[], float]  # seconds of a monotonic clock

ROWS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64)  # where kernels are compared; between two, the lower one's choice holds
PACKED_FOR = 16  # rows that the packed layout is made for; it serves 1 to 64 within a few per cent of their own
PROBED = 4  # weights of one shape that are timed, so that they come from memory and not from a cache
REPEATS = 5
GAIN = 0.95  # a packed copy is kept only where it takes at most this share of the plain product's time
INT8_ROWS = 4  # up to so many rows 8-bit weights are read as such; more are the prefill, where arithmetic decides


def why_no_packing(dtype: torch.dtype) -> str | None:
    """Why oneDNN's packed products cannot be used for that dtype here; None where they can."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch is built without oneDNN"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"oneDNN packs no {str(dtype).removeprefix('torch.')} weights"
    return _why_wrong(_packed, dtype, "oneDNN's packed product")


def why_no_int8(dtype: torch.dtype) -> str | None:
    """Why 8-bit weights cannot be used here; None where they can."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"8-bit weights are for float32 and bfloat16 models, not {str(dtype).removeprefix('torch.')}"
    return _why_wrong(_int8, dtype, "torch's 8-bit product")


def _why_wrong(make: Callable[[Linear], Product], dtype: torch.dtype, name: str) -> str | None:
    """Tries the operator on a small product."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(64, 32, generator=generator).to(dtype), torch.randn(64, generator=generator).to(dtype)
    x = torch.randn(1, 3, 32, generator=generator).to(dtype)
    try:
        error = (make((weight, bias))(x, 3) - F.linear(x, weight, bias)).abs().max()
    except (AttributeError, RuntimeError, NotImplementedError) as missing:
        return f"{name} is not there: {str(missing).splitlines()[0][:120]}"
    return None if float(error) < 0.5 else f"{name} is wrong here by {float(error):.2g}"


def tuned_products(linears: Sequence[Linear], now_s: Now, rows: Sequence[int] = ROWS) -> list[Product]:
    """For each weight the faster of the plain and the packed product, as compared at those numbers of rows."""
    products = plain_products(linears)
    for places in _by_shape(linears).values():
        packed_at = _packed_rows([linears[place] for place in places[:PROBED]], now_s, rows)
        if any(packed_at):
            for place in places:
                products[place] = _choice(products[place], _packed(linears[place]), rows, packed_at)
    return products


def int8_products(linears: Sequence[Linear]) -> list[Product]:
    """8-bit weights for single tokens and short runs; the plain product for more rows."""
    int8_at = [rows <= INT8_ROWS for rows in ROWS]
    plain = plain_products(linears)
    return [_choice(more, _int8(linear), ROWS, int8_at) for linear, more in zip(linears, plain, strict=True)]


def _by_shape(linears: Sequence[Linear]) -> dict[tuple[int, ...], list[int]]:
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, (weight, bias) in enumerate(linears):
        groups[(*weight.shape, *weight.stride(), bias is None)].append(place)
    return groups


def _packed_rows(probes: Sequence[Linear], now_s: Now, at: Sequence[int]) -> list[bool]:
    """For each number of rows whether the packed product is faster on these weights of one shape."""
    weight = probes[0][0]
    kernels = (plain_products(probes), [_packed(probe) for probe in probes])
    faster = []
    for rows in at:
        x = torch.ones(1, rows, weight.shape[1], dtype=weight.dtype)
        best = [math.inf, math.inf]
        for _ in range(REPEATS):
            for which, kernel in enumerate(kernels):
                begun_s = now_s()
                for product in kernel:
                    product(x, rows)
                best[which] = min(best[which], now_s() - begun_s)
        faster.append(best[1] < GAIN * best[0])
    return faster


def _choice(plain: Product, other: Product, at: Sequence[int], other_at: Sequence[bool]) -> Product:
    """`other` at the numbers of rows where `other_at` says so; what holds at one of `at` holds up to the next."""
    table = [other_at[max(0, bisect_right(at, rows) - 1)] for rows in range(at[-1])]
    beyond = other_at[-1]
    if all(table) and beyond:
        return other

    def product(x: torch.Tensor, rows: int) -> torch.Tensor:
        chosen = table[rows] if rows < len(table) else beyond
        return other(x, rows) if chosen else plain(x, rows)

    return product


def _packed(linear: Linear) -> Product:
    """oneDNN's product on a copy of the weight in its own layout."""
    weight, bias = linear
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), PACKED_FOR)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    held, outputs = _Held(packed, bias), weight.shape[0]
    place = held.place

    def product(x: torch.Tensor, _rows: int, held: _Held = held) -> torch.Tensor:  # keeps what is held alive
        if torch.compiler.is_compiling():
            found: torch.Tensor = packed_product(x, place, outputs)
        else:
            found = multiply(x, packed, bias, "none", [], "")
        return found

    return product


class _Held:
    """A packed weight by number: a compiler can trace neither a tensor in oneDNN's layout nor what takes one."""

    all: ClassVar[WeakValueDictionary[int, _Held]] = WeakValueDictionary()
    _numbers: ClassVar = count()

    def __init__(self, packed: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.packed, self.bias, self.place = packed, bias, next(self._numbers)
        self.all[self.place] = self


@torch.library.custom_op("drafter_factory::packed_product", mutates_args=())
def packed_product(x: torch.Tensor, place: int, outputs: int) -> torch.Tensor:
    """The packed product number `place` of this process: [..., in] -> [..., outputs]."""
    held = _Held.all[place]
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, held.packed, held.bias, "none", [], "")
    return found


@packed_product.register_fake
def _shape_of_product(x: torch.Tensor, place: int, outputs: int) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


def _int8(linear: Linear) -> Product:
    """Weights as 8-bit integers with one scale a row, read as such; the arithmetic is bfloat16's."""
    weight, bias = linear
    scale = weight.detach().float().abs().amax(dim=1).clamp(min=1e-12) / 127
    integers = (weight.detach().float() / scale.unsqueeze(1)).round().to(torch.int8).contiguous()
    scale, dtype, inputs, outputs = scale.bfloat16(), weight.dtype, weight.shape[1], weight.shape[0]
    multiply = torch.ops.aten._weight_int8pack_mm.default

    def product(x: torch.Tensor, rows: int) -> torch.Tensor:
        y: torch.Tensor = (
            multiply(x.reshape(rows, inputs).bfloat16(), integers, scale).view(*x.shape[:-1], outputs).to(dtype)
        )
        return y if bias is None else y.add_(bias)

    return product
