"""What libraries print, warn of and log, and this program's own log: in a file of the cache folder, off the screen.

A command's process turns descriptor 2 to the file (C++ writes there whatever Python says), keeps the screen for what
this program says itself, and gives `sys.stdout` and `sys.stderr` to the file too while libraries are at work. A program
that imports this one keeps its streams: there libraries are told to be quiet, and nothing more.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO, cast

from factory import interrupts

OWN = ("factory", "eval")
KEPT_FILES = 20
MOST_BYTES = 16 << 20  # of one file, as far as Python writes it
_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Bars of their own, which would go over ours; read when each library is imported.
_NO_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")

# They have a line for each request or file.
_TALKATIVE = ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "matplotlib", "fsspec", "PIL")


class _State:
    """What this process does about logs; one for all of it."""

    def __init__(self) -> None:
        self.path: Path | None = None  # the file, where one is kept
        self.file: TextIO | None = None
        self.verbose = False
        self.screen: TextIO | None = None  # stderr as it was, where the process is a command's own
        self.show: Callable[[str], None] | None = None  # above the bars that are being drawn
        self.quietened: dict[str, None] = {}


_state = _State()


def cache_folder() -> Path:
    """Where this program keeps what it can make again: XDG_CACHE_HOME/drafter-factory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drafter-factory"


def begin(command: str, verbose: bool) -> None:
    """Keep the log of a command in this process, which is its own; `verbose`: on stderr in place of a file."""
    for name in _NO_BARS:
        os.environ.setdefault(name, "1")
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    _state.screen = sys.stderr
    if verbose:
        _state.verbose = True
        root.addHandler(_OnScreen(_LINE))
    elif (path := _new_file(command)) is not None:
        _turn_stderr(_keep(path))
        shown = _OnScreen("%(message)s")
        shown.setLevel(logging.WARNING)
        shown.addFilter(lambda record: record.name.split(".")[0] in OWN)
        root.addHandler(shown)
    quieten(*_state.quietened)


def given_on() -> tuple[Path | None, bool]:
    """For a process that this one starts, to `join`."""
    return _state.path, _state.verbose


def join(given: tuple[Path | None, bool]) -> None:
    """Log where the process did that started this one; what is printed here is no result, so it goes there too."""
    path, verbose = given
    if path is None and not verbose:
        return
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    _state.verbose = verbose
    if path is not None:
        _keep(path)
        sys.stderr = cast(TextIO, _state.file)
    else:
        root.addHandler(_OnScreen(_LINE))
    sys.stdout = sys.stderr
    quieten(*_state.quietened)


def end() -> None:
    """A log that nothing was written into is removed."""
    if _state.path is not None and log_file() is None:
        _state.path.unlink(missing_ok=True)


def log_file() -> Path | None:
    """The file of this process's log, if it has one and something stands in it."""
    with suppress(OSError):
        if _state.path is not None and _state.path.stat().st_size:
            return _state.path
    return None


def quieten(*libraries: str) -> None:
    """Their warnings do not reach the screen. For whoever has imported them, or is about to.

    Where a log is kept it gets them; else they say errors only.
    """
    _state.quietened.update(dict.fromkeys(libraries))
    kept = _state.file is not None or _state.verbose
    for library in libraries:
        logging.getLogger(library).setLevel(logging.WARNING if kept else logging.ERROR)
        if not kept:
            warnings.filterwarnings("ignore", module=library)
    hand_over(*libraries)


def hand_over(*libraries: str) -> None:
    """What their loggers say goes where this program's does, where a log is kept: their own handlers are taken away."""
    if _state.file is None and not _state.verbose:
        return
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and any(f"{name}.".startswith(f"{library}.") for library in libraries):
            for handler in list(logger.handlers):
                if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                    logger.removeHandler(handler)
                    logger.propagate = True


@contextmanager
def aside() -> Iterator[None]:
    """While libraries are at work: what they print goes into the log, or with -v to stderr. Elsewhere it stays."""
    if _state.file is not None:
        with redirect_stdout(_state.file), redirect_stderr(_state.file):
            yield
    elif _state.verbose:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield


def verbose() -> bool:
    """Whether what libraries say is shown."""
    return _state.verbose


def sink() -> TextIO:
    """For what must not be shown whoever runs it: the log, and without one nowhere."""
    return _state.file if _state.file is not None else cast(TextIO, _Nowhere())


def screen() -> TextIO:
    """What this program shows its progress on: stderr, as it was when the command began."""
    return _state.screen if _state.screen is not None else sys.stderr


@contextmanager
def shown_by(show: Callable[[str], None]) -> Iterator[None]:
    """Within the body lines for the screen are shown so: above the bars that are being drawn."""
    before, _state.show = _state.show, show
    try:
        yield
    finally:
        _state.show = before


class _OnScreen(logging.Handler):
    """Shows each record as a line on the screen."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(layout))

    def emit(self, record: logging.LogRecord) -> None:
        """One line, above the bars where there are any."""
        line = self.format(record)
        if _state.show is not None:
            _state.show(line)
        else:
            with suppress(OSError, ValueError):  # nobody reads it any more
                print(line, file=screen(), flush=True)


class _Bounded(io.TextIOBase):
    """A file that takes no more than so much."""

    def __init__(self, file: TextIO, most: int) -> None:
        self._file, self._left = file, most

    def write(self, text: str, /) -> int:
        if self._left > 0:
            self._left -= len(text)
            self._file.write(text if self._left > 0 else "the log is full: nothing more is written here\n")
        return len(text)

    def flush(self) -> None:
        self._file.flush()


class _Nowhere(io.TextIOBase):
    """Takes all text and keeps none: a long quantisation would fill a StringIO."""

    def write(self, text: str, /) -> int:
        return len(text)


def _keep(path: Path) -> TextIO:
    """Open the file, and give it what is logged."""
    _state.path, _state.file = path, path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    handler = logging.StreamHandler(_Bounded(_state.file, MOST_BYTES))
    handler.setFormatter(logging.Formatter(_LINE))
    logging.getLogger().addHandler(handler)
    return _state.file


def _turn_stderr(file: TextIO) -> None:
    """Descriptor 2 is the file from now on, and `sys.stderr` and the screen what it was."""
    with suppress(OSError, ValueError, AttributeError):  # whoever has no stderr needs none
        sys.stderr.flush()
        before = os.dup(sys.stderr.fileno())
        os.dup2(file.fileno(), 2)
        raw = os.fdopen(before, "wb", buffering=0)
        sys.stderr = io.TextIOWrapper(raw, encoding=sys.stderr.encoding, errors="backslashreplace", write_through=True)
        _state.screen = sys.stderr
        interrupts.speak_on(before)


def _new_file(command: str) -> Path | None:
    """An empty file for a log, in the cache folder or else the temporary one; old ones are removed."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{command}-{os.getpid()}.log"
    for folder in (cache_folder() / "logs", Path(tempfile.gettempdir()) / f"drafter-factory-{os.getuid()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
            for old in sorted(folder.glob("*.log"))[:-KEPT_FILES]:
                old.unlink(missing_ok=True)
            return folder / name
        except OSError:
            continue
    return None
