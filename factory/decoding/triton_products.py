"""Products of a few rows and a weight, as Triton kernels: what `kernels.skinny_product` launches.

At 1 to 16 rows a product is bound by reading its weight once. A program takes BLOCK_N rows of the
weight and walks along K, 16 bytes a thread and load. What keeps the memory busy is bytes in flight:
latency x bandwidth is about 30 KB for each of an H100's processors. `summed` holds the next tile in
registers while it multiplies the present one; where its blocks are 256 bfloat16 a warp wide, x and
the weight have one layout and no thread waits for another inside the loop. `dotted` pads the rows
to 16 for the tensor cores and brings tiles to shared memory some stages ahead.

All arithmetic is float32 and rounds where transformers' modules round. Sums have one order:
where K is SPLIT each part goes to a scratch tensor, and `gathered` adds them in order, so that equal
input gives equal bits.

EARLY is programmatic dependent launch (capability 9.0): the kernel starts while the one before it
ends, reads weights, which no kernel writes, and waits before it touches anything else. Every program
waits, so that an end of this kernel means the end of all before it.

INTERPRETED makes up for Triton's interpreter, which truncates to bfloat16 and multiplies bfloat16
tiles by their bits. Imports triton: import this module only where that is installed.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def rounded(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """Float32 to dtype, to the nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def multiplied(a, b, total, INTERPRETED: tl.constexpr):
    """total + a @ b, float32; float32 operands are not shortened to TF32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _normed(x, weight, scale, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """RMSNorm as transformers rounds it: x * scale to the model's dtype, then times the norm's weight."""
    unit = rounded(x * scale, dtype, INTERPRETED).to(tl.float32)
    return rounded(unit * weight.to(tl.float32), dtype, INTERPRETED).to(tl.float32)


@triton.jit
def _finished(
    total, rows, columns, first, bias, residual, out, M, N, residual_stride,
    BLOCK_N: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Bias, silu(gate) * up, residual; total [R, BLOCK_N] float32 of columns first to first + BLOCK_N to `out`."""
    dtype: tl.constexpr = out.dtype.element_ty
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=first + tl.arange(0, BLOCK_N) < N, other=0.0).to(tl.float32)[None, :]
    if GATED:
        outputs = N // 2
        width: tl.constexpr = BLOCK_N // 2
        gate, up = tl.split(tl.reshape(total, [total.shape[0], width, 2]))
        gate = rounded(gate, dtype, INTERPRETED).to(tl.float32)
        up = rounded(up, dtype, INTERPRETED).to(tl.float32)
        total = rounded(gate / (1.0 + tl.exp(-gate)), dtype, INTERPRETED).to(tl.float32) * up
        at = first // 2 + tl.arange(0, width)
    else:
        outputs = N
        at = first + tl.arange(0, BLOCK_N)
    stored = (rows < M)[:, None] & (at < outputs)[None, :]
    if HAS_RESIDUAL:
        before = tl.load(residual + rows[:, None] * residual_stride + at[None, :], mask=stored, other=0.0)
        total = rounded(total, dtype, INTERPRETED).to(tl.float32) + before.to(tl.float32)
    tl.store(out + rows[:, None] * outputs + at[None, :], rounded(total, dtype, INTERPRETED), mask=stored)


