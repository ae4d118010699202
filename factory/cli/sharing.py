"""`factory publish` and `factory pull`."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.completion import artifact_folders
from factory.cli.shell import JsonOption, QuietOption, VerboseOption, app, reported
from factory.progress import shown_progress, step
from factory.wording import size

if TYPE_CHECKING:
    from factory.publishing.publish import Publication


@app.command()
@reported
def publish(
    artifact: Annotated[
        Path,
        typer.Argument(metavar="ARTIFACT", help="a drafter's folder, evaluated", autocompletion=artifact_folders),
    ],
    to: Annotated[str, typer.Option("--to", metavar="USER/NAME", help="the repository on the Hub")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list every file; no network, no token")] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="publish to a branch, made if need be")] = None,
    pull_request: Annotated[bool, typer.Option("--pr", help="propose it as a pull request")] = False,
    private: Annotated[bool, typer.Option("--private", help="where it is a new repository, a private one")] = False,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="of the commit")] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="default: that of the target's card")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="the target on the Hub, where it was made from a folder")
    ] = None,
    even_if_slower: Annotated[
        str | None, typer.Option(metavar="REASON", help="not shown to be faster: publish it, the reason on its card")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Publish a drafter on the Hugging Face Hub, with a card of what was measured.

    Only one that was evaluated, is lossless, and is surely faster. The token is that of `hf auth login`, or HF_TOKEN.
    """
    from factory.artifact import Artifact
    from factory.publishing.publish import Wishes, passed, prepared, shown_places
    from factory.publishing.upload import Place, send, sign_in

    opened, wishes = Artifact.open(artifact), Wishes(license_name, base_model, even_if_slower)
    place = Place(to, revision, pull_request, private, message)
    with ExitStack() as stack:
        with shown_progress(quiet) as progress:
            standing = passed(opened, to, wishes, progress)
        for note in shown_places(opened):  # before anything is asked
            typer.echo(f"note: {note}", err=True)
        with shown_progress(quiet) as progress:
            account = "" if dry_run else sign_in(place)
            with step(progress, "preparing the card"):
                preparing = prepared(opened, to, standing, wishes, network=not dry_run)
                publication = stack.enter_context(preparing)
        for note in publication.notes:
            typer.echo(f"note: {note}", err=True)
        if dry_run:
            _list(publication, as_json)
            return
        with shown_progress(quiet) as progress:
            sent = send(publication.entries, place, account, progress)
    if sent.changed:
        removed = f", {sent.removed} removed" if sent.removed else ""
        typer.echo(f"published: {sent.files} files, {size(sent.bytes)}{removed}, in one commit {sent.commit[:12]}")
    else:
        typer.echo(f"nothing changed: {to} holds all of it already, commit {sent.commit[:12]}")
    typer.echo(sent.pull_request or sent.url)
    if as_json:
        typer.echo(json.dumps(sent.record()))


def _list(publication: Publication, as_json: bool) -> None:
    """Every file, by path, and the whole."""
    entries = publication.entries
    width = max(len(f"{entry.size:,}") for entry in entries)
    for entry in entries:
        typer.echo(f"{entry.size:>{width},}  {entry.path}")
    typer.echo(
        f"{len(entries)} files, {publication.bytes:,} bytes would go to {publication.repository}; nothing was sent"
    )
    if as_json:
        files = [{"path": entry.path, "bytes": entry.size} for entry in entries]
        record = {"dry_run": True, "repository": publication.repository, "files": files, "bytes": publication.bytes}
        typer.echo(json.dumps(record))


@app.command()
@reported
def pull(
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="a published drafter's name on the Hub")],
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="a branch, a tag or a commit; default: the newest of main")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="the folder that gets DIR/NAME")] = Path("artifacts"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Fetch a published drafter, every file compared with its manifest. Done again, it goes on, or does nothing."""
    from factory.publishing.pull import pull as pull_drafter

    with shown_progress(quiet) as progress:
        pulled = pull_drafter(repository, out, progress, revision)
    folder, some = pulled.artifact.folder, "evaluation" if pulled.evaluations == 1 else "evaluations"
    came = f"{pulled.evaluations} {'' if pulled.new else 'new '}{some}"
    what = "pulled" if pulled.new else "it was here already"
    typer.echo(f"{what}: {folder}, {pulled.repository} at commit {pulled.commit[:12]}, and {came}")
    typer.echo(f"all {len(pulled.artifact.manifest['files'])} files are what its manifest says")
    if as_json:
        typer.echo(json.dumps(pulled.record()))
    else:
        typer.echo(f"next: factory eval {folder}")
