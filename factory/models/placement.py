"""Where a model lies: one device, several GPUs (`device_map`), or several processes (tensor parallelism).

A Placement is what was asked for; the functions read off a loaded model what became of it. Nothing
here moves a tensor, and torch is imported only where a model is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DeviceMap = str  # "auto", "balanced", "balanced_low_0" or "sequential", as transformers names them
Memory = Mapping[int | str, int | str]  # a GPU's number or "cpu" -> bytes, or text such as "9GiB"


@dataclass(frozen=True)
class Placement:
    """How a model is laid out over more than one device. The defaults are one device, whole.

    `device_map` divides its layers over this process's GPUs, each within `max_memory` where that is
    given; what fits on none goes to the CPU's memory, then to disk, and is fetched in every pass.
    `processes` > 1 divides every layer's matrices over so many launched processes (Megatron-LM's way,
    arXiv 1909.08053), by the plan that transformers has for the family.
    """

    device_map: DeviceMap | None = None
    max_memory: Memory | None = None
    processes: int = 1

    @property
    def whole(self) -> bool:
        """Whether the model lies on one device."""
        return self.device_map is None and self.processes == 1


WHOLE = Placement()


def why_divided(model: PreTrainedModel) -> str | None:
    """Why a reader of one device cannot run that model, as half a sentence; None where it lies whole on one device."""
    processes = tensor_parallel_size(model)
    if processes > 1:
        return f"its weights are divided over {processes} processes"
    places = list(dict.fromkeys(_name(place) for place in _map(model).values()))
    if len(places) > 1 or "disk" in places:
        return f"its layers lie on {_listed(places)}"
    return None


def tensor_parallel_size(model: PreTrainedModel) -> int:
    """Over how many processes the model's matrices are divided; 1 where each is whole."""
    from torch.distributed.tensor import DTensor

    return next((int(part.device_mesh.size()) for part in model.parameters() if isinstance(part, DTensor)), 1)


def entry_device(model: PreTrainedModel) -> torch.device:
    """Where tokens go in, and where logits come out. A weight that is fetched in every pass is on no device itself."""
    return _hooked(model) or model.device


def layer_devices(model: PreTrainedModel) -> list[torch.device]:
    """On which device each layer computes, and so keeps its keys and values.

    Attention modules say which layer they are of; the device is that of the nearest hook of
    accelerate's around them.
    """
    whole = entry_device(model)
    found = {0: whole}
    for name, module in model.named_modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int):
            found[index] = _computes(model, name, whole)
    return [found.get(layer, whole) for layer in range(model.config.num_hidden_layers)]


def held_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the model that this process holds, by name: of a divided one its own part.

    What is fetched from the CPU or from disk in every pass is left out: no pass can change it.
    """
    from torch.distributed.tensor import DTensor

    for name, tensor in sorted(model.state_dict().items()):
        if not tensor.is_meta:
            yield name, tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cuda_devices(*devices: torch.device | str) -> tuple[str, ...]:
    """The CUDA devices among those, each once."""
    return tuple(dict.fromkeys(str(device) for device in devices if str(device).startswith("cuda")))


def _map(model: PreTrainedModel) -> dict[str, Any]:
    placed: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    return placed


def _computes(model: PreTrainedModel, name: str, whole: torch.device) -> torch.device:
    """Where the module of that name computes: the nearest hook says, its own or of what it is part of."""
    parts = name.split(".")
    around = (model.get_submodule(".".join(parts[:end])) for end in range(len(parts), 0, -1))
    return next((device for module in around if (device := _hooked(module)) is not None), whole)


def _hooked(module: Any) -> torch.device | None:
    """The device that accelerate's hook moves what comes in to; None where there is no such hook."""
    import torch

    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):  # several stand in one
        place = getattr(one, "execution_device", None)
        if place is not None:
            return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    return None


def _name(place: Any) -> str:
    return f"cuda:{place}" if isinstance(place, int) else str(place)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
