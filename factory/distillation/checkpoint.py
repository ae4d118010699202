"""A training's state on disk: whole or not at all, and only for the training that wrote it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from factory.errors import DataError
from factory.processes import Processes

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_INTO = StateDictOptions(full_state_dict=True)


class Checkpoint:
    """One file, `checkpoint.pt`, and one of the best weights so far, `best.pt`.

    `key` says of which training it is. Divided weights (FSDP2) are put together in the first process, which
    alone writes; so a training may go on in another number of processes.
    """

    def __init__(self, folder: Path, key: dict[str, Any], processes: Processes) -> None:
        self.path, self._best = folder / "checkpoint.pt", folder / "best.pt"
        self._key, self._processes = json.dumps(key, sort_keys=True), processes

    def save(self, student: nn.Module, optimizers: Sequence[torch.optim.Optimizer], more: dict[str, Any]) -> None:
        """Keep everything that the next step depends on."""
        model, states = get_state_dict(student, list(optimizers), options=_WHOLE)
        if self._processes.first:
            write_state({"key": self._key, "model": model, "optimizers": states, **more}, self.path)
        self._processes.wait()

    def load(self, student: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any] | None:
        """Put the kept state back; what lies beside it, or None where nothing is. Raises DataError for
        another's, and for one that is damaged."""
        if not self.path.is_file():
            return None
        state = _read(self.path)
        if state.get("key") != self._key:
            raise DataError(
                f"{self.path}: a checkpoint of another training (recipe, text or version differ); "
                "remove that folder to begin this one anew"
            )
        set_state_dict(
            student,
            list(optimizers),
            model_state_dict=state.pop("model"),
            optim_state_dict=state.pop("optimizers"),
            options=_INTO,
        )
        return state

    def save_best(self, student: nn.Module, step: int) -> None:
        """Keep the weights of the best look so far, and whose they are."""
        model = get_model_state_dict(student, options=_WHOLE)
        if self._processes.first:
            write_state({"key": self._key, "step": step, "model": model}, self._best)
        self._processes.wait()

    def load_best(self, student: nn.Module, step: int) -> None:
        """Put the weights of that look back. Raises DataError where they are gone, damaged or another look's."""
        state = _read(self._best)
        if (state.get("key"), state.get("step")) != (self._key, step):
            raise DataError(
                f"{self._best}: not the weights of step {step}, which looked best; remove {self._best.parent} to train "
                "anew"
            )
        set_model_state_dict(student, state["model"], options=_INTO)


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        said = str(error).strip().splitlines()
        raise DataError(
            f"{path}: missing or damaged ({said[0] if said else type(error).__name__}); remove its folder to begin "
            "this training anew"
        ) from error
    return state


def write_state(state: dict[str, Any], path: Path) -> None:
    """The whole file or the old one; what a full disk cut short is removed, since it takes the room."""
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:  # given a name, torch's own writer loses the reason of a failure
            torch.save(state, file)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
