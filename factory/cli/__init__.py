"""The command line: parse, call, print. The only place with exit codes. One file for each group of commands.

    0 done · 1 a fault of this program (a log file holds the traceback) · 2 the user can mend it · 130 interrupted

Results go to stdout, progress and errors to stderr. Every import that is not instant is inside a command.
"""

from factory.cli import starting, making, checking, looking, judging, talking, sharing, keeping  # noqa: F401, I001 - in the order of `--help`
from factory.cli.shell import app, main

__all__ = ["app", "main"]
