"""The command line: parse, call, print. The only file with exit codes.

    0 done · 1 a fault of this program (a log file holds the traceback) · 2 the user can mend it · 130 interrupted

Results go to stdout, progress and errors to stderr. Every import that is not instant is inside a command.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from factory import __version__
from factory.errors import FactoryError
from factory.progress import shown_progress

if TYPE_CHECKING:
    from factory.artifact import Artifact
    from factory.recipe import Loaded

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

app = typer.Typer(
    name="factory",
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
        try:
            return command(*args, **kwargs)
        except (typer.Exit, BrokenPipeError):
            raise
        except FactoryError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo(
                "\ninterrupted: the same command goes on where a build stopped, or evaluates anew",
                err=True,
            )
            raise typer.Exit(130) from None
        except Exception as error:
            first_line = (str(error).strip() or "no message").splitlines()[0]
            message = (
                f"a fault of this program: {type(error).__name__}: {first_line}\nthe traceback is in {_log(error)}"
            )
            typer.echo(message, err=True)
            raise typer.Exit(1) from None

    return wrapper


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


@app.command()
@reported
def build(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe's YAML file")],
    target: TargetOption = None,
    settings: SetOption = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="the folder that gets DIR/<name>")] = Path("artifacts"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make the drafter that a recipe describes. Run again, it goes on from where it stopped."""
    from factory.recipe import load

    began_s = time.monotonic()
    loaded = load(recipe, settings or (), target)
    loaded.require_target()  # before torch is imported
    from factory.build import build as build_recipe

    with shown_progress(quiet) as progress:
        artifacts = build_recipe(loaded, out, progress)
    for artifact in artifacts:
        typer.echo(_summary(artifact))
    if as_json:
        facts = [{"name": made.name, "folder": str(made.folder), **_sizes(made)} for made in artifacts]
        typer.echo(json.dumps({"artifacts": facts, "seconds": round(time.monotonic() - began_s, 3)}))
    else:
        typer.echo(f"next: factory eval {artifacts[0].folder}")


@app.command()
@reported
def check(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPES...", help="files, folders or patterns")],
    target: TargetOption = None,
    settings: SetOption = None,
) -> None:
    """Say what is wrong with recipes, or what they will make. Needs no network and loads no model."""
    from factory.recipe import load

    wrong = 0
    for path, fault in _recipe_files(recipes):
        try:
            if fault:
                raise FactoryError(fault)
            typer.echo(f"ok     {path}: {_forecast(load(path, settings or (), target))}")
        except FactoryError as error:
            wrong += 1
            typer.echo(f"wrong  {path}")
            typer.echo(str(error), err=True)
    if wrong:
        raise typer.Exit(2)


def _recipe_files(arguments: list[str]) -> Iterator[tuple[Path, str]]:
    """Every recipe meant, once; or the fault that an argument means none."""
    seen: set[Path] = set()
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted([*path.rglob("*.yaml"), *path.rglob("*.yml")])
        elif path.is_file():
            files = [path]
        else:  # a pattern that the shell did not expand
            pattern = path.relative_to(path.anchor)
            files = sorted(file for file in Path(path.anchor).glob(str(pattern)) if file.is_file())
        if not files:
            yield path, f"{argument}: no recipe there; name .yaml files, or folders that hold some"
        yield from ((file, "") for file in files if file not in seen)
        seen.update(files)


def _forecast(loaded: Loaded) -> str:
    """Name, stages, and what the sizes of the target promise, where they are at hand."""
    from factory.anatomy import shape_from_config
    from factory.errors import UnsupportedModel
    from factory.forecast import cost_ratio

    recipe = loaded.recipe
    text = f"{recipe.name}: {' > '.join(stage.kind for stage in recipe.stages)}"
    config = loaded.target_config()
    if config is None:
        return f"{text}; no forecast without the target's config.json"
    place = loaded.document.place(("target",))
    try:
        shape = before = shape_from_config(config)
        for index, stage in enumerate(recipe.stages):
            place = loaded.document.place(("stages", index))
            shape = stage.forecast(shape)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{place}: {error}") from None
    sizes = f"{before.layers} -> {shape.layers} layers, {shape.parameters / 1e6:.1f} M parameters"
    return f"{text}; {sizes}, c = {cost_ratio(shape, before):.3f}"


@app.command()
@reported
def ls(folder: Annotated[Path, typer.Argument(metavar="DIR")] = Path("artifacts")) -> None:
    """List the drafters in a folder."""
    from factory.artifact import list_artifacts

    artifacts = list_artifacts(folder)
    if not artifacts:
        typer.echo(f"{folder}: no artifact yet; `factory build RECIPE --out {folder}` makes one", err=True)
    for artifact in artifacts:
        typer.echo(_summary(artifact))


@app.command()
@reported
def show(artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="the drafter's folder")]) -> None:
    """Check every file of a drafter, and print its card."""
    from factory.artifact import Artifact

    opened = Artifact.open(artifact)
    opened.verify()
    card = opened.folder / "README.md"
    if not card.is_file():
        opened.write_card()
    typer.echo(card.read_text(encoding="utf-8"))
    typer.echo(f"{_summary(opened)}: every file is what the manifest says")


@app.command(name="eval")
@reported
def evaluate(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACTS...", help="drafters, or folders of them")],
    plan: Annotated[str, typer.Option(metavar="PLAN", help="a shipped plan's name, or a YAML file")] = "default",
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="your own prompts: .jsonl or lines")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="for the report (default: the first folder judged)")
    ] = None,
    target: TargetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Judge drafters: are their outputs the target's own, and are they faster?"""
    from rich.console import Console

    from eval.plan import load_plan
    from factory.artifact import list_artifacts

    chosen = load_plan(plan)
    judged = [made for folder in artifacts for made in list_artifacts(folder)]
    if not judged:
        raise FactoryError(f"{', '.join(map(str, artifacts))}: no artifact there; `factory build RECIPE` makes one")
    out = out or artifacts[0]
    from eval.bench import evaluate as judge  # imports torch: only once it is sure that there is something to judge
    from eval.report import terminal_table

    with shown_progress(quiet) as progress:
        results = judge(judged, chosen, target=target, out=out, prompts_file=prompts, progress=progress)
    Console(width=None if sys.stdout.isatty() else 160).print(terminal_table(results))
    typer.echo(f"report: {out / 'report.html'}")
    if as_json:
        typer.echo(json.dumps({"verdict": results["verdict"], "out": str(out)}))


@app.command()
@reported
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="where an eval wrote its results")]) -> None:
    """Draw the report of an evaluation again, from its results."""
    from eval.report import redraw

    typer.echo(f"report: {redraw(folder)}")


def _summary(artifact: Artifact) -> str:
    sizes = _sizes(artifact)
    kind = "raw, " if sizes["raw"] else ""
    made_from = artifact.manifest["target"]["model"]
    megabytes, millions = sizes["bytes_on_disk"] / 1e6, sizes["parameters"] / 1e6
    size = f"{kind}{sizes['layers']} layers, {millions:.2f} M parameters, {megabytes:.1f} MB"
    return f"{artifact.name}: {size}, for {made_from} ({artifact.folder})"


def _sizes(artifact: Artifact) -> dict[str, Any]:
    made = artifact.manifest
    facts = {key: made[key] for key in ("parameters", "bytes_on_disk", "raw")}
    return {**facts, "layers": made["shape"]["layers"]}


if __name__ == "__main__":
    main()
