"""The project's own CUDA kernels as torch operators: products of few rows, attention of few queries.

Each is a custom operator, so torch.compile calls it as it stands and a CUDA graph captures it: which
configuration runs is an argument, nothing is timed, synchronised or allocated by what tensors hold,
and equal input gives equal bits. The kernels are Triton's; this module imports without it.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F

MOST_ROWS = 16  # that a skinny product takes
MOST_TOKENS = 32  # queries a row of the batch in decode_attention
BLOCK_SLOTS = 64  # slots of a cache that are read at a time
MOST_SPLITS = 64
PROGRAMS = 2  # for each of the GPU's processors, at least, before work is split further
_WIDE = 2048  # channels a warp that are squared at a time
_LOG2_E = math.log2(math.e)
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


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
    _require(0 < rows <= MOST_ROWS, f"a skinny product takes 1 to {MOST_ROWS} rows, not {rows}")
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
    interpreted = _interpreted(x)
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
        "SPLITS": splits,
        "GATED": gated,
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "EARLY": bool(early) and not interpreted,
        "INTERPRETED": interpreted,
        **_launch(bool(early) and not interpreted),
    }
    grid = (cdiv(outputs, block_n), splits)
    with _on(x):
        blocks = {"BLOCK_N": block_n, "BLOCK_K": block_k, "STAGES": stages, "HAS_NORM": norm is not None}
        if dotted:
            kernels.dotted[grid](*tensors, *numbers, **blocks, **common, num_warps=warps)
        else:
            shape = {"TWO": rows == 2, "VECTOR": 16 // x.element_size(), "WIDE": _WIDE * warps}
            kernels.summed[grid](*tensors, *numbers, **shape, **blocks, **common, num_warps=warps)
        if splits > 1:
            grid = (cdiv(outputs, 256), rows)
            more = (scratch, *tensors[2:3], tensors[4], out, rows, outputs, residual_stride)
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
    _require(x.dim() == weight.dim() == 2, f"a product takes matrices, not {x.dim()} and {weight.dim()} dimensions")
    rows, outputs = x.shape[0], weight.shape[0] // 2 if gated else weight.shape[0]
    _require(x.shape[1] == weight.shape[1], f"x is {x.shape[1]} wide, the weight {weight.shape[1]}")
    most = MOST_ROWS if config[0] else 2
    _require(0 < rows <= most, f"{'dotted' if config[0] else 'summed'} takes 1 to {most} rows, not {rows}")
    _require(not gated or weight.shape[0] % 2 == 0, f"gates and ups are not {weight.shape[0]} rows")
    _require(residual is None or residual.shape == (rows, outputs), "the residual is not as what it is added to")
    for vector, length in ((bias, weight.shape[0]), (norm, x.shape[1])):
        _require(vector is None or vector.shape == (length,), f"a bias or norm is not {length} long")
    _require_alike(x, weight, bias, norm, residual)
    return x.new_empty(rows, outputs)


_skinny_product.register_fake(_shape_of_product)


def attention_splits(programs: int, slots: int, processors: int) -> int:
    """Into how many parts the slots of each of so many programs go, so that the GPU is filled."""
    return max(1, min(cdiv(PROGRAMS * processors, programs), cdiv(slots, BLOCK_SLOTS), MOST_SPLITS))


def decode_attention(
    queries: torch.Tensor,  # [B, H, T, W], T <= 32
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
    interpreted = _interpreted(queries)
    from factory.decoding import triton_attention as kernels

    batch, heads, tokens, width = queries.shape
    kv = keys.shape[1]
    rows = heads // kv * tokens
    block_r = min(max(16, _power(rows)), 64)
    block_w = max(16, _power(width))
    row_blocks = cdiv(rows, block_r)
    splits = splits or attention_splits(batch * kv * row_blocks, keys.shape[2], _processors(queries.device))
    block_s = BLOCK_SLOTS if block_w * queries.element_size() <= 256 else BLOCK_SLOTS // 2
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
        **_launch(early),
    }
    with _on(queries):
        kernels.attended[batch * kv, splits, row_blocks](
            queries, keys, values, positions, out, parts, peaks, sums, keys.shape[2], scale * _LOG2_E,
            *strides, *placed.stride(),
            WINDOW=window, BLOCK_R=block_r, BLOCK_S=block_s, **common,
            num_warps=4, num_stages=3 if block_r <= 32 else 2,
        )  # fmt: skip
        if splits > 1:
            kernels.joined[batch * kv, rows](parts, peaks, sums, out, **common, BLOCK_P=_power(splits), num_warps=4)
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
    _require(keys.shape == values.shape, "keys and values are not of one shape")
    _require(keys.shape[0] == batch and keys.shape[3] == width, "keys are not of the queries' batch and width")
    _require(heads % keys.shape[1] == 0, f"{heads} heads cannot share {keys.shape[1]} keys")
    _require(0 < tokens <= MOST_TOKENS, f"1 to {MOST_TOKENS} tokens a row, not {tokens}")
    _require(8 <= width <= 256, f"heads of 8 to 256 channels, not {width}")
    _require(0 <= splits <= MOST_SPLITS, f"0 (choose) to {MOST_SPLITS} splits, not {splits}")
    _require(positions.shape in ((batch, tokens), (1, tokens)), "positions are not [B or 1, T]")
    _require_alike(queries, keys, values)
    return queries.new_empty(batch, tokens, heads * width)


_decode_attention.register_fake(_shape_of_attention)


def why_no_kernels(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot be used on that device for that dtype; None where they can.

    Each is tried there once. On a CPU they run in Triton's interpreter only (TRITON_INTERPRET=1), for tests.
    """
    if dtype not in _DTYPES:
        return f"the Triton kernels are for bfloat16, float16 and float32, not {_name(dtype)}"
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if device.type != "cuda":
        return _why_wrong(device, dtype) if _interprets() else f"the Triton kernels are for CUDA, not {device.type}"
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


@cache
def _processors(device: torch.device) -> int:
    if device.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return 132


def _interprets() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def _interpreted(x: torch.Tensor) -> bool:
    if x.device.type == "cuda":
        return False
    _require(_interprets(), f"the Triton kernels are for CUDA, not {x.device.type}")
    return True


def _launch(early: bool) -> dict[str, bool]:
    return {"launch_pdl": True} if early else {}


def _on(x: torch.Tensor) -> torch.cuda.device:
    """Triton launches on the current device: makes it that of x."""
    return torch.cuda.device(x.device if x.device.type == "cuda" else -1)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _or(tensor: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    return other if tensor is None else tensor


def cdiv(number: int, by: int) -> int:
    """How many parts of that size hold it."""
    return -(-number // by)


def _power(number: int) -> int:
    """The least power of two that holds it."""
    return 1 << max(number - 1, 0).bit_length()


def _require(true: bool, otherwise: str) -> None:
    if not true:
        raise ValueError(otherwise)


def _require_alike(*tensors: torch.Tensor | None) -> None:
    given = [tensor for tensor in tensors if tensor is not None]
    first = given[0]
    _require(first.dtype in _DTYPES, f"no kernel for {_name(first.dtype)}")
    for tensor in given:
        _require(tensor.dtype == first.dtype, f"{_name(first.dtype)} and {_name(tensor.dtype)} do not go together")
        _require(tensor.stride(-1) == 1, "a tensor's last dimension must be contiguous")
        _require(tensor.device == first.device, f"tensors on {first.device} and {tensor.device}")
