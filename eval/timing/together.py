"""An evaluation by several launched processes: the first one's, which tells the others what to do.

By default each has target and drafters of its own and times its share of every block's batches; what
they timed is merged in the prompts' order, so tokens, rounds and acceptances are those of one process
alone. With `tensor_parallel` they hold one target together, and the first alone drafts and decides.
Parity, the choice, what is kept on disk and all that is said are the first one's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from eval.plan import EvalPlan
from eval.timing.arms import Entry, opened
from eval.timing.bench import Bench
from eval.timing.placing import placement_of
from eval.timing.threads import threads
from factory.anatomy.shapes import Shape
from factory.artifact import Artifact
from factory.decoding.leading import follow as follow_passes
from factory.errors import UnsupportedModel
from factory.models.loading import resolve_device, resolve_dtype
from factory.models.located import read_config
from factory.models.placement import layer_devices, tensor_parallel_size, why_divided
from factory.processes import Processes
from factory.progress import Progress, silent


@dataclass(frozen=True)
class Order:
    """All that a process needs to open its bench."""

    field: Sequence[Entry]
    plan: EvalPlan
    target: str | None  # another copy of the target
    context: int

    @property
    def anchor(self) -> Artifact:
        """The artifact whose target is everybody's."""
        return next(entry.artifact for entry in self.field if entry.artifact is not None)


def open_bench(order: Order, told: Callable[[], None], together: Processes, progress: Progress = silent) -> Bench:
    """The first process's bench; the others open theirs. `progress` is told of the opening, `told` of what is timed.

    Raises what loading raises, and UnsupportedModel for a target that cannot be divided over so many processes.
    """
    if order.plan.tensor_parallel:
        _require_divisible(order.anchor, together.world)
    together.told(order)
    return _bench(order, told, together, progress)


def follow(together: Processes) -> None:
    """What every process but the first does, from beginning to end."""
    order: Order = together.told(None)
    with threads(order.plan.threads):
        if order.plan.tensor_parallel:
            model = _target(order, together)
            follow_passes(opened(model, order.plan.reader), model, together.told)
        else:
            _bench(order, lambda: None, together, silent).follow()


def _require_divisible(anchor: Artifact, processes: int) -> None:
    """Each process must get whole heads, of a family that transformers has a plan for."""
    family, shape = str(read_config(anchor.model_folder)["model_type"]), Shape(**anchor.manifest["target_shape"])
    other = "write `device_map: auto` in one process, or leave tensor_parallel out"
    if not getattr(AutoConfig.for_model(family), "base_model_tp_plan", None):
        raise UnsupportedModel(f"transformers cannot divide a {family} over processes: {other}")
    if shape.heads % processes or shape.kv_heads % processes:
        raise UnsupportedModel(
            f"{shape.heads} heads with {shape.kv_heads} for keys and values cannot be divided over {processes} "
            f"processes: launch as many as divide both, or {other}"
        )


def _bench(order: Order, told: Callable[[], None], together: Processes, progress: Progress) -> Bench:
    target = _target(order, together, progress)
    return Bench(order.field, order.plan, target, order.context, told, together, progress)


def _target(order: Order, together: Processes, progress: Progress = silent) -> PreTrainedModel:
    device = resolve_device(order.plan.device)
    dtype = resolve_dtype(order.plan.dtype, device)
    return order.anchor.load_target(order.target, dtype, device, placement_of(order.plan, together), progress)


def words(bench: Bench) -> list[str]:
    """Where target and drafters lay and which processes took part, as sentences; none where it was one device."""
    said, plan, world = [], bench.plan, bench.together.world
    if plan.tensor_parallel:
        said.append(f"The target's weights are divided over {world} processes (tensor parallelism); the first drafts.")
    elif world > 1:
        said.append(
            f"{world} processes took part, each with target and drafters of its own and every {_nth(world)} batch: "
            "counts are of all of them, seconds each one's own, added up."
        )
    devices = list(dict.fromkeys(map(str, layer_devices(bench.target))))
    if len(devices) > 1:
        said.append(f"The target's layers compute on {' and '.join(devices)}.")
    elif plan.device_map is not None and why_divided(bench.target) is None:
        said.append(f"device_map: {plan.device_map} divided nothing: the whole target lies on {devices[0]}.")
    drafts_on = {str(run.reader.device) for run in bench.running.values() if run.reader is not None}
    if drafts_on - {str(bench.reader.device)}:
        said.append(f"Drafters run on {' and '.join(sorted(drafts_on))}, the target on {' and '.join(devices)}.")
    return said


def _nth(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def facts(bench: Bench) -> dict[str, Any]:
    """The same as results.json has it."""
    drafts_on = {str(run.reader.device) for run in bench.running.values() if run.reader is not None}
    return {
        "processes": bench.together.world,
        "tensor_parallel": tensor_parallel_size(bench.target),
        "target_devices": list(dict.fromkeys(map(str, layer_devices(bench.target)))),
        "drafter_devices": sorted(drafts_on),
    }
