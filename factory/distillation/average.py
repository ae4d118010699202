"""A running mean of the weights (EMA): what is judged and kept where a recipe asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


class Average:
    """Exponential moving average of parameters, in their own dtype and place.

    The decay grows toward its value, min(decay, (1 + n) / (10 + n)) at update n, so that the first
    weights, which are the worst, do not stay in it (as TensorFlow's ExponentialMovingAverage does).
    """

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.updates = 0
        self.mean = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer step."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        for mean, parameter in zip(self.mean, self._parameters, strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The mean stands in the model's place as long as this is open."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for mean, parameter in zip(self.mean, self._parameters, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(held)

    def settle(self) -> None:
        """The mean becomes the weights, for good."""
        self._swap()

    def state(self) -> dict[str, Any]:
        """To go on from."""
        return {"updates": self.updates, "mean": [_whole(mean).cpu() for mean in self.mean]}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.updates = state["updates"]
        for mean, held in zip(self.mean, state["mean"], strict=True):
            mean.copy_(_like(held, mean))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(held: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor, divided as `tensor` is."""
    if isinstance(tensor, DTensor):
        return distribute_tensor(held.to(tensor.device), tensor.device_mesh, tensor.placements)
    return held.to(tensor.device)
