"""`factory build`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from factory.cli.shell import JsonOption, QuietOption, SetOption, TargetOption, VerboseOption, app, reported
from factory.errors import FactoryError
from factory.processes import is_first
from factory.progress import shown_progress


@app.command()
@reported
def build(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="a recipe's YAML file; without one, --target's default")
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
    from factory.cli import tables
    from factory.recipes.recipe import load

    began_s = time.monotonic()
    path = recipe or _default_recipe(target, out)
    candidates = load(path, settings or (), target, many="all" if yes else "refuse")
    candidates[0].require_target()  # before torch is imported
    from factory.building.build import build as build_candidates

    with shown_progress(quiet or not is_first()) as progress:
        artifacts = build_candidates(candidates, out, progress, jobs=jobs, anyway=yes)
    if not artifacts:  # one of several launched processes, of which the first tells of what was made
        return
    tables.show(artifacts)
    if as_json:
        facts = [tables.facts(made) for made in artifacts]
        typer.echo(json.dumps({"artifacts": facts, "seconds": round(time.monotonic() - began_s, 3)}))
    else:
        several = len(candidates) > 1
        typer.echo(f"next: factory eval {out if several else artifacts[0].folder}")


def _default_recipe(target: str | None, out: Path) -> Path:
    """A recipe made for a target that is given without one; it is kept beside the cache, and said which it is."""
    if target is None:
        raise FactoryError("name a RECIPE, or give --target MODEL_OR_FOLDER to have one made for it")
    from factory.files.atomic import write_atomically
    from factory.forecasting import profile
    from factory.forecasting.defaults import default_recipe
    from factory.models.located import locate, read_config

    name = str(Path(target).resolve()) if Path(target).is_dir() else target  # the recipe may be moved
    made = default_recipe(name, read_config(locate(target).folder), profile.load())
    path = out / ".cache" / "recipes" / f"{made.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, made.text)
    if is_first():
        typer.echo(f"{made.reason}\nthe recipe is {path}: copy it to change it", err=True)
    return path
