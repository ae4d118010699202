"""How a long step shows how far it is: bars on a terminal, plain lines in a pipe. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# (done, total, what is being shown); what follows a comma in it is a reading that may change: "distilling, loss 2.1"
Progress = Callable[[int, int, str], None]


def silent(_done: int, _total: int, _what: str) -> None:
    """Progress that nobody looks at."""


def _name(what: str) -> str:
    return what.split(",", 1)[0]


class _Lines:
    """Progress for a pipe or a log file: one line at the start and end of each thing, and one now and then between."""

    _EVERY_S = 10.0

    def __init__(self) -> None:
        self._what = ""
        self._began_s = self._told_s = 0.0
        self._began_at = 0

    def __call__(self, done: int, total: int, what: str) -> None:
        now_s = time.monotonic()
        begins = _name(what) != self._what
        if begins:
            self._what, self._began_s, self._began_at = _name(what), now_s, done
        elif done < total and now_s - self._told_s < self._EVERY_S:
            return
        self._told_s = now_s
        left = ""
        if self._began_at < done < total:
            left = f", {(now_s - self._began_s) / (done - self._began_at) * (total - done):.0f} s left"
        print(f"{what}: {done}/{total}{left}", file=sys.stderr, flush=True)  # noqa: T201 - this is the display


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Progress]:
    """What a long step calls as it goes on; with the time left, where that can be told."""
    if quiet:
        yield lambda done, total, what: None
        return
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("left"),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, progress.TaskID] = {}

        def draw(done: int, total: int, what: str) -> None:
            name = _name(what)
            if name not in tasks:
                tasks[name] = bars.add_task(what, total=total)
            bars.update(tasks[name], completed=done, total=total, description=what)

        yield draw
