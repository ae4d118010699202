"""A call that the command line does not know, told as every other fault is: one line, what is wrong, what was meant."""

from __future__ import annotations

import re
import sys
from typing import Any

import typer
from typer.core import TyperGroup

# What typer and pydantic say, and the same in our words.
_WORDS = (
    (r"\.$", ""),
    (r"Missing (argument|parameter) '?([^'.]*)(\.\.\.)?'?$", r"\2 is missing"),
    (r"Missing option '([^']*)'", r"\1 is missing"),
    (r"Invalid value for '(?:[^']* / )?([^']*)': ", r"\1: "),
    (r"Input should be a valid (integer|number).*", "must be a whole number"),
    (r"Input should ", "must "),
    (r"Value error, ", ""),
    (r"(file|directory) '(.*)' does not exist", r"\2: no such \1"),
    (r"file '(.*)' is a directory", r"\1: a folder; name a file"),
    (
        r"Got unexpected extra arguments?\(?s?\)? \((.*)\)",
        r"'\1' is too much; put what holds spaces in quotes",
    ),
    (r" \(Possible options: ([^,]*)\)", r"; did you mean \1?"),
    (r" \(Possible options: (.*)\)", r"; did you mean one of \1?"),
    (r"\. Did you mean '(.*)'\?", r"; did you mean '\1'?"),
    (r"\. Did you mean (.*)\?", r"; did you mean one of \1?"),
    (r"^No such command ", "no such command "),
    (r"^No such option: ", "no such option "),
    (r"^Option '(.*)' requires an argument", r"\1 needs a value"),
)


class Commands(TyperGroup):
    """The group of all commands. Typer would draw a frame of 80 columns around a wrong call, and cut it there."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run, and exit with the command's code; 2 for a call that is not understood."""
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except typer.Abort:
            sys.exit(130)
        except Exception as error:
            if not hasattr(error, "format_message"):  # typer's own errors have it, whichever class they are of
                raise
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "factory"
            if message := error.format_message():  # none where the help was shown, since no command was named
                said = in_our_words(message)
                known = "did you mean" in said or context is None
                help_ = "" if known else f"; `{command} --help` tells how it is called"
                typer.echo(f"{command}: {said}{help_}", err=True)
            sys.exit(2)
        sys.exit(code)


def in_our_words(message: str) -> str:
    """A message of typer's as the rest of this program would put it."""
    for said, ours in _WORDS:
        message = re.sub(said, ours, message)
    return message
