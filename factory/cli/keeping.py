"""`factory clean` and `factory convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from factory.cli.shell import JsonOption, QuietOption, VerboseOption, app, reported
from factory.progress import shown_progress


@app.command()
@reported
def clean(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="what `factory build --out` wrote to")],
    replaced: Annotated[bool, typer.Option("--replaced", help="remove replaced artifacts too")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what only costs time to make again. Artifacts and their evaluations stay."""
    from factory.building.clean import clean as clean_folder

    done = clean_folder(folder, replaced=replaced, dry_run=dry_run)
    for path in done.folders:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {path}")
    typer.echo(f"{folder}: {done.removed_bytes:,} bytes {'would be ' if dry_run else ''}freed")
    if done.replaced_bytes:
        typer.echo(f"{done.replaced_bytes:,} bytes of replaced artifacts are kept; --replaced removes them")
    if as_json:
        facts = {"folders": [str(path) for path in done.folders], "bytes": done.removed_bytes, "dry_run": dry_run}
        typer.echo(json.dumps({**facts, "replaced_bytes_kept": done.replaced_bytes}))


@app.command()
@reported
def convert(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="a model whose weights are pickled")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the folder to be made")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make safetensors of a pickled checkpoint, without running anything that is in it."""
    from factory.models.convert import convert as convert_folder

    with shown_progress(quiet) as progress:
        made = convert_folder(folder, out, progress)
    files = f"{made.files} file{'s' if made.files > 1 else ''}"
    typer.echo(f"{out}: {made.tensors} tensors, {made.weight_bytes / 1e6:,.1f} MB in {files}")
    if made.left_out:
        typer.echo(f"left out, since the model ties them to others: {', '.join(made.left_out)}")
    if as_json:
        facts = {"tensors": made.tensors, "weight_bytes": made.weight_bytes, "files": made.files}
        typer.echo(json.dumps({"folder": str(out), **facts, "left_out": list(made.left_out)}))
    else:
        typer.echo(f"next: factory build RECIPE --target {out}")
