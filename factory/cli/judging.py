"""`factory eval` and `factory report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from factory.cli.completion import artifact_folders, plans
from factory.cli.shell import JsonOption, QuietOption, TargetOption, VerboseOption, app, reported
from factory.cli.tables import console
from factory.errors import FactoryError
from factory.logs import aside
from factory.processes import Processes, launched, peers_missed, world_size
from factory.progress import shown_progress, step


@app.command(name="eval")
@reported
def evaluate(
    artifacts: Annotated[
        list[str],
        typer.Argument(
            metavar="ARTIFACTS",
            help="drafters, folders of them, or user/name on the Hub",
            autocompletion=artifact_folders,
        ),
    ],
    plan: Annotated[
        str, typer.Option(metavar="PLAN", help="a shipped plan's name, or a YAML file", autocompletion=plans)
    ] = "default",
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="your own prompts: .jsonl or lines")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="for the report (default: the first folder judged)")
    ] = None,
    target: TargetOption = None,
    mapped: Annotated[
        bool, typer.Option("--map", help="where drafting pays: speedup over batch, temperature and context length")
    ] = False,
    certified: Annotated[
        bool, typer.Option("--certify", help="no timing: every check of losslessness, kept with each drafter")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Judge drafters: are their outputs the target's own, and are they faster?"""
    if certified and world_size() > 1:
        raise FactoryError("--certify is one process's work: start it alone, without a launcher")
    if mapped and certified:
        raise FactoryError("--map and --certify are two different runs: give one of them")
    with aside():
        together = launched()
    with peers_missed():
        if together.first:
            _judge(artifacts, plan, prompts, out, target, mapped, certified, as_json, quiet, together)
        else:
            with aside():
                from eval.timing.together import follow

                follow(together)
        together.end()


def _judge(
    artifacts: list[str],
    plan: str,
    prompts: Path | None,
    out: Path | None,
    target: str | None,
    mapped: bool,
    certified: bool,
    as_json: bool,
    quiet: bool,
    together: Processes,
) -> None:
    """The whole command, in the only process or the first of several."""
    from eval.api import artifacts_of
    from eval.plan import load_plan
    from factory.publishing.pull import fetched

    chosen = load_plan(plan)
    with shown_progress(quiet) as progress:
        folders = fetched(artifacts, progress)
    judged = artifacts_of(folders)
    out = out or folders[0]
    asked: dict[str, Any] = {"target": target, "out": out, "together": together}
    if certified:
        with shown_progress(quiet) as progress:
            with step(progress, "starting"):
                from eval.lossless.certificate import terminal
                from eval.lossless.certify import certify

            made = certify(judged, chosen, target=target, prompts_file=prompts, progress=progress)
        for certificate in made:
            console().print(terminal(certificate))
        if as_json:
            typer.echo(json.dumps({"certificates": {one["artifact"]: one["verdict"] for one in made}}))
        if not all(one["verdict"]["lossless"] for one in made):
            raise typer.Exit(1)
        return
    if mapped:
        with shown_progress(quiet) as progress:
            with step(progress, "starting"):
                from eval.breakeven.map import measure_map
                from eval.report.heatmap import map_table

            found = measure_map(judged, chosen, **asked, prompts_file=prompts, progress=progress)
        console().print(map_table(found))
        typer.echo(f"report: {out / 'report.html'}")
        if as_json:
            typer.echo(json.dumps({"rules": [one["rule"] for one in found["drafters"]], "out": str(out)}))
        return
    from eval.api import evaluate as judge

    with shown_progress(quiet) as progress:
        with step(progress, "starting"):
            import eval.evaluation  # noqa: F401 - torch and transformers: only once there is surely something to judge

        judgement = judge(judged, plan=chosen, **asked, prompts=prompts, progress=progress)
    from eval.report.published import compared, published_table
    from eval.report.writing import terminal_table

    console().print(terminal_table(judgement.results))
    beside = published_table(judgement.results)
    if beside is not None:
        console().print(beside)
    typer.echo(f"report: {judgement.report}")
    if as_json:
        typer.echo(
            json.dumps({"verdict": judgement.verdict, "out": str(out), "published": compared(judgement.results)})
        )


@app.command()
@reported
def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="where an eval wrote its results", autocompletion=artifact_folders),
    ],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Draw the report of an evaluation again, from its results."""
    with shown_progress(quiet) as progress, step(progress, "drawing"):
        from eval.report.writing import redraw

        drawn = redraw(folder)
    typer.echo(f"report: {drawn}")
    if as_json:
        typer.echo(json.dumps({"report": str(drawn)}))
