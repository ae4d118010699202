"""Carries tasks out, here or in processes of their own; one that fails does not stop those that do not need it.

The processes are spawned, since torch's threads do not survive a fork. They end with the build,
however it ends: they hear nothing of Ctrl-C themselves, and where the build is killed they notice at
once. Each keeps one workshop, so that it loads the target once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory import logs
from factory.building.job import Job, Progress
from factory.building.tasks import Task
from factory.errors import FactoryError
from factory.files.disk import DiskError, disk_errors
from factory.interrupts import held
from factory.processes import ALONE, Processes
from factory.progress import silent, step

if TYPE_CHECKING:
    from factory.building.workshop import Workshop

Failures = dict[str, Exception]  # by key of the task


class Bench:
    """One process's place of work: a workshop that turns from job to job, its target staying loaded."""

    def __init__(self, jobs: Sequence[Job], together: Processes = ALONE) -> None:
        self._jobs, self._together = jobs, together
        self._workshop: Workshop | None = None

    def do(self, task: Task) -> None:
        """Carry one task out. Raises FactoryError; DiskError where all that follows would fail too."""
        job = self._jobs[task.job]
        with disk_errors(job.out):
            if self._workshop is None:
                job.progress(0, 1, "starting")
                from factory.building.workshop import Workshop  # torch: only where there is something to do
                from factory.models import loading as models  # noqa: F401 - quietens transformers before it is imported

                self._workshop = Workshop(job, self._together)
                job.progress(1, 1, "starting")
            else:
                self._workshop.turn_to(job)
            if task.kind == "text":
                self._workshop.write_text()
            elif task.kind == "teacher":
                self._workshop.write_teacher(task.count)
            elif task.kind == "stage":
                self._workshop.run_stage(task.count)
            else:
                if self._together.first:
                    with step(job.progress, "putting the artifact together"):
                        self._workshop.assemble(task.name, task.count)
                self._together.wait()


def carry_out(
    tasks: Sequence[Task],
    jobs: Sequence[Job],
    progress: Progress,
    processes: int,
    lock: int | None,
    together: Processes = ALONE,
) -> Failures:
    """Do all tasks that can be done, in at most that many processes, each with the `lock`; what failed, by key.

    Launched `together` with others, every process does all tasks in this order. Then a failure ends the build
    at once: those that wait for this process cannot go on without it, and their launcher ends them.
    """
    processes = min(processes, len(tasks))
    shown = [replace(job, progress=_labelled(job, jobs, progress)) for job in jobs]
    if together.world > 1:
        bench = Bench(shown, together)
        for task in tasks:
            bench.do(task)
        return {}
    if processes <= 1:
        return _here(tasks, Bench(shown))
    assert lock is not None
    return _elsewhere(tasks, jobs, [job.progress for job in shown], processes, lock)


def _labelled(job: Job, jobs: Sequence[Job], progress: Progress) -> Progress:
    """Where there are several candidates, each says which one it is."""
    if len(jobs) == 1:
        return progress
    label = job.name.removeprefix(f"{job.recipe.name}--")
    return lambda done, total, what: progress(done, total, f"{label}: {what}")


def _here(tasks: Sequence[Task], bench: Bench) -> Failures:
    queue = _Queue(tasks)
    while (task := queue.take()) is not None:
        try:
            bench.do(task)
            queue.finished(task)
        except Exception as error:
            queue.failed(task, error)
    return queue.failures


class _Queue:
    """Which task is next: the first whose needs are done. After a DiskError nothing is begun any more."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._left = list(tasks)
        self._undone = {task.key for task in tasks}
        self.failures: Failures = {}

    def take(self) -> Task | None:
        """The next task, or None where none can be begun now."""
        for task in self._left:
            if not self._undone.intersection(task.needs):
                self._left.remove(task)
                return task
        return None

    def finished(self, task: Task) -> None:
        """What waited for it may begin."""
        self._undone.discard(task.key)

    def failed(self, task: Task, error: Exception) -> None:
        """What needs it never begins."""
        self.failures[task.key] = error
        if isinstance(error, DiskError):
            self._left = []


class _Inherited:
    """A descriptor that a process is born with: pickled here, it is an open number of the same file there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _detached, (DupFd(self._descriptor),)


