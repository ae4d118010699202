"""What scripts here are given: an earlier run's JSON, and where to write. What cannot be is told before measuring."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factory.files.json_reading import NotJsonError, read_json


def earlier_run(text: str) -> Any:
    """The JSON of an earlier run."""
    try:
        return read_json(Path(text))
    except NotJsonError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}; name the JSON that an earlier run wrote") from None


def read_run(parser: argparse.ArgumentParser, place: str | Path) -> Any:
    """The same where the argument may also be something else."""
    try:
        return earlier_run(str(place))
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))


def writable(text: str) -> Path:
    """A file that can be written, which measuring for an hour does not find out."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}; make it, or name another")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text}: cannot be written; name another file")
    return path


def print_run(parser: argparse.ArgumentParser, draw: Callable[[Any], str | None], kept: Any) -> None:
    """Print what `draw` makes of an earlier run; ends with a message where that is the JSON of something else."""
    try:
        text = draw(kept)
    except (LookupError, TypeError, AttributeError):
        parser.error("that JSON is not what this script writes; name one of its own, or run it again")
    if text is not None:
        print(text)
