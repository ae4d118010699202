"""Whether what a build still has to do fits into this machine: known before anything is begun, from sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from factory.building.job import FACTS, Job, Progress
from factory.building.tasks import Task, tasks_of, wanted
from factory.data.prompts import Entry
from factory.errors import FactoryError, ModelError
from factory.files.disk import free_bytes
from factory.forecasting import profile
from factory.forecasting.amounts import Effort
from factory.forecasting.estimate import Forecast, forecast_recipe
from factory.hub import snapshot
from factory.models.located import Located, require_complete
from factory.recipes.recipe import Loaded
from factory.teaching.teacher_shards import lying_bytes
from factory.wording import size

_REMEDY = "to build it all the same, say --yes"


def require_room_for_download(candidates: Sequence[Loaded], out: Path, progress: Progress, jobs: int) -> None:
    """Raises FactoryError where a target that is still to come from the Hub, and all that is made of it, cannot fit.

    Before its weights are here no digest is known, so everything is taken to be still to do.
    """
    first = candidates[0]
    target = first.require_target()
    if Path(target).is_dir():
        return
    here = 0.0
    folder = snapshot(target, first.recipe.target.revision)
    if folder is not None:
        try:
            require_complete(folder)
        except ModelError:
            here = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        else:
            return
    forecast = forecast_recipe(first, profile.load())
    if forecast is None:
        return
    made = [_unseen(loaded, target, out, progress) for loaded in candidates]
    missing = {name: count for job in made for name, count in wanted(job).items()}
    require_room(tasks_of(made, missing), made, jobs, download_bytes=max(0.0, forecast.download_bytes - here))


def _unseen(loaded: Loaded, target: str, out: Path, progress: Progress) -> Job:
    """A job whose target is not here yet: equal work has equal digests in it, but not those that it will have."""
    data = loaded.recipe.data
    entries = [Entry("", data.model_dump_json(include={"prompts"}))] if data else None
    return Job(loaded, Located(Path(target), None), "", {}, out, entries, progress)


def require_room(
    tasks: Sequence[Task], made: Sequence[Job], jobs: int, download_bytes: float = 0.0, together: int = 1
) -> None:
    """Raises FactoryError where these tasks are forecast not to fit into this machine's memory or `out`'s disk.

    Memory: that of the largest tasks, of as many as `jobs` processes do at once; each holds its own target, and so does
    each of those launched `together`, which share a CPU's memory but no accelerator's. Disk:
    what every task leaves behind, and the checkpoints of those that run at once; what an earlier try left is there.
    """
    here = profile.load()
    forecasts = [forecast_recipe(job.loaded, here, config=job.config or None) for job in made]
    at_once = min(jobs, sum(task.kind == "artifact" for task in tasks))
    memory, passing, disk = [(0.0, "")], [0.0], download_bytes
    for task in tasks:
        job, forecast = made[task.job], forecasts[task.job]
        if forecast is None:
            return
        effort, stays = _needs(task, job, forecast)
        lying = _lying_bytes(task, job)
        disk += stays if task.kind == "stage" else max(0.0, stays - lying)
        passing.append(max(0.0, effort.disk_bytes - stays - lying) if task.kind == "stage" else 0.0)
        doing = str(job.recipe.stages[task.count - 1].kind if task.kind == "stage" else task.kind)
        memory.append((effort.memory_bytes, f"{job.name}: {doing}"))
    memory.sort(reverse=True)
    disk += sum(sorted(passing, reverse=True)[:at_once])
    needed, (largest, what) = sum(each for each, _ in memory[:at_once]), memory[0]
    limit, free, faults = here.memory_bytes, free_bytes(made[0].out), []
    if limit is not None and largest > limit:
        faults.append(
            f"{what} needs about {size(largest)} of memory, and {here.name} has {size(limit)}; "
            "keep less, lower `batch`, or build on a larger device"
        )
    elif limit is not None and needed > limit:
        said = f"{at_once} processes at once need about {size(needed)} of memory"
        faults.append(f"{said}, and {here.name} has {size(limit)}; give a smaller --jobs")
    elif limit is not None and here.kind == "cpu" and together * largest > limit:
        said = (
            f"{together} processes need about {size(together * largest)} of memory, and {here.name} has {size(limit)}"
        )
        faults.append(f"{said}; launch fewer")
    if free is not None and disk > free:
        faults.append(
            f"what is left to do needs about {size(disk)} of disk, and {size(free)} are free; give another --out"
        )
    if faults:
        raise FactoryError("\n".join([*faults, _REMEDY]))


def _needs(task: Task, job: Job, forecast: Forecast) -> tuple[Effort, float]:
    """What a task takes, and the bytes that it leaves behind."""
    nothing = Effort(0.0, 0.0, 0.0)
    if task.kind == "text":
        effort = next((step.effort for step in forecast.steps if step.what == "text"), None) or nothing
        return (nothing, 0.0) if _is_written(job) else (effort, effort.disk_bytes)
    if task.kind == "teacher":
        asked = job.recipe.stages[task.count - 1].cached
        effort = next((step.effort for step in forecast.steps if step.cache == asked), None) or nothing
        return effort, effort.disk_bytes
    step = forecast.steps[len(forecast.steps) - len(job.recipe.stages) + task.count - 1]
    effort = step.effort if task.kind == "stage" and step.effort else nothing
    return effort, step.shape.weight_bytes


def _is_written(job: Job) -> bool:
    """Whether the whole text lies there: what is known of it is written down last."""
    return (job.text_folder / FACTS).is_file()


def _lying_bytes(task: Task, job: Job) -> int:
    """What an earlier try left of a task: shards of a text or of a teacher cache, a training stage's checkpoint."""
    if task.kind == "text":
        files = list(job.text_folder.glob("shard-*.parquet"))
    elif task.kind == "teacher":
        return lying_bytes(job.teacher_folder(job.recipe.stages[task.count - 1]))
    elif task.kind == "stage":
        folder = job.stage_folder(task.count)
        files = list(folder.with_name(folder.name + ".working").glob("checkpoint.pt"))
    else:
        files = []
    return sum(file.stat().st_size for file in files)
