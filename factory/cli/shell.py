"""What all commands share: the application, their common options, and how a failure is reported."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from factory import __version__, interrupts, logs
from factory.cli.usage import Commands
from factory.errors import FactoryError
from factory.processes import is_first, spoken, world_size

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

app = typer.Typer(
    name="factory",
    cls=Commands,
    help="Make a speculative-decoding drafter out of your own model, and measure whether it pays.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

TargetOption = Annotated[str | None, typer.Option("--target", metavar="MODEL_OR_FOLDER", help="another target")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change the recipe, such as stages.0.keep=2")
]
JsonOption = Annotated[bool, typer.Option("--json", help="end with one line of JSON on stdout")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="no progress")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="logs on stderr, not in a file")]


def main() -> None:
    """The whole process of one command; `factory.__main__` watches for signals before this file is imported."""
    try:
        interrupts.watch()
        app(prog_name="factory")
    finally:
        interrupts.end_where_interrupted()


def reported(command: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A command whose failures become one message and an exit code, and with `as_json` one line of JSON.

    Its parameters `verbose` and `as_json` are read here, whatever it does with them itself.
    """

    @functools.wraps(command)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        from factory.files.disk import told_of_the_disk

        as_json = bool(kwargs.get("as_json"))
        if interrupts.watching():  # the process is this command's alone
            logs.begin(command.__name__, bool(kwargs.get("verbose")))
        try:
            return command(*args, **kwargs)
        except (typer.Exit, BrokenPipeError):
            raise
        except FactoryError as error:
            _tell(str(error), error, 2, as_json)
            raise _exit(2) from None
        except KeyboardInterrupt:
            interrupts.end_where_interrupted()
            typer.echo(f"\n{interrupts.words()}", err=True)  # nobody watches in this process
            raise _exit(130) from None
        except Exception as error:
            if (told := told_of_the_disk(error)) is not None:
                _tell(str(told), told, 2, as_json)
                raise _exit(2) from None
            first_line = (str(error).strip() or "no message").splitlines()[0]
            message = (
                f"a fault of this program: {type(error).__name__}: {first_line}\nthe traceback is in {_log(error)}"
            )
            _tell(message, error, 1, as_json)
            raise _exit(1) from None
        finally:
            logs.end()

    return wrapper


def _tell(message: str, error: BaseException, code: int, as_json: bool) -> None:
    """Say what went wrong, and where it stands what libraries said before, if they said anything."""
    typer.echo(spoken(message), err=True)
    if (log := logs.log_file()) is not None:
        typer.echo(spoken(f"what libraries said before is in {log}"), err=True)
    if as_json and is_first():
        with contextlib.suppress(OSError):  # stdout that cannot be written may be what this is about
            typer.echo(json.dumps({"error": {"kind": type(error).__name__, "message": message, "exit_code": code}}))


def _exit(code: int) -> typer.Exit:
    """The end of a command that failed. Of several launched processes one ends at once, waiting for nobody."""
    if world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return typer.Exit(code)


def _log(error: Exception) -> Path:
    """The traceback in a file of its own, in the cache folder or else the temporary one."""
    name = f"fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    text = f"factory {__version__}, Python {sys.version.split()[0]}\n{sys.argv}\n\n"
    text += "".join(traceback.format_exception(error))
    for folder in (logs.cache_folder(), Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
            return folder / name
        except OSError:
            continue
    typer.echo(text, err=True)
    return Path("the lines above")


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False) -> None:
    if version:
        typer.echo(f"drafter-factory {__version__}")
        raise typer.Exit
