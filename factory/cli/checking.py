"""`factory check` and `factory doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.cli.completion import devices, recipe_files
from factory.cli.shell import JsonOption, QuietOption, SetOption, TargetOption, VerboseOption, app, reported
from factory.errors import FactoryError
from factory.files.nearby import meant
from factory.progress import shown_progress

if TYPE_CHECKING:
    from factory.forecasting.estimate import Forecast
    from factory.forecasting.profile import DeviceProfile
    from factory.hub import NoConfig
    from factory.recipes.recipe import Loaded


@app.command()
@reported
def check(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPES", help="files, folders or patterns", autocompletion=recipe_files)
    ],
    target: TargetOption = None,
    settings: SetOption = None,
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="NAME", help="forecast for: here, or a profile such as h200", autocompletion=devices
        ),
    ] = "here",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Say what is wrong with recipes, or forecast what they will make. Loads no model.

    A target's config.json is asked of the Hub where neither the recipe nor this machine has it.
    """
    from factory.forecasting import profile
    from factory.recipes.recipe import load

    chosen = profile.named(device)
    files = list(_recipe_files(recipes))
    wrong, records = 0, []
    for path, fault in files:
        try:
            if fault:
                raise FactoryError(fault)
            candidates = load(path, settings or (), target, many="sample")
            forecasts = _forecasts(candidates, chosen)
        except FactoryError as error:
            wrong += 1
            typer.echo(f"wrong  {path}")
            typer.echo(str(error), err=True)
            records.append({"recipe": str(path), "faults": str(error).splitlines()})
            continue
        for line in _lines(path, candidates, forecasts, whole=len(files) == 1):
            typer.echo(line)
        if as_json:  # of thousands it takes as long as all the rest
            records.append(_record(path, candidates, forecasts))
    if as_json:
        typer.echo(json.dumps({"recipes": records}))
    if wrong:
        raise typer.Exit(2)


def _is_made(file: Path, folder: Path) -> bool:
    """Whether it lies in an artifact or a hidden folder within `folder`: no recipe that somebody wrote."""
    between = [parent for parent in file.parents if folder in parent.parents]
    return any(parent.name.startswith(".") or (parent / "manifest.json").is_file() for parent in between)


def _recipe_files(arguments: list[str]) -> Iterator[tuple[Path, str]]:
    """Every recipe meant, once; or the fault that an argument means none."""
    seen: set[Path] = set()
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted(file for file in (*path.rglob("*.yaml"), *path.rglob("*.yml")) if not _is_made(file, path))
        elif path.is_file():
            files = [path]
        else:  # a pattern that the shell did not expand
            pattern = path.relative_to(path.anchor)
            files = sorted(file for file in Path(path.anchor).glob(str(pattern)) if file.is_file())
        if not files:
            close = "" if path.is_dir() else meant(path, folder=False)
            found = "no such file" if close else "no recipe there"
            yield path, f"{argument}: {found}{close or '; name .yaml files, or folders that hold some'}"
        yield from ((file, "") for file in files if file not in seen)
        seen.update(files)


def _forecasts(candidates: list[Loaded], device: DeviceProfile) -> list[Forecast | None]:
    """One for each candidate. Raises FactoryError with everything that the target does not allow."""
    from factory.forecasting.estimate import forecast_recipe
    from factory.models.located import pickles, require_complete, weight_files

    found: list[Forecast | None] = []
    faults: dict[str, None] = {}  # candidates share most of theirs
    for loaded in candidates:
        try:
            folder = Path(loaded.recipe.target.model or "")
            if folder.is_absolute() and (pickles(folder) or weight_files(folder)):  # a config alone is enough here
                require_complete(folder)
            found.append(forecast_recipe(loaded, device))
            missing = _missing(loaded) if found[-1] is None else None
            if missing is not None and missing.final:
                raise FactoryError(f"{loaded.document.place(('target', 'model'))}: {missing.reason}")
        except FactoryError as error:
            faults |= dict.fromkeys(str(error).splitlines())
    if faults:
        raise FactoryError("\n".join(faults))
    return found


def _missing(loaded: Loaded) -> NoConfig | None:
    """Why the Hub gave no config of a target that is looked for there."""
    from factory.hub import NoConfig, config_or_reason

    target = loaded.recipe.target
    if target.model is None or Path(target.model).is_dir():
        return None
    found = config_or_reason(target.model, target.revision)
    return found if isinstance(found, NoConfig) else None


def _lines(path: Path, candidates: list[Loaded], forecasts: list[Forecast | None], whole: bool) -> Iterator[str]:
    """What check says of a sound recipe; where it is the only file, the `whole` forecast of its first candidate."""
    from factory.forecasting.estimate import WITHOUT_CONFIG, WITHOUT_TARGET
    from factory.recipes.recipe import MOST_CANDIDATES

    first, forecast = candidates[0], forecasts[0]
    name = first.recipe.name
    stages = " > ".join(stage.kind for stage in first.recipe.stages)
    several = first.candidates > 1
    count = f"; {first.candidates:,} candidates" if several else ""
    if first.candidates > MOST_CANDIDATES:
        count += ", and a build of so many asks for --yes"
    if len(candidates) < first.candidates:
        count += "; every value was checked once, with the others at their first"
    if forecast is None:
        lacking = WITHOUT_CONFIG if first.recipe.target.model else WITHOUT_TARGET
        yield f"ok     {path}: {name}: {stages}{count}; {lacking}"
        missing = _missing(first)
        if missing is not None:
            yield f"    {missing.reason}"
    elif several:
        yield f"ok     {path}: {name}: {stages}{count}"
        if whole:
            yield from forecast.lines()
        rest = list(zip(candidates, forecasts, strict=True))[:MOST_CANDIDATES]
        for loaded, each in rest[1:] if whole else rest:
            if each is not None:
                yield f"  {loaded.name}: {each.summary()}"
                yield from (f"    {fault}" for fault in each.faults)
        if len(candidates) > MOST_CANDIDATES:
            yield f"  and {len(candidates) - MOST_CANDIDATES} more"
    elif whole:
        yield f"ok     {path}: {name}: {stages}"
        yield from forecast.lines()
    else:
        yield f"ok     {path}: {name}: {stages}; {forecast.summary()}"
        yield from (f"    {fault}" for fault in forecast.faults)


def _record(path: Path, candidates: list[Loaded], forecasts: list[Forecast | None]) -> dict[str, Any]:
    each = [
        {"name": loaded.name, "forecast": forecast.record() if forecast else None}
        for loaded, forecast in zip(candidates, forecasts, strict=True)
    ]
    return {"recipe": str(path), "faults": [], "count": candidates[0].candidates, "candidates": each}


@app.command()
@reported
def doctor(
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="measure the profile and keep it")] = True,
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="the folder whose disk is meant")] = Path(),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Say what this machine has and can reach, and measure what forecasts need to know of it."""
    from factory.forecasting.doctor import examine

    with shown_progress(quiet) as progress:
        found = examine(measure, folder, progress)
    for line in found.lines():
        typer.echo(line)
    if as_json:
        typer.echo(json.dumps(found.record()))
