"""From lists on the host to tensors on a device, without waiting for what the device is doing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def staged(numbers: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """Nested lists of numbers as a tensor on the host, from where a copy to that device need not be waited for."""
    return torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")


def sent(numbers: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """Nested lists of numbers as a tensor on that device.

    `torch.tensor(numbers, device="cuda")` copies from pageable memory and waits until the device has done all that was
    queued before. From pinned memory the copy is queued like everything else, and torch keeps that memory until it ran.
    """
    return staged(numbers, device, dtype).to(device, non_blocking=True)
