"""How a long step shows how far it is: bars on a terminal, plain lines in a pipe. On stderr.

Both say how fast it goes and how long it will take, by what the last minute brought.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TextIO

from factory import logs

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, TaskID

# (done, total, what is being shown); what follows a comma in it is a reading that may change: "distilling, loss 2.1"
Progress = Callable[[int, int, str], None]

EVERY_S = 10.0  # a line in a pipe
_LOOKS_BACK_S = 60.0
_SOME_BYTES = 100_000_000


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Progress]:
    """What a long step calls as it goes on. What libraries print meanwhile goes aside (`factory.logs`)."""
    stream = logs.screen()
    shown: AbstractContextManager[Progress]
    if quiet:
        shown = nullcontext(silent)
    elif stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown"):
        shown = _bars(stream)
    else:
        shown = _lines(stream)
    with shown as progress, logs.aside():
        yield progress


def silent(_done: int, _total: int, _what: str) -> None:
    """Progress that nobody looks at."""


@contextmanager
def step(progress: Progress, what: str) -> Iterator[None]:
    """One thing whose middle nobody can tell: that it began, and that it is done."""
    progress(0, 1, what)
    yield
    progress(1, 1, what)


def bytes_shown(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    """Takes how many bytes more are done, out of so many, and shows megabytes; nothing of what is read in no time."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        if total >= _SOME_BYTES:
            progress(done // 1_000_000, total // 1_000_000, f"{what}, MB")

    more(0)
    return more


class Pace:
    """How fast one thing goes. What was there when it was first shown took no time, so it does not count."""

    def __init__(self, done: int, now_s: float) -> None:
        self.began_s = now_s
        self.done = done
        self._looks = deque([(now_s, done)])

    def look(self, done: int, now_s: float) -> None:
        """So much is done now."""
        self.done = done
        self._looks.append((now_s, done))
        while len(self._looks) > 2 and now_s - self._looks[1][0] > _LOOKS_BACK_S:
            self._looks.popleft()

    def per_s(self, now_s: float) -> float:
        """Pieces a second; 0 where nothing is known."""
        since_s, from_done = self._looks[0]
        return (self.done - from_done) / (now_s - since_s) if now_s > since_s else 0.0

    def words(self, total: int, now_s: float) -> str:
        """Rate and time left, or what it took; empty where there is nothing to say yet."""
        rate, took_s = self.per_s(now_s), now_s - self.began_s
        if self.done >= total:
            return f"took {duration(took_s)}" if took_s >= 1 else ""
        if rate > 0:
            return f"{speed(rate)}, {duration((total - self.done) / rate)} left"
        return f"{duration(took_s)} so far" if took_s >= 1 else ""


def speed(rate: float) -> str:
    """`12/s`, `3.4/s`; what is slower than one a second by how long each takes: `2.5 s each`."""
    if rate >= 1:
        return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"
    return f"{duration(1 / rate)} each" if rate <= 0.1 else f"{1 / rate:.1f} s each"


def duration(seconds: float) -> str:
    """`9 s`, `2:05`, `1:02:05`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _name(what: str) -> str:
    return what.split(",", 1)[0]


class Lines:
    """Plain lines: at the start and end of each thing, and now and then between, even where nothing moves."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._paces: dict[str, Pace] = {}  # of what is not finished
        self._last: dict[str, tuple[int, str]] = {}  # its total and words
        self._told_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int, what: str) -> None:
        """As `Progress`."""
        now_s, name = time.monotonic(), _name(what)
        with self._lock:
            begins = name not in self._paces
            if begins:
                self._paces[name] = Pace(done, now_s)
            else:
                self._paces[name].look(done, now_s)
            self._last[name] = (total, what)
            if begins or done >= total or now_s - self._told_s[name] >= EVERY_S:
                self._tell(name, now_s)
            if done >= total:
                del self._paces[name], self._last[name], self._told_s[name]

    def remind(self) -> None:
        """Say where the one thing is that has been silent for longest, if that is too long."""
        now_s = time.monotonic()
        with self._lock:
            if self._told_s and now_s - max(self._told_s.values()) >= EVERY_S:
                self._tell(max(self._told_s, key=lambda name: self._told_s[name]), now_s)

    def _tell(self, name: str, now_s: float) -> None:
        total, what = self._last[name]
        self._told_s[name] = now_s
        pace = self._paces[name]
        self._write(_line(pace, total, what, now_s))


@contextmanager
def _lines(stream: TextIO) -> Iterator[Progress]:
    def write(line: str) -> None:
        print(line, file=stream, flush=True)

    lines, ended = Lines(write), threading.Event()

    def remind() -> None:
        while not ended.wait(1.0):
            lines.remind()

    threading.Thread(target=remind, daemon=True, name="progress").start()
    try:
        yield lines
    finally:
        ended.set()


@contextmanager
def _bars(stream: TextIO) -> Iterator[Progress]:
    """A bar for each thing that is going on; one that is finished becomes a line above."""
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    console = Console(file=stream)
    name = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns: list[str | progress.ProgressColumn] = [
        progress.SpinnerColumn("line"),
        progress.TextColumn("{task.description}", markup=False, table_column=name),
        progress.MofNCompleteColumn(),
        _pace_column(),
    ]
    if console.width >= 100:
        columns.insert(2, progress.BarColumn(bar_width=min(40, console.width // 5)))
    bars = progress.Progress(
        *columns,
        console=console,
        refresh_per_second=2,  # few: they share the processor with what is being measured
        redirect_stdout=False,
        redirect_stderr=logs.verbose(),  # what libraries say then goes above the bars
        expand=True,
    )

    def above(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    with bars, logs.shown_by(above):
        tasks: dict[str, TaskID] = {}
        paces: dict[str, Pace] = {}

        def draw(done: int, total: int, what: str) -> None:
            now_s, name = time.monotonic(), _name(what)
            if name not in tasks:
                paces[name] = Pace(done, now_s)
                tasks[name] = bars.add_task(what, total=total, pace=paces[name])
            paces[name].look(done, now_s)
            bars.update(tasks[name], completed=done, total=total, description=what)
            if done >= total:
                bars.remove_task(tasks.pop(name))
                above(_line(paces.pop(name), total, what, now_s))

        yield draw


def _pace_column() -> ProgressColumn:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class PaceColumn(ProgressColumn):
        """Rate and time left, as they are when it is drawn."""

        def render(self, task: Task) -> Text:
            """For one bar."""
            words = task.fields["pace"].words(int(task.total or 0), time.monotonic())
            return Text(words or " ", style="progress.remaining")  # rich cuts the others where a column is empty

    return PaceColumn()


def _line(pace: Pace, total: int, what: str, now_s: float) -> str:
    words = pace.words(total, now_s)
    if total <= 1:  # of one thing there is nothing to count
        return f"{what}: {words or 'done'}" if pace.done >= total or words else f"{what} ..."
    return f"{what}: {pace.done}/{total}" + (f", {words}" if words else "")
