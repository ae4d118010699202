"""`factory init` and `factory schema`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from factory.cli.shell import JsonOption, app, reported


@app.command()
@reported
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where to; made where it is not there")],
    force: Annotated[bool, typer.Option("--force", help="replace files that are there and differ")] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy the shipped recipes to begin with, and the demo's prompts and model, into a folder of yours."""
    from factory.recipes.shipped import copy_shipped

    written, same = copy_shipped(folder, force=force)
    there = f", {len(same)} were there already" if same else ""
    typer.echo(f"{folder}: {len(written)} files written{there}")
    steps = ("factory check .", "factory build quick.yaml", "factory eval artifacts --plan demo")
    if as_json:
        names = [path.relative_to(folder).as_posix() for path in written]
        typer.echo(json.dumps({"folder": str(folder), "written": names, "unchanged": len(same)}))
    else:
        typer.echo(f"next: {' && '.join((f'cd {shlex.quote(str(folder))}', *steps))}")


@app.command()
@reported
def schema(
    of: Annotated[Literal["recipe", "plan"], typer.Argument(metavar="[recipe|plan]", help="of which files")] = "recipe",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="write it there (default: to stdout)")
    ] = None,
) -> None:
    """Print the JSON Schema of recipes or plans: an editor then completes keys, and marks what is wrong.

    The editor's line, first in a recipe: # yaml-language-server: $schema=FILE
    """
    from eval.plan import EvalPlan
    from factory.files.atomic import write_atomically
    from factory.files.disk import disk_errors
    from factory.files.schema import schema_of
    from factory.recipes.recipe import Recipe

    made = schema_of(Recipe if of == "recipe" else EvalPlan, of)
    text = json.dumps(made, indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    with disk_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text)
    typer.echo(f"{out}: of every {of}; its editor line, first in the file: # yaml-language-server: $schema={out}")