@triton.jit
def _columns(first, N, BLOCK_N: tl.constexpr, GATED: tl.constexpr):
    """Which rows of the weight a program reads: neighbours, or with GATED a gate and its up beside each other."""
    columns = first + tl.arange(0, BLOCK_N)
    if GATED:
        columns = (columns % 2) * (N // 2) + columns // 2
    return columns


@triton.jit
def _row_scale(row, K, eps, WIDE: tl.constexpr):
    """1 / root mean square of K numbers."""
    squares = tl.zeros([WIDE], tl.float32)
    for start in range(0, K, WIDE):
        at = start + tl.arange(0, WIDE)
        x = tl.load(row + at, mask=at < K, other=0.0).to(tl.float32)
        squares += x * x
    return tl.rsqrt(tl.sum(squares) / K + eps)


@triton.jit
def _row_tile(row, at, K, norm, scale, HAS_NORM: tl.constexpr, INTERPRETED: tl.constexpr):
    """Part of one row of x, float32."""
    x = tl.load(row + at, mask=at < K, other=0.0).to(tl.float32)
    if HAS_NORM:
        weight = tl.load(norm + at, mask=at < K, other=0.0)
        x = _normed(x, weight, scale, row.dtype.element_ty, INTERPRETED)
    return x


@triton.jit(do_not_specialize=["M"])
def summed(
    x, weight, bias, norm, residual, out, scratch, M, N, K, part, x_stride, weight_stride, residual_stride, eps,
    TWO: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
    STAGES: tl.constexpr, SPLIT: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, EARLY: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One row of x, or with TWO two, by multiplying and adding in registers."""
    first = tl.program_id(0) * BLOCK_N
    split = tl.program_id(1)
    begin = split * part
    end = min(begin + part, K)
    columns = _columns(first, N, BLOCK_N, GATED)
    within = (first + tl.arange(0, BLOCK_N) < N)[:, None]
    inner = tl.arange(0, BLOCK_K)
    tiles = weight + columns.to(tl.int64)[:, None] * weight_stride + inner[None, :]
    if STAGES == 1:
        at = begin + inner
        tile = tl.load(tiles + begin, mask=within & (at < K)[None, :], other=0.0, eviction_policy="evict_first")
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    scale, second_scale = 1.0, 1.0
    if HAS_NORM:
        scale = _row_scale(x, K, eps, WIDE)
        if TWO:
            second_scale = _row_scale(x + x_stride, K, eps, WIDE)
    total = tl.zeros([BLOCK_N, BLOCK_K // VECTOR], tl.float32)
    second = tl.zeros([BLOCK_N, BLOCK_K // VECTOR], tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        at = start + inner
        if STAGES == 1:
            present = tile.to(tl.float32)
            following = at + BLOCK_K
            wanted = within & ((following < K) & (start + BLOCK_K < end))[None, :]
            tile = tl.load(tiles + (start + BLOCK_K), mask=wanted, other=0.0, eviction_policy="evict_first")
        else:
            loaded = tl.load(tiles + start, mask=within & (at < K)[None, :], other=0.0, eviction_policy="evict_first")
            present = loaded.to(tl.float32)
        # a thread's own VECTOR products are added at once: no shuffles in the loop, and few sums to keep
        row = _row_tile(x, at, K, norm, scale, HAS_NORM, INTERPRETED)
        total += tl.sum(tl.reshape(present * row[None, :], [BLOCK_N, BLOCK_K // VECTOR, VECTOR]), 2)
        if TWO:
            row = _row_tile(x + x_stride, at, K, norm, second_scale, HAS_NORM, INTERPRETED)
            second += tl.sum(tl.reshape(present * row[None, :], [BLOCK_N, BLOCK_K // VECTOR, VECTOR]), 2)
    for index in tl.static_range(2 if TWO else 1):
        found = tl.sum(second if index else total, 1)[None, :]
        rows = index + tl.arange(0, 1)
        if SPLIT:
            at = first + tl.arange(0, BLOCK_N)
            tl.store(scratch + (split * M + rows[:, None]) * N + at[None, :], found, mask=(at < N)[None, :])
        else:
            _finished(
                found, rows, columns, first, bias, residual, out, M, N, residual_stride,
                BLOCK_N, GATED, HAS_BIAS, HAS_RESIDUAL, INTERPRETED,
            )  # fmt: skip


@triton.jit(do_not_specialize=["M"])
def dotted(
    x, weight, bias, norm, residual, out, scratch, M, N, K, part, x_stride, weight_stride, residual_stride, eps,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, SPLIT: tl.constexpr, GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, EARLY: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Up to 16 rows of x by the tensor cores."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    first = tl.program_id(0) * BLOCK_N
    split = tl.program_id(1)
    begin = split * part
    end = min(begin + part, K)
    columns = _columns(first, N, BLOCK_N, GATED)
    within = (first + tl.arange(0, BLOCK_N) < N)[:, None]
    rows = tl.arange(0, 16)
    inner = tl.arange(0, BLOCK_K)
    tiles = weight + columns.to(tl.int64)[:, None] * weight_stride + inner[None, :]
    given = x + rows[:, None] * x_stride + inner[None, :]
    dtype: tl.constexpr = x.dtype.element_ty
    scale = tl.full([16], 1.0, tl.float32)
    if HAS_NORM:
        squares = tl.zeros([16, BLOCK_K], tl.float32)
        for start in range(0, K, BLOCK_K):
            there = (rows < M)[:, None] & (start + inner < K)[None, :]
            tile = tl.load(given + start, mask=there, other=0.0).to(tl.float32)
            squares += tile * tile
        scale = tl.rsqrt(tl.sum(squares, 1) / K + eps)
    total = tl.zeros([16, BLOCK_N], tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        there = (start + inner < K)[None, :]
        read = tl.load(given + start, mask=(rows < M)[:, None] & there, other=0.0)
        tile = tl.load(tiles + start, mask=within & there, other=0.0, eviction_policy="evict_first")
        if HAS_NORM:
            gain = tl.load(norm + start + inner, mask=start + inner < K, other=0.0)
            units = _normed(read.to(tl.float32), gain[None, :], scale[:, None], dtype, INTERPRETED)
            read = units.to(dtype)
        total = multiplied(read, tl.trans(tile), total, INTERPRETED)
    if SPLIT:
        at = first + tl.arange(0, BLOCK_N)
        places = scratch + (split * M + rows[:, None]) * N + at[None, :]
        tl.store(places, total, mask=(rows < M)[:, None] & (at < N)[None, :])
    else:
        _finished(
            total, rows, columns, first, bias, residual, out, M, N, residual_stride,
            BLOCK_N, GATED, HAS_BIAS, HAS_RESIDUAL, INTERPRETED,
        )  # fmt: skip


@triton.jit(do_not_specialize=["M", "splits"])
def gathered(
    scratch, bias, residual, out, splits, M, N, residual_stride,
    BLOCK_N: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, EARLY: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Adds the parts of K, in their order: scratch [splits, M, N] float32."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    first = tl.program_id(0) * BLOCK_N
    rows = tl.program_id(1) + tl.arange(0, 1)
    at = first + tl.arange(0, BLOCK_N)
    total = tl.zeros([1, BLOCK_N], tl.float32)
    for split in range(splits):
        total += tl.load(scratch + (split * M + rows[:, None]) * N + at[None, :], mask=(at < N)[None, :], other=0.0)
    _finished(
        total, rows, _columns(first, N, BLOCK_N, GATED), first, bias, residual, out, M, N, residual_stride,
        BLOCK_N, GATED, HAS_BIAS, HAS_RESIDUAL, INTERPRETED,
    )  # fmt: skip
