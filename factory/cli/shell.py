"""What all commands share: the application, their common options, and how a failure is reported."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from factory import __version__
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
    add_completion=False,
    pretty_exceptions_enable=False,
)

TargetOption = Annotated[str | None, typer.Option("--target", metavar="MODEL_OR_FOLDER", help="another target")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change the recipe, such as stages.0.keep=2")
]
JsonOption = Annotated[bool, typer.Option("--json", help="end with one line of JSON on stdout")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="no progress")]


def main() -> None:
    """The console script."""
    app()


def reported(command: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A command whose failures become one message and an exit code."""

    @functools.wraps(command)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        from factory.files.disk import told_of_the_disk

        try:
            return command(*args, **kwargs)
        except (typer.Exit, BrokenPipeError):
            raise
        except FactoryError as error:
            typer.echo(spoken(str(error)), err=True)
            raise _exit(2) from None
        except KeyboardInterrupt:
            if is_first():
                typer.echo("\ninterrupted: what is finished is kept, and the same command goes on from there", err=True)
            raise _exit(130) from None
        except Exception as error:
            if (told := told_of_the_disk(error)) is not None:
                typer.echo(spoken(str(told)), err=True)
                raise _exit(2) from None
            first_line = (str(error).strip() or "no message").splitlines()[0]
            message = (
                f"a fault of this program: {type(error).__name__}: {first_line}\nthe traceback is in {_log(error)}"
            )
            typer.echo(spoken(message), err=True)
            raise _exit(1) from None

    return wrapper


def _exit(code: int) -> typer.Exit:
    """The end of a command that failed. Of several launched processes one ends at once, waiting for nobody."""
    if world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return typer.Exit(code)


def _log(error: Exception) -> Path:
    """The traceback in a file of its own, in the cache folder or else the temporary one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drafter-factory"
    name = f"fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    text = f"factory {__version__}, Python {sys.version.split()[0]}\n{sys.argv}\n\n"
    text += "".join(traceback.format_exception(error))
    for folder in (cache, Path(tempfile.gettempdir())):
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
