"""`factory build`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from factory.cli.completion import recipe_files
from factory.cli.shell import JsonOption, QuietOption, SetOption, TargetOption, VerboseOption, app, reported
from factory.processes import is_first
from factory.progress import shown_progress


@app.command()
@reported
def build(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="a recipe's YAML file; without one, --target's default",
            autocompletion=recipe_files,
        ),
    ] = None,
    target: TargetOption = None,
    settings: SetOption = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="the folder that gets DIR/<name>")] = Path("artifacts"),
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", min=1, help="candidates made at once; they share the threads")
    ] = 1,
    yes: Annotated[bool, typer.Option("--yes", help="build a large grid, or what is forecast not to fit")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make the drafters that a recipe describes. Run again, it goes on from where it stopped."""
    from factory.api.making import build as make
    from factory.api.making import default_recipe_file
    from factory.cli import tables

    began_s = time.monotonic()
    if recipe is None:
        with shown_progress(quiet or not is_first()) as progress:
            recipe, reason = default_recipe_file(target, out, progress)
        if is_first():
            typer.echo(f"{reason}\nthe recipe is {recipe}: copy it to change it", err=True)
    with shown_progress(quiet or not is_first()) as progress:
        artifacts = make(
            recipe, out=out, target=target, settings=settings or (), jobs=jobs, progress=progress, anyway=yes
        )
    if not artifacts:  # one of several launched processes, of which the first tells of what was made
        return
    tables.show(artifacts)
    if as_json:
        facts = [tables.facts(made) for made in artifacts]
        typer.echo(json.dumps({"artifacts": facts, "seconds": round(time.monotonic() - began_s, 3)}))
    else:
        several = sum(not made.manifest["raw"] for made in artifacts) > 1
        typer.echo(f"next: factory eval {out if several else artifacts[0].folder}")
