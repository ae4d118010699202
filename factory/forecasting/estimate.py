"""The forecast of a whole recipe: shapes and cost after each stage, what it could gain, whether it fits.

It is made before anything is loaded or downloaded, from the target's config.json alone; its text is
for the terminal, its record for the manifest, where it stands beside what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factory.anatomy.families import shape_from_config, stored_as
from factory.anatomy.shapes import Shape
from factory.errors import FactoryError, UnsupportedModel
from factory.files.disk import free_bytes
from factory.forecasting.amounts import Effort
from factory.forecasting.effort import PROMPT_TOKENS, caching, effort_of, text_of, writing
from factory.forecasting.forecast import (
    ALPHAS,
    LOW_CEILING,
    Costs,
    cost_ratio,
    costs_in_bytes,
    costs_in_time,
    served,
    unpacked,
)
from factory.forecasting.profile import DeviceProfile
from factory.given import CacheSettings
from factory.hub import hub_config
from factory.recipes.recipe import Loaded
from factory.recipes.sources import HubPrompts
from factory.wording import count, seconds, size

WITHOUT_CONFIG = (
    "no forecast without the target's config.json; give `target: {config: FILE}`, or a target that lies on this machine"
)
WITHOUT_TARGET = "no forecast without a target; name one with `--target MODEL_OR_FOLDER`"
VERIFIED = 4  # the k whose verification is shown


@dataclass(frozen=True)
class Step:
    """One line of a forecast: the target, its writing, its predictions on disk, or a stage; how it is afterwards."""

    what: str
    shape: Shape  # as it is stored; what it runs as decides c and the effort
    c_bytes: float
    effort: Effort | None  # None for the target as it is given
    cache: CacheSettings | None = None  # of the step "teacher"


@dataclass(frozen=True)
class Forecast:
    """What a recipe makes and takes, on one device."""

    name: str
    profile: DeviceProfile
    dtype: str
    steps: tuple[Step, ...]  # the target first
    in_bytes: Costs  # the ceiling on any hardware
    in_time: Costs  # on the device, with this engine
    disk_bytes: float  # that a build adds, the download of the target counted
    download_bytes: float  # of the target; 0 where it lies on this machine
    disk_free_bytes: int | None  # None: not known, or not asked
    warnings: tuple[str, ...]
    faults: tuple[str, ...]  # why it does not fit; empty where it does

    @property
    def target(self) -> Shape:
        """As it is stored."""
        return self.steps[0].shape

    @property
    def drafter(self) -> Shape:
        """After the last stage."""
        return self.steps[-1].shape

    @property
    def peak_memory_bytes(self) -> float:
        """The largest of all steps."""
        return max(step.effort.memory_bytes for step in self.steps if step.effort)

    @property
    def seconds(self) -> float:
        """Of all steps together."""
        return sum(step.effort.seconds for step in self.steps if step.effort)

    @property
    def fits(self) -> bool:
        """Whether nothing is known that it does not fit into."""
        return not self.faults

    def refuse(self) -> None:
        """Raises FactoryError where the build cannot fit, with what to change."""
        if self.faults:
            raise FactoryError("\n".join(f"{self.name}: {fault}" for fault in self.faults))

    def summary(self) -> str:
        """One line: sizes, c, the best speedup at alpha .80 in bytes and in time, and whether there is a warning."""
        ceiling, k = self.in_bytes.best(0.8)
        here, here_k = self.in_time.best(0.8)
        marks = ["low ceiling"] if ceiling < LOW_CEILING else []
        marks += [] if self.fits else ["does not fit"]
        return (
            f"{_change(self.target.layers, self.drafter.layers)} layers{self._widths()}, "
            f"{count(self.drafter.parameters)} parameters, "
            f"c = {self.in_bytes.c:.3f} in bytes (at best {ceiling:.2f}x at alpha .80, k = {k}), "
            f"{self.in_time.c:.3f} in time ({here:.2f}x, k = {here_k}){''.join(f'; {mark}' for mark in marks)}"
        )

    def _widths(self) -> str:
        """What else got smaller."""
        pairs = [("FFN", self.target.ffn, self.drafter.ffn), ("heads", self.target.heads, self.drafter.heads)]
        said = [f", {name} {_change(before, after)}" for name, before, after in pairs if before != after]
        return "".join(said) + (f", {self.drafter.bits:.2g} bits" if self.drafter.bits < self.target.bits else "")

    def lines(self) -> list[str]:
        """For the terminal: a table of steps, the two models of what it gains, whether it fits, warnings."""
        first = f"{self.name}: {self.summary()}"
        head = ("step", "layers", "parameters", "weights", "c, bytes", "peak memory", "time")
        rows = [head, *(_row(step) for step in self.steps)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        table = [
            "  ".join(["", row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
        ]
        t_v = self.in_time.verify(VERIFIED)
        return [
            first,
            *table,
            f"  best speedup at alpha           {''.join(f'{alpha:.2f}'.lstrip('0').ljust(10) for alpha in ALPHAS)}c",
            f"    in bytes, on any hardware     {_best(self.in_bytes)}",
            f"    in time, with this engine     {_best(self.in_time)}",
            f"  a step of the target {seconds(self.in_time.target_s)}, of the drafter {seconds(self.in_time.draft_s)}; "
            f"verifying {VERIFIED + 1} tokens costs {t_v:.2f} steps; {self.dtype}, batch 1",
            f"  profile: {self.profile.words}",
            f"  {self._fit()}",
            *(f"  warning: {warning}" for warning in self.warnings),
        ]

    def _fit(self) -> str:
        memory = f"peak memory {size(self.peak_memory_bytes)} of {size(self.profile.memory_bytes)}"
        disk = f"disk {size(self.disk_bytes)}"
        disk += f" of {size(self.disk_free_bytes)} free" if self.disk_free_bytes is not None else ""
        if self.faults:
            return f"does not fit: {'; '.join(self.faults)}"
        return f"fits: {memory}, {disk}, about {seconds(self.seconds)} in all"

    def record(self) -> dict[str, Any]:
        """For the manifest and for --json."""
        return {
            "profile": self.profile.record(),
            "dtype": self.dtype,
            "steps": [_step_record(step) for step in self.steps],
            "c_bytes": self.in_bytes.c,
            "c_time": self.in_time.c,
            "target_step_s": self.in_time.target_s,
            "draft_step_s": self.in_time.draft_s,
            "verify_steps": {str(k): self.in_time.verify(k) for k in (1, 2, 4, 8)},
            "best": {kind: _best_record(costs) for kind, costs in (("bytes", self.in_bytes), ("time", self.in_time))},
            "peak_memory_bytes": round(self.peak_memory_bytes),
            "seconds": self.seconds,
            "disk_bytes": round(self.disk_bytes),
            "fits": self.fits,
            "faults": list(self.faults),
            "warnings": list(self.warnings),
        }


def forecast_recipe(
    loaded: Loaded, profile: DeviceProfile, *, config: dict[str, Any] | None = None, out: Path | None = None
) -> Forecast | None:
    """The forecast of one candidate; None where no config.json of the target is at hand (say WITHOUT_CONFIG).

    The config is `config`, the recipe's own, a target folder's, or the Hub's where that is reachable. `out` is
    where the build would write: without it free disk is not looked at, as is right for another machine.
    Raises UnsupportedModel, with the file and line of the stage that cannot be done.
    """
    recipe = loaded.recipe
    config = config or loaded.target_config()
    if config is None and recipe.target.model is not None and not Path(recipe.target.model).is_dir():
        config = hub_config(recipe.target.model, recipe.target.revision)
    if config is None:
        return None
    dtype = profile.default_dtype(recipe.target.dtype)
    place = loaded.document.place(("target",))
    try:
        given = before = shape_from_config(stored_as(config, recipe.target.dtype))
        target = served(given, dtype)
        text = text_of(recipe.data)
        steps = [Step("target", given, 1.0, None)]
        if text is not None and text.new_tokens and any(stage.needs_text for stage in recipe.stages):
            steps.append(Step("text", given, 1.0, writing(text, target, profile, dtype)))
        for settings in dict.fromkeys(stage.cached for stage in recipe.stages):
            if text is not None and settings is not None:
                effort = caching(text, settings, target, profile, dtype)
                steps.append(Step("teacher", given, 1.0, effort, settings))
        for index, stage in enumerate(recipe.stages):
            place = loaded.place(index)
            stage.require(config)
            after = stage.forecast(before)
            runs = served(after, dtype)
            effort = effort_of(stage, served(before, dtype), runs, target, text, profile, dtype)
            effort = replace(effort, disk_bytes=effort.disk_bytes - runs.weight_bytes + after.weight_bytes)
            steps.append(Step(stage.kind, after, cost_ratio(runs, target), effort))
            before = after
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{place}: {error}") from None
    free = free_bytes(out) if out is not None else None
    disk = sum(step.effort.disk_bytes for step in steps if step.effort) + before.weight_bytes
    download = 0.0 if Path(recipe.target.model or "").is_dir() else shape_from_config(config).weight_bytes
    disk += download
    drafter = served(before, dtype)
    in_bytes, in_time = costs_in_bytes(drafter, target), costs_in_time(drafter, target, profile, dtype)
    memory = max(steps[1:], key=lambda step: step.effort.memory_bytes if step.effort else 0)
    needed = memory.effort.memory_bytes if memory.effort else 0.0
    warnings = _warnings(in_bytes, in_time, before, profile)
    available, total = profile.available_bytes, profile.memory_bytes
    if available is not None and total is not None and available < needed <= total:
        warnings.append(f"{memory.what} needs {size(needed)} of memory, and {size(available)} are free now")
    if recipe.data and isinstance(recipe.data.prompts, HubPrompts):
        asked = recipe.data.prompts.samples
        if text is not None and asked is not None and text.new_tokens and text.rows < asked:
            warnings.append(
                f"of {asked:,} prompts the target continues {text.rows:,}: set data.samples to what it should write"
            )
        warnings.append(
            f"time and memory take the prompts for {PROMPT_TOKENS} tokens each: a dataset is not read for a forecast"
        )
    return Forecast(
        name=loaded.name,
        profile=profile,
        dtype=dtype,
        steps=tuple(steps),
        in_bytes=in_bytes,
        in_time=in_time,
        disk_bytes=disk,
        download_bytes=download,
        disk_free_bytes=free,
        warnings=tuple(warnings),
        faults=tuple(_faults(memory.what, needed, disk, free, profile)),
    )


def _warnings(in_bytes: Costs, in_time: Costs, drafter: Shape, profile: DeviceProfile) -> list[str]:
    """What a user should hear before paying for it."""
    found = []
    ceiling, here = in_bytes.best(0.8)[0], in_time.best(0.8)[0]
    if ceiling < LOW_CEILING:
        found.append(
            f"the ceiling is low: at alpha .80 this drafter brings at best {ceiling:.2f}x even where only bytes count, "
            f"since a draft step reads {in_bytes.c:.0%} of the target's bytes; keep fewer layers or narrower ones"
        )
    elif here < LOW_CEILING:
        found.append(
            f"this engine on this device would bring {here:.2f}x at alpha .80 of the {ceiling:.2f}x that the "
            "bytes allow: what a layer costs besides its bytes decides; fewer layers help, fewer bits do not"
        )
    if unpacked(drafter, profile):
        found.append("on a CPU only 4-bit layers are read as they are stored; these save memory, not time")
    return found


def _faults(what: str, needed: float, disk: float, free: int | None, profile: DeviceProfile) -> list[str]:
    found = []
    if profile.memory_bytes is not None and needed > profile.memory_bytes:
        found.append(
            f"{what} needs about {size(needed)} of memory, and {profile.name} has {size(profile.memory_bytes)}; "
            "keep less, lower `batch`, or build on a larger device"
        )
    if free is not None and disk > free:
        found.append(f"it needs about {size(disk)} of disk, and {size(free)} are free; give another --out")
    return found


def _row(step: Step) -> Sequence[str]:
    shape, effort = step.shape, step.effort
    cells = (step.what, str(shape.layers), count(shape.parameters), size(shape.weight_bytes), f"{step.c_bytes:.3f}")
    return (*cells, size(effort.memory_bytes) if effort else "", seconds(effort.seconds) if effort else "")


def _change(before: int, after: int) -> str:
    return str(after) if before == after else f"{before} -> {after}"


def _best(costs: Costs) -> str:
    return "".join(f"{best:.2f}x@{k}".ljust(10) for best, k in map(costs.best, ALPHAS)) + f"{costs.c:.3f}"


def _best_record(costs: Costs) -> list[dict[str, float]]:
    return [{"alpha": alpha, "speedup": best, "k": k} for alpha in ALPHAS for best, k in [costs.best(alpha)]]


def _step_record(step: Step) -> dict[str, Any]:
    shape, effort = step.shape, step.effort
    return {
        "step": step.what,
        "layers": shape.layers,
        "parameters": shape.parameters,
        "weight_bytes": round(shape.weight_bytes),
        "c_bytes": step.c_bytes,
        "peak_memory_bytes": round(effort.memory_bytes) if effort else None,
        "seconds": effort.seconds if effort else None,
    }
