"""A build as a tree of tasks: what candidates share is one task, done once.

The target's text, its predictions on it where they are kept, each distinct prefix of stages, each
artifact. Knows what needs what and what is already there; how a task is carried out is the
workshop's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from factory.building.job import Job, is_sound
from factory.stages import TrainingStage
from factory.teaching.teacher_shards import is_finished


@dataclass(frozen=True)
class Task:
    """One thing to make, for one job and for every other that shares it."""

    key: str  # equal for equal work
    kind: Literal["text", "teacher", "stage", "artifact"]
    job: int  # index of the first job that wants it
    count: int = 0  # stages it has behind it, its own counted; of a teacher cache: of the stage that reads it
    name: str = ""  # of the artifact
    needs: tuple[str, ...] = ()  # keys of tasks to be done before it


def wanted(job: Job) -> dict[str, int]:
    """The artifacts of a job by name, and how many stages each has behind it."""
    stages = job.recipe.stages
    names = {job.name: len(stages)}
    if job.recipe.keep_raw:
        names[f"{job.name}--raw"] = next(i for i, stage in enumerate(stages) if isinstance(stage, TrainingStage))
    return names


def tasks_of(jobs: Sequence[Job], missing: Mapping[str, int]) -> list[Task]:
    """What is left to do for the artifacts that are missing, each task after those it needs.

    Results of stages that are there and sound are no task, nor is a finished teacher cache; nor what no such stage
    would read.
    """
    tasks: dict[str, Task] = {}
    sound: dict[str, bool] = {}
    for index, job in enumerate(jobs):
        for name, count in wanted(job).items():
            if name in missing:
                for task in _for_artifact(index, job, name, count, sound):
                    tasks.setdefault(task.key, task)
    return list(tasks.values())


def _for_artifact(index: int, job: Job, name: str, count: int, sound: dict[str, bool]) -> Iterator[Task]:
    before: tuple[str, ...] = ()
    for place in range(1, count + 1):
        digest = job.chain[place - 1]
        if digest not in sound:
            sound[digest] = is_sound(job.stage_folder(place))
        if sound[digest]:
            continue
        needs = before
        stage = job.recipe.stages[place - 1]
        if stage.needs_text:
            text = Task(f"text {job.text_digest}", "text", index)
            yield text
            needs = (*needs, text.key)
            if stage.cached is not None and not is_finished(job.teacher_folder(stage)):
                key = f"teacher {job.teacher_digest(stage)}"
                yield Task(key, "teacher", index, count=place, needs=(text.key,))
                needs = (*needs, key)
        yield Task(f"stage {digest}", "stage", index, count=place, needs=needs)
        before = (f"stage {digest}",)
    yield Task(f"artifact {name}", "artifact", index, count=count, name=name, needs=before)


def wanting(tasks: Sequence[Task], failed: str) -> set[str]:
    """The artifacts that cannot be made where the task with that key failed."""
    lost = {failed}
    for task in tasks:  # each stands behind all that it needs
        if lost.intersection(task.needs):
            lost.add(task.key)
    return {task.name for task in tasks if task.kind == "artifact" and task.key in lost}
