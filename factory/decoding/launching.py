"""What every Triton kernel of the project needs at its launch: the device, the interpreter, what it may be given."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@cache
def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; elsewhere those of an H100."""
    if device.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return 132


def interprets() -> bool:
    """Whether Triton interprets kernels in this process, on a CPU: TRITON_INTERPRET=1 at its import."""
    if find_spec("triton") is None:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def interpreted_on(x: torch.Tensor) -> bool:
    """Whether a kernel on x is interpreted. Raises ValueError for a tensor that no kernel can reach."""
    if x.device.type == "cuda":
        return False
    require(interprets(), f"the Triton kernels are for CUDA, not {x.device.type}")
    return True


def launch_options(early: bool) -> dict[str, bool]:
    """Programmatic dependent launch, where wanted."""
    return {"launch_pdl": True} if early else {}


def of_device(x: torch.Tensor) -> torch.cuda.device:
    """Triton launches on the current device: makes it that of x."""
    return torch.cuda.device(x.device if x.device.type == "cuda" else -1)


def name_of(dtype: torch.dtype) -> str:
    """As a config has it: bfloat16."""
    return str(dtype).removeprefix("torch.")


def cdiv(number: int, by: int) -> int:
    """How many parts of that size hold it."""
    return -(-number // by)


def power_of_two(number: int) -> int:
    """The first that is not smaller; 1 for 0."""
    return 1 << max(number - 1, 0).bit_length()


def require(true: bool, otherwise: str) -> None:
    """Raises ValueError with that text where it is not true."""
    if not true:
        raise ValueError(otherwise)


def require_alike(*tensors: torch.Tensor | None) -> None:
    """Raises ValueError where tensors differ in dtype or device, or their last dimension is not contiguous."""
    given = [tensor for tensor in tensors if tensor is not None]
    first = given[0]
    require(first.dtype in DTYPES, f"no kernel for {name_of(first.dtype)}")
    for tensor in given:
        require(tensor.dtype == first.dtype, f"{name_of(first.dtype)} and {name_of(tensor.dtype)} do not go together")
        require(tensor.stride(-1) == 1, "a tensor's last dimension must be contiguous")
        require(tensor.device == first.device, f"tensors on {first.device} and {tensor.device}")