def _detached(duplicate: Any) -> int:
    return int(duplicate.detach())


class _Worker:
    """A process and the line to it."""

    def __init__(self, jobs: Sequence[Job], threads: int | None, share: int, lock: int) -> None:
        context = get_context("spawn")
        self.line, end = context.Pipe()
        self.task: Task | None = None
        self.process: BaseProcess = context.Process(
            target=_work,
            args=(end, jobs, threads, share, _Inherited(lock), logs.given_on()),
            daemon=True,
            name="factory worker",
        )
        with held(), _ctrl_c_kept_from_children():
            self.process.start()
        end.close()  # so that the line ends with the process

    def give(self, task: Task) -> None:
        """Begin a task. A process that has ended meanwhile is heard of where its line is listened to."""
        self.task = task
        with suppress(BrokenPipeError):
            self.line.send(task)


def _elsewhere(
    tasks: Sequence[Task], jobs: Sequence[Job], progress: Sequence[Progress], processes: int, lock: int
) -> Failures:
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else None
    mute = [replace(job, progress=silent) for job in jobs]
    queue = _Queue(tasks)
    workers: list[_Worker] = []
    try:
        while True:
            while sum(worker.task is not None for worker in workers) < processes and (task := queue.take()):
                idle = next((worker for worker in workers if worker.task is None), None)
                if idle is None:
                    idle = _Worker(mute, threads, processes, lock)
                    workers.append(idle)
                idle.give(task)
            busy = {worker.line: worker for worker in workers if worker.task is not None}
            if not busy:
                return queue.failures
            for line in connection.wait(list(busy)):
                worker = busy[line]  # type: ignore[index]
                if not _heard(worker, queue, progress):
                    workers.remove(worker)
    finally:
        for worker in workers:
            worker.process.kill()  # what it was at is safe: every file is written whole or not at all
        for worker in workers:
            worker.process.join()


def _heard(worker: _Worker, queue: _Queue, progress: Sequence[Progress]) -> bool:
    """Take one message of a worker; whether it still lives."""
    task = worker.task
    assert task is not None
    try:
        what, content = worker.line.recv()
    except (EOFError, OSError):
        worker.process.join()
        reason = f"process {worker.process.pid} of the build ended with {_ending(worker.process.exitcode)}"
        queue.failed(task, FactoryError(f"{reason}; if memory is short, give a smaller --jobs, then run it again"))
        return False
    if what == "progress":
        progress[task.job](*content)
        return True
    worker.task = None
    if what == "done":
        queue.finished(task)
    else:
        queue.failed(task, content)
    return True


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


@contextmanager
def _ctrl_c_kept_from_children() -> Iterator[None]:
    """A terminal sends Ctrl-C to every process; only the build itself is to hear it. The mask is inherited."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    line: Any, jobs: Sequence[Job], threads: int | None, share: int, _lock: int, log: tuple[Path | None, bool]
) -> None:
    """A process's whole life, the lock open as long as it lives. `share` is how many of them share the threads."""
    threading.Thread(target=_end_with_the_build, daemon=True).start()
    logs.join(log)
    from factory.models import loading as models  # noqa: F401 - quietens transformers before it is imported

    import torch  # isort: skip

    torch.set_num_threads(max(1, (threads or torch.get_num_threads()) // share))

    def report(done: int, total: int, what: str) -> None:
        line.send(("progress", (done, total, what)))

    bench = Bench([replace(job, progress=report) for job in jobs])
    while True:
        try:
            task = line.recv()
        except EOFError:
            return
        try:
            bench.do(task)
            line.send(("done", None))
        except FactoryError as error:
            line.send(("failed", error))
        except Exception as error:  # a fault of this program: its traceback would be lost on the way
            told = RuntimeError(f"{type(error).__name__}: {error}")
            told.add_note(traceback.format_exc())
            line.send(("failed", told))


def _end_with_the_build() -> None:
    """Whoever kills the build kills this process: nothing is to be written when nobody holds the lock."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
    os._exit(1)
