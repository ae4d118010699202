"""`factory ls` and `factory show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from factory.cli import tables
from factory.cli.completion import artifact_folders
from factory.cli.shell import JsonOption, QuietOption, app, reported
from factory.errors import ArtifactError
from factory.progress import shown_progress


@app.command()
@reported
def ls(
    folder: Annotated[Path, typer.Argument(metavar="DIR", autocompletion=artifact_folders)] = Path("artifacts"),
    as_json: JsonOption = False,
) -> None:
    """List the drafters in a folder."""
    from factory.artifact import Artifact, artifact_folders

    artifacts, faults = [], []
    for place in artifact_folders(folder):
        try:
            artifacts.append(Artifact.open(place))
        except ArtifactError as error:  # one that is damaged hides no other
            faults.append(str(error))
    if not artifacts and not faults:
        typer.echo(f"{folder}: no artifact yet; `factory build RECIPE --out {folder}` makes one", err=True)
    tables.listed(artifacts)
    if faults:
        raise ArtifactError("\n".join(faults))
    if as_json:
        typer.echo(json.dumps({"artifacts": [tables.facts(artifact) for artifact in artifacts]}))


@app.command()
@reported
def show(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="the drafter's folder", autocompletion=artifact_folders)
    ],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check every file of a drafter, and print its card."""
    from factory.artifact import Artifact

    opened = Artifact.open(artifact)
    with shown_progress(quiet) as progress:
        opened.verify(progress)
    card = opened.folder / "README.md"
    if not card.is_file():
        opened.write_card()
    typer.echo(card.read_text(encoding="utf-8", errors="replace"))
    typer.echo(f"{tables.summary(opened)}: every file is what the manifest says")
    if as_json:
        typer.echo(json.dumps({**tables.facts(opened), "manifest": opened.manifest}))
