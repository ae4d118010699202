"""Several processes at one build or evaluation, as `accelerate launch` starts them; alone, nothing of it is imported.

Of a build every process runs the same tasks in the same order. The first writes what is one; what is
divided (a text, a teacher cache, the rows of a training step) each does its share of. An evaluation
is the first one's, and the others do what it tells them (`eval.timing.together`).
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from factory.errors import FactoryError

_PATIENCE = timedelta(days=7)  # how long one waits for the others: the first may be fetching a target, or quantising
_WATCH_S = 0.2


@dataclass(frozen=True)
class Processes:
    """This process among those that were launched together."""

    rank: int = 0
    world: int = 1
    sharded: bool = False  # weights, gradients and optimizer states are divided (FSDP2), not copied (DDP)
    hosts: Any = None  # the group that objects go through; None: the one that tensors go through

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def end(self) -> None:
        """Take leave of the others, at the end of work that went well."""
        if self.world > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()

    def sum(self, value: float) -> float:
        """Of all processes' values, in float64."""
        if self.world == 1:
            return value
        import torch
        import torch.distributed as dist
        from accelerate import PartialState

        total = torch.tensor(value, dtype=torch.float64, device=PartialState().device)
        dist.all_reduce(total)
        return float(total)

    def told(self, thing: Any) -> Any:
        """What the first process says, in all of them."""
        if self.world == 1:
            return thing
        import torch.distributed as dist

        held = [thing]
        dist.broadcast_object_list(held, src=0, group=self.hosts)
        return held[0]

    def gathered(self, thing: Any) -> list[Any]:
        """What each process says, by rank, in the first one; nothing in the others."""
        if self.world == 1:
            return [thing]
        import torch.distributed as dist

        held: list[Any] = [None] * self.world
        dist.gather_object(thing, held if self.first else None, dst=0, group=self.hosts)
        return held if self.first else []


ALONE = Processes()


def world_size() -> int:
    """How many processes were launched together, by what the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that speaks: alone, or the first of those launched together."""
    return world_size() <= 1 or os.environ.get("RANK", "0") == "0"


def spoken(message: str) -> str:
    """A message, which says of which process it is where that is not the first."""
    return message if is_first() else f"process {os.environ['RANK']} of {world_size()} (counted from 0): {message}"


def is_alive(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)  # signal 0: only asks
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def launched() -> Processes:
    """This process as it was launched; connects it to the others at the first call."""
    if world_size() <= 1:
        return ALONE
    # accelerate's --use_fsdp tells transformers to read weights in the first process only, and to have them sent later.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    threading.Thread(target=_end_with_the_launcher, args=(os.getppid(),), daemon=True).start()
    import torch
    from accelerate import PartialState

    hosts = None
    with peers_missed():
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
        if torch.cuda.is_available():  # what is said need not pass a GPU, nor wait there for what is computed
            import torch.distributed as dist

            hosts = dist.new_group(backend="gloo", timeout=_PATIENCE)
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return Processes(state.process_index, state.num_processes, sharded, hosts)


@contextmanager
def peers_missed() -> Iterator[None]:
    """Raises FactoryError where an exchange fails since another process is gone."""
    try:
        yield
    except RuntimeError as error:  # torch has no class of its own for what gloo says
        if not re.search(r"gloo|nccl|Connection (closed|reset|refused)", str(error), re.IGNORECASE):
            raise
        found = re.search(r"Connection \w+ by peer|Connection refused|timed out", str(error), re.IGNORECASE)
        reason = found[0] if found else str(error).strip().splitlines()[0][:200]
        raise FactoryError(
            "another of the launched processes has ended, and this one cannot go on without it; what that one said "
            f"tells why. What is finished is kept: the same command goes on from there ({reason})"
        ) from error


def _end_with_the_launcher(launcher: int) -> None:
    """Whoever kills the launcher ends the build: nothing is to be written where nobody holds the lock."""
    while os.getppid() == launcher:
        time.sleep(_WATCH_S)
    os._exit(1)
