"""The project's own CUDA kernels as torch operators: products of few rows, attention of few queries.

Each is a custom operator, so torch.compile calls it as it stands and a CUDA graph captures it: which
configuration runs is an argument, nothing is timed, synchronised or allocated by what tensors hold,
and equal input gives equal bits. The kernels are Triton's; this module imports without it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from factory.decoding.launching import (
    cdiv,
    interpreted_on,
    launch_options,
    of_device,
    power_of_two,
    processors_of,
    require,
    require_alike,
)

MOST_ROWS = 16  # that a skinny product takes
MOST_TOKENS = 128  # queries a row of the batch in decode_attention
BLOCK_SLOTS = 64  # slots of a cache that are read at a time
MOST_SPLITS = 64
PROGRAMS = 2  # for each of the GPU's processors, at least, before work is split further
_WIDE = 2048  # channels a warp that are squared at a time
_LOG2_E = math.log2(math.e)


class Config(NamedTuple):
    """How a skinny product runs: by `summed` (1 or 2 rows) or `dotted`, in which blocks.

    `splits` parts of K are summed apart and then added in order. `early` starts the kernel while the
    one before it ends, and reads weights ahead: only for weights that no kernel still running writes;
    needs capability 9.0.
    """

    dotted: bool
    block_n: int
    block_k: int
    warps: int
    stages: int
    splits: int = 1
    early: bool = False

    def __str__(self) -> str:
        name = "dotted" if self.dotted else "summed"
        more = f" / {self.splits}" * (self.splits > 1) + " early" * self.early
        return f"{name} {self.block_n}x{self.block_k} {self.warps}w {self.stages}s{more}"


# What there is to choose from, by registers, shared memory and bytes in flight as compiled for capability 9.0.
# A `summed` block is a multiple of 256 wide for each warp, so that x needs no exchange between threads.
SUMMED = (
    Config(False, 2, 1024, 1, 1),
    Config(False, 4, 512, 1, 1),
    Config(False, 8, 256, 1, 1),
    Config(False, 4, 1024, 2, 1),
    Config(False, 8, 1024, 4, 1),
    Config(False, 4, 512, 1, 4),
    Config(False, 8, 512, 2, 4),
)
DOTTED = (
    Config(True, 16, 256, 2, 4),
    Config(True, 32, 128, 4, 5),
    Config(True, 32, 256, 4, 4),
    Config(True, 64, 128, 4, 4),
    Config(True, 128, 64, 4, 4),
)


def configs(rows: int, outputs: int, inputs: int, processors: int) -> list[Config]:
    """Those worth a comparison for [rows, inputs] x [outputs, inputs] on so many processors.

    Where there would be too few programs, K is split. Raises ValueError for more than MOST_ROWS.
    """
    require(0 < rows <= MOST_ROWS, f"a skinny product takes 1 to {MOST_ROWS} rows, not {rows}")
    offered = []
    for config in (*(SUMMED if rows <= 2 else ()), *DOTTED):
        programs = cdiv(outputs, config.block_n)
        blocks = cdiv(inputs, config.block_k)
        splits = min(cdiv(PROGRAMS * processors, programs), blocks, 16)
        offered.append(config._replace(splits=1 << (splits.bit_length() - 1)))
    return offered


def skinny_product(
    x: torch.Tensor,  # [M, K], M <= 16
    weight: torch.Tensor,  # [N, K], rows any distance apart
    bias: torch.Tensor | None = None,  # [N]
    config: Config = DOTTED[2],
    *,
    norm: torch.Tensor | None = None,  # [K]
    eps: float = 0.0,
    residual: torch.Tensor | None = None,  # [M, N]
    gated: bool = False,
) -> torch.Tensor:
    """x @ weight.T + bias [M, N], accumulated in float32, in one pass over the weight.

    With `norm`, x is first normalised by its root mean square (arXiv 1910.07467) and weighted, with
    `residual` that is added last, and `gated` takes a weight [2 F, K] of gates, then ups, and gives
    silu(gate) * up [M, F]: each rounded to the dtype where transformers' modules round. float32,
    bfloat16 or float16, all the same. Raises ValueError for shapes, dtypes or strides that no kernel takes.
    """
    found: torch.Tensor = _skinny_product(x, weight, bias, norm, eps, residual, gated, [int(part) for part in config])
    return found


@torch.library.custom_op("drafter_factory::skinny_product", mutates_args=())
def _skinny_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
    gated: bool,
    config: list[int],
) -> torch.Tensor:
    out = _shape_of_product(x, weight, bias, norm, eps, residual, gated, config)
    interpreted = interpreted_on(x)
    from factory.decoding import triton_products as kernels

    dotted, block_n, block_k, warps, stages, splits, early = config
    rows, inputs = x.shape
    outputs = weight.shape[0]
    part = cdiv(cdiv(inputs, block_k), splits) * block_k
    splits = cdiv(inputs, part)  # those that have something to do
    scratch = x.new_empty(splits, rows, outputs, dtype=torch.float32) if splits > 1 else out
    tensors = (x, weight, _or(bias, x), _or(norm, x), _or(residual, x), out, scratch)
    residual_stride = 0 if residual is None else residual.stride(0)
    numbers = (rows, outputs, inputs, part, x.stride(0), weight.stride(0), residual_stride, eps)
    common = {
        "GATED": gated,
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "EARLY": bool(early) and not interpreted,
        "INTERPRETED": interpreted,
        **launch_options(bool(early) and not interpreted),
    }
    grid = (cdiv(outputs, block_n), splits)
    with of_device(x):
        blocks = {"BLOCK_N": block_n, "BLOCK_K": block_k, "STAGES": stages, "HAS_NORM": norm is not None}
        blocks["SPLIT"] = splits > 1
        if dotted:
            kernels.dotted[grid](*tensors, *numbers, **blocks, **common, num_warps=warps)
        else:
            shape = {"TWO": rows == 2, "VECTOR": 16 // x.element_size(), "WIDE": _WIDE * warps}
            kernels.summed[grid](*tensors, *numbers, **shape, **blocks, **common, num_warps=warps)
        if splits > 1:
            grid = (cdiv(outputs, 256), rows)
            more = (scratch, tensors[2], tensors[4], out, splits, rows, outputs, residual_stride)
            kernels.gathered[grid](*more, BLOCK_N=256, **common, num_warps=2)
    return out


def _shape_of_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
    gated: bool,
    config: list[int],
) -> torch.Tensor:
    require(x.dim() == weight.dim() == 2, f"a product takes matrices, not {x.dim()} and {weight.dim()} dimensions")
    rows, outputs = x.shape[0], weight.shape[0] // 2 if gated else weight.shape[0]
    require(x.shape[1] == weight.shape[1], f"x is {x.shape[1]} wide, the weight {weight.shape[1]}")
    most = MOST_ROWS if config[0] else 2
    require(0 < rows <= most, f"{'dotted' if config[0] else 'summed'} takes 1 to {most} rows, not {rows}")
    require(not gated or weight.shape[0] % 2 == 0, f"gates and ups are not {weight.shape[0]} rows")
    require(residual is None or residual.shape == (rows, outputs), "the residual is not as what it is added to")
    for vector, length in ((bias, weight.shape[0]), (norm, x.shape[1])):
        require(vector is None or vector.shape == (length,), f"a bias or norm is not {length} long")
    require_alike(x, weight, bias, norm, residual)
    return x.new_empty(rows, outputs)


_skinny_product.register_fake(_shape_of_product)


def attention_splits(programs: int, slots: int, processors: int) -> int:
    """Into how many parts the slots of each of so many programs go, so that the GPU is filled."""
    return max(1, min(cdiv(PROGRAMS * processors, programs), cdiv(slots, BLOCK_SLOTS), MOST_SPLITS))


def takes_heads(width: int) -> bool:
    """Whether `decode_attention` takes heads of so many channels."""
    return 8 <= width <= 256


def decode_attention(
    queries: torch.Tensor,  # [B, H, T, W], T <= 128
    keys: torch.Tensor,  # [B, KV, S, W]
    values: torch.Tensor,  # [B, KV, S, W]
    positions: torch.Tensor,  # [B or 1, T] int64
    scale: float,
    window: int | None = None,
    *,
    splits: int | None = None,
    early: bool = False,
) -> torch.Tensor:
    """Causal attention of a few queries over a cache, [B, T, H * W]: flash-decoding (arXiv 2205.14135, 2307.08691).

    Query t of row b sees the slots s <= positions[b, t], with a window only those > positions[b, t] - window;
    one that sees none gets zeros. What lies behind a row's last position is not read, and how that range is split among
    programs is settled on the device, so time goes with what is stored and not with S. `splits` is chosen
    from the shapes where it is None. The softmax is float32, its weights are rounded to the dtype before they meet
    the values. Any strides but the last, which is 1. Raises ValueError for what no kernel takes.
    """
    found: torch.Tensor = _decode_attention(queries, keys, values, positions, scale, window or 0, splits or 0, early)
    return found


@torch.library.custom_op("drafter_factory::decode_attention", mutates_args=())
def _decode_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int,
    splits: int,
    early: bool,
) -> torch.Tensor:
    out = _shape_of_attention(queries, keys, values, positions, scale, window, splits, early)
    interpreted = interpreted_on(queries)
    from factory.decoding import triton_attention as kernels

    batch, heads, tokens, width = queries.shape
    kv = keys.shape[1]
    rows = heads // kv * tokens
    long = queries.dtype == torch.float32  # without tensor cores: small tiles, many threads
    block_r = min(max(16, power_of_two(rows)), 16 if long else 64)
    block_w = max(16, power_of_two(width))
    row_blocks = cdiv(rows, block_r)
    splits = splits or attention_splits(batch * kv * row_blocks, keys.shape[2], processors_of(queries.device))
    block_s = BLOCK_SLOTS // 2 if long or block_w > 128 else BLOCK_SLOTS
    early = early and not interpreted
    parts = peaks = sums = out
    if splits > 1:
        peaks, sums = (queries.new_empty(batch * kv, splits, rows, dtype=torch.float32) for _ in range(2))
        parts = queries.new_empty(batch * kv, splits, rows, width, dtype=torch.float32)
    placed = positions.expand(batch, tokens)
    strides = [stride for tensor in (queries, keys, values) for stride in tensor.stride()[:3]]
    common = {
        "KV": kv,
        "GROUP": heads // kv,
        "TOKENS": tokens,
        "WIDTH": width,
        "BLOCK_W": block_w,
        "SPLITS": splits,
        "EARLY": early,
        "INTERPRETED": interpreted,
        **launch_options(early),
    }
    with of_device(queries):
        kernels.attended[batch * kv, splits, row_blocks](
            queries, keys, values, positions, out, parts, peaks, sums, keys.shape[2], scale * _LOG2_E,
            *strides, *placed.stride(),
            WINDOW=window, BLOCK_R=block_r, BLOCK_S=block_s, **common,
            num_warps=8 if long else 4, num_stages=2 if long or block_r > 32 else 3,
        )  # fmt: skip
        if splits > 1:
            kernels.joined[batch * kv, rows](
                parts, peaks, sums, out, **common, BLOCK_P=power_of_two(splits), num_warps=4
            )
    return out


def _shape_of_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int,
    splits: int,
    early: bool,
) -> torch.Tensor:
    batch, heads, tokens, width = queries.shape
    require(keys.shape == values.shape, "keys and values are not of one shape")
    require(keys.shape[0] == batch and keys.shape[3] == width, "keys are not of the queries' batch and width")
    require(heads % keys.shape[1] == 0, f"{heads} heads cannot share {keys.shape[1]} keys")
    require(0 < tokens <= MOST_TOKENS, f"1 to {MOST_TOKENS} tokens a row, not {tokens}")
    require(takes_heads(width), f"heads of 8 to 256 channels, not {width}")
    require(0 <= splits <= MOST_SPLITS, f"0 (choose) to {MOST_SPLITS} splits, not {splits}")
    require(positions.shape in ((batch, tokens), (1, tokens)), "positions are not [B or 1, T]")
    require_alike(queries, keys, values)
    return queries.new_empty(batch, tokens, heads * width)


_decode_attention.register_fake(_shape_of_attention)


def _or(tensor: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    return other if tensor is None else tensor
