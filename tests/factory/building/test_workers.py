"""Processes that end before they are given something to do."""

import os
from pathlib import Path

from factory.building.tasks import Task
from factory.building.workers import _heard, _Queue, _Worker


def test_one_that_died_idle_is_heard_of_and_its_task_fails(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    try:
        worker = _Worker([], 1, 1, descriptor)
    finally:
        os.close(descriptor)
    worker.process.kill()
    worker.process.join()
    task = Task("key", "text", 0)
    queue = _Queue([task])
    worker.give(task)  # a broken pipe here would end the command without a word
    assert not _heard(worker, queue, [])
    assert "ended with SIGKILL; if memory is short" in str(queue.failures["key"])
