"""Several processes at one build, as `accelerate launch` starts them; alone, nothing of it is imported.

Every process runs the same tasks in the same order. The first writes what is one; what is divided
(a text, a teacher cache, the rows of a training step) each does its share of.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Processes:
    """This process among those of the build."""

    rank: int = 0
    world: int = 1
    sharded: bool = False  # weights, gradients and optimizer states are divided (FSDP2), not copied (DDP)

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

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
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def heard(self, thing: Any) -> list[Any]:
        """What each process says, by rank, in all of them."""
        if self.world == 1:
            return [thing]
        import torch.distributed as dist

        held: list[Any] = [None] * self.world
        dist.all_gather_object(held, thing)
        return held


ALONE = Processes()


def launched() -> Processes:
    """This process as it was launched; connects it to the others at the first call."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return ALONE
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return Processes(state.process_index, state.num_processes, sharded)
