"""What a plan says of devices, held against those that are here and the processes that were launched."""

from __future__ import annotations

import os

import torch

from eval.plan import EvalPlan
from eval.timing.memory import free_bytes
from factory.errors import RecipeError
from factory.models.placement import Placement
from factory.processes import Processes

LAUNCH = "torchrun --nproc_per_node 2 -m factory eval ..."


def require_devices(plan: EvalPlan, together: Processes) -> None:
    """Raises RecipeError with everything that the plan asks of devices and processes and that is not so here."""
    faults = [f"{plan.place(key)}: {what}" for key, what in (*_missing(plan), *_crowded(plan, together))]
    if faults:
        raise RecipeError("\n".join(faults))


def _missing(plan: EvalPlan) -> list[tuple[str, str]]:
    """Devices that are named and are not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = f"torch finds {count} CUDA device{'' if count == 1 else 's'} here" if count else "torch finds no CUDA device"
    wanted = [(key, getattr(plan, key)) for key in ("device", "drafter_device")]
    wanted += [("max_memory", f"cuda:{name}") for name in plan.max_memory or () if name != "cpu"]
    return [
        (key, f"{device} is not there: {here}; {'count from 0' if count else 'write cpu or auto'}")
        for key, device in wanted
        if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= count
    ]


def _crowded(plan: EvalPlan, together: Processes) -> list[tuple[str, str]]:
    """What does not go with so many processes."""
    if together.world == 1:
        alone = "divides the target over several launched processes, and this is one alone: start it as"
        return [("tensor_parallel", f"{alone} {LAUNCH}")] if plan.tensor_parallel else []
    faults = []
    said = f"{together.world} processes were launched, and"
    if plan.device_map is not None:
        faults.append(("device_map", f"{said} each would lay its target over the same devices: start one alone"))
    if ":" in plan.device:
        faults.append(("device", f"{said} each has a device of its own, not {plan.device}: write cuda or auto"))
    if ":" in plan.drafter_device and not plan.tensor_parallel:
        faults.append(
            (
                "drafter_device",
                f"{said} each drafts on a device of its own, not {plan.drafter_device}: write cpu or auto",
            )
        )
    here, count = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if plan.device != "cpu" and torch.cuda.is_available() and here > count:
        faults.append(("device", f"{here} processes were launched here, for {count} CUDA devices: launch {count}"))
    if plan.device == "cpu" and plan.tensor_parallel and torch.cuda.is_available():
        faults.append(("tensor_parallel", "is on the GPUs where there are any: write `device: auto`"))
    return faults


def placement_of(plan: EvalPlan, together: Processes) -> Placement:
    """How the plan has the target laid out."""
    if plan.tensor_parallel:
        return Placement(processes=together.world)
    memory = {int(name) if name.isdecimal() else name: size for name, size in (plan.max_memory or {}).items()}
    return Placement(plan.device_map, memory or None)


def free_for(plan: EvalPlan, device: str, together: Processes) -> int | None:
    """Bytes that target and drafters may take together, over all devices that they are laid out on. None: not known."""
    free = free_bytes(device)
    if free is None:
        return None
    if plan.device_map is not None and device.startswith("cuda"):
        # what fits on no GPU goes to the machine's memory, and behind that to disk
        found = [free_bytes(f"cuda:{number}") for number in range(torch.cuda.device_count())]
        return sum(one or 0 for one in [*found, free_bytes("cpu")])
    return free * together.world if plan.tensor_parallel else free
