"""`factory.build`: from a recipe to drafters, in one call."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from factory.artifact import Artifact
from factory.errors import FactoryError
from factory.progress import Progress, silent
from factory.recipes.recipe import load

_LOG = logging.getLogger(__name__)


def build(
    recipe: str | Path | Mapping[str, Any] | None = None,
    *,
    out: str | Path = "artifacts",
    target: str | Path | None = None,
    settings: Sequence[str] = (),
    jobs: int = 1,
    progress: Progress | None = None,
    anyway: bool = False,
) -> list[Artifact]:
    """Make the drafters that a recipe describes: `factory build` in one call. Again, it goes on from where it stopped.

    `recipe`: a YAML file, or what would stand in it; None: the default recipe of `target`, chosen by forecast and
    kept in out/.cache/recipes. Paths in a file are looked for beside it, those of a mapping from the working
    directory. `out` gets a folder for each drafter. `target`: another model's folder or Hub name. `settings`: changes
    such as "stages.0.keep=2". `jobs`: candidates of a grid made at once. `progress`: called with (done, total, what).
    `anyway`: also a grid of more than 64 candidates, or what is forecast not to fit into this machine.

    Returns the finished artifacts; `name--raw`, where the recipe keeps it, is one of its own. Of several launched
    processes all but the first return an empty list. Raises FactoryError: RecipeError with every fault of the recipe,
    UnsupportedModel, ModelError, DataError, DiskError; what is finished by then is kept.
    """
    folder, model = Path(out), None if target is None else str(target)
    if recipe is None:
        recipe, reason = default_recipe_file(model, folder, progress or silent)
        _LOG.info("%s", reason)
    source = recipe if isinstance(recipe, Mapping) else Path(recipe)
    candidates = load(source, settings, model, many="all" if anyway else "refuse")
    candidates[0].require_target()  # before torch is imported
    if jobs < 1:
        raise FactoryError(f"jobs: must be at least 1, not {jobs}")
    from factory.building.build import build as build_candidates

    return build_candidates(candidates, folder, progress or silent, jobs=jobs, anyway=anyway)


def default_recipe_file(target: str | None, out: Path, progress: Progress = silent) -> tuple[Path, str]:
    """A recipe made for a target that is given without one, and why it is so; it is kept beside the cache of `out`.

    Raises FactoryError where there is no target either, ModelError, UnsupportedModel.
    """
    if target is None:
        raise FactoryError("name a RECIPE, or give --target MODEL_OR_FOLDER to have one made for it")
    from factory.files.atomic import write_atomically
    from factory.forecasting import profile
    from factory.forecasting.defaults import default_recipe
    from factory.models.located import locate, read_config

    name = str(Path(target).resolve()) if Path(target).is_dir() else target  # the recipe may be moved
    made = default_recipe(name, read_config(locate(target, progress=progress).folder), profile.load())
    path = out / ".cache" / "recipes" / f"{made.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, made.text)
    return path, made.reason
