"""One module in several processes: copies whose gradients are averaged (DDP), or divided weights (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from factory.processes import Processes


def wrap(student: nn.Module, layers: nn.Module, device: torch.device, processes: Processes) -> nn.Module:
    """The student as all processes train it together; itself where there is one process.

    `layers` are the drafter's: with FSDP2 each is a group of its own, everything else is one more (Zhao et al.,
    arXiv 2304.11277; torch's `fully_shard`). Its forward must be called equally often in every process.
    """
    if processes.world == 1:
        return student
    if processes.sharded:
        mesh = init_device_mesh(device.type, (processes.world,))
        for layer in layers.children():
            fully_shard(layer, mesh=mesh)
        fully_shard(student, mesh=mesh)
        return student
    return DistributedDataParallel(student, device_ids=[device] if device.type == "cuda" else None)


@contextmanager
def summed(model: nn.Module, last: bool) -> Iterator[None]:
    """Processes exchange gradients in the last backward pass of a step only."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    yield


def let_go(model: nn.Module) -> None:
    """To be called before weights change outside of a step, as where a mean takes their place.

    After a forward pass without a backward pass FSDP2's outermost group keeps what it gathered, and the next pass
    would be made with that.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


def whole(model: nn.Module) -> dict[str, Any]:
    """All weights put together, on the CPU of the first process; elsewhere empty. Every process must call it."""
    return dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)))
