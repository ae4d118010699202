"""Ctrl-C and SIGTERM end a command within two seconds, whatever it is at.

Python hears a signal between two steps of its main thread: not within a long product, nor while it waits for a
download's threads; and a library may swallow what is raised there. So a signal's number goes through a pipe as well,
which Python's C handler writes into at once. A thread at its other end ends the process where that has not ended of
itself within a second. To builds and evaluations that is a kill, and they are made to survive one.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from factory.processes import is_first, world_size

GRACE_S = 1.0  # to come to an end in good order
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\033[?25h"


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread at the first signal."""


class _Watch:
    """What this process does about signals; one for all of it."""

    def __init__(self) -> None:
        self.on = False
        self.screen = 2  # the descriptor that words go to
        self.number = 0  # the signal that came
        self.held = 0
        self.ending = threading.Lock()


_watch = _Watch()


def watch() -> None:
    """From now on signals end this process, saying `words()` on stderr. For its beginning; again, it does nothing."""
    if _watch.on:
        return
    _watch.on = True
    heard, heard_by_c = os.pipe()
    os.set_blocking(heard_by_c, False)
    signal.set_wakeup_fd(heard_by_c, warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # what a script starts with & is not to hear Ctrl-C
            signal.signal(number, _on_signal)
    threading.Thread(target=_guard, args=(heard,), daemon=True, name="interrupts").start()


def words() -> str:
    """How to go on, with the very command. Of several processes launched together the first one speaks."""
    kept = "interrupted: what is finished is kept"
    if world_size() > 1:
        return f"{kept}; launched again in the same way, it goes on from there" if is_first() else ""
    name = "python -m factory" if sys.argv[0].endswith("__main__.py") else "factory"
    return f"{kept}; to go on from there: {shlex.join([*name.split(), *sys.argv[1:]])}"


def watching() -> bool:
    """Whether this process is watched: it is a command's own, and not a test's or another program's."""
    return _watch.on


def speak_on(descriptor: int) -> None:
    """The words go to this descriptor: stderr's own may have been turned elsewhere."""
    _watch.screen = descriptor


@contextmanager
def held() -> Iterator[None]:
    """A signal within the body is raised behind it: for the few lines that must not be left halfway."""
    _watch.held += 1
    try:
        yield
    finally:
        _watch.held -= 1
    if _watch.number and not _watch.held:
        raise Interrupted


@contextmanager
def left_to_python() -> Iterator[None]:
    """Within the body Ctrl-C is a KeyboardInterrupt that may be caught, and nobody ends the process for it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler) if watching() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def end_where_interrupted() -> None:
    """The end of a process that a signal came to, without waiting for threads; nothing where none came."""
    if _watch.number:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue
        _end(_watch.number)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _watch.number or _importing(frame):  # asked twice; or there is nothing yet to bring to an end
        _end(number)
    _watch.number = number
    # What breaks off on the way out is no news: neither in a callback nor in another thread.
    sys.unraisablehook = lambda _: None
    threading.excepthook = lambda _: None
    if not _watch.held:
        raise Interrupted


def _importing(frame: FrameType | None) -> bool:
    """Whether the main thread is in an import: what is raised in torch's own would abort the process."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _guard(heard: int) -> None:
    while True:
        number = os.read(heard, 1)[0]
        if number in SIGNALS and signal.getsignal(number) is _on_signal:
            time.sleep(GRACE_S)
            _end(number)


def _end(number: int) -> NoReturn:
    """Say the words, once, and end: past all buffers and locks, which whoever is stuck may hold."""
    if _watch.ending.acquire(blocking=False):
        said, shown = words(), _SHOW_CURSOR if os.isatty(_watch.screen) else b""
        with suppress(OSError):  # nobody reads it any more
            os.write(_watch.screen, shown + (f"\n{said}\n".encode() if said else b""))
    else:
        time.sleep(GRACE_S)  # another thread is just saying them
    os._exit(128 + number)
