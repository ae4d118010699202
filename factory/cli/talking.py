"""`factory chat`."""

from __future__ import annotations

import io
import sys
from contextlib import nullcontext
from typing import Annotated

import typer

from factory.cli.completion import artifact_folders
from factory.cli.shell import QuietOption, TargetOption, VerboseOption, app, reported
from factory.interrupts import left_to_python
from factory.progress import shown_progress


@app.command()
@reported
def chat(
    artifact: Annotated[
        str | None,
        typer.Argument(
            metavar="[ARTIFACT]",
            help="the drafter's folder, or user/name on the Hub; without one, --target alone",
            autocompletion=artifact_folders,
        ),
    ] = None,
    target: TargetOption = None,
    k: Annotated[str, typer.Option("--k", metavar="N|auto", help="guesses a round")] = "auto",
    temperature: Annotated[str, typer.Option("--temperature", metavar="T", help="0 is greedy")] = "0",
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="the longest answer")] = 256,
    drafting: Annotated[
        str | None, typer.Option("--drafter", metavar="on|lookup|off", help="default: on with an ARTIFACT, else lookup")
    ] = None,
    reader: Annotated[str, typer.Option(metavar="KIND", help="how the target is run")] = "auto",
    drafter_reader: Annotated[str, typer.Option(metavar="KIND", help="how the drafter is run")] = "auto",
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="a system message; needs a chat template")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="of the sampling; the same gives the same")] = 0,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Talk with the target while the drafter drafts, and see what that gains. Reads lines from a pipe as well.

    Answers go to stdout, what is said about them to stderr.
    """
    from factory.chat import settings
    from factory.chat.opening import open_artifact, open_session
    from factory.publishing.pull import fetched

    default = "on" if artifact is not None else "lookup"
    wanted = settings.Settings(
        drafter=settings.drafter(drafting or default, "--drafter", has_model=artifact is not None),
        k=settings.guesses(k, "--k"),
        temperature=settings.temperature(temperature, "--temperature"),
        max_new_tokens=max_new_tokens,
    )
    with shown_progress(quiet) as progress:
        [folder] = fetched([artifact], progress) if artifact is not None else [None]
        opened = open_artifact(folder, progress) if folder is not None else None
        session, notes = open_session(
            opened,
            target,
            wanted,
            reader=reader,
            drafter_reader=drafter_reader,
            system=system,
            seed=seed,
            progress=progress,
        )
    from factory.chat.screen import Screen, is_styled
    from factory.chat.talk import Talk, joined, piped, typed

    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what cannot be read or shown in this locale is a question mark
            stream.reconfigure(errors="replace")
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401 - gives `input` its editing and history
    screen = Screen(sys.stdout, sys.stderr, is_styled(sys.stdout))
    for note in notes:
        screen.note(note)
    talk = Talk(session, screen, interactive)
    with left_to_python() if interactive else nullcontext():  # there Ctrl-C ends an answer, and not the talk
        talk.run(joined(typed if interactive else piped(sys.stdin)))
    if talk.refused and not interactive:
        raise typer.Exit(2)
