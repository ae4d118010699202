"""A recipe: which target, which text, which stages in which order.

`load` reads a file strictly, applies the command line's changes, makes a candidate of every point of
its grid, finds the files it names, and reports all faults at once; no model is loaded to say so, and
torch is never imported. `digests` names every prefix of the work by what decides its bytes, so that
equal prefixes are built once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from factory.data.rows import FILE_KINDS
from factory.distillation.settings import WRITTEN_BY
from factory.errors import DataError, RecipeError
from factory.files.documents import Document, assign, dump, given, override, read, validate
from factory.files.json_reading import NotJsonError, read_json
from factory.recipes.grid import GRID, axes_of, candidates, points
from factory.recipes.sources import BOS, Data, FilePrompts, HubPrompts, Section, facts_of
from factory.stages import AnyStage, Distill, Fresh, QuantizingStage, StructuralStage, TrainingStage
from factory.wording import visible

NAME = r"^(?!.*--)[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"  # of a drafter; "--" is kept for variants
MOST_CANDIDATES = 64  # of a grid, before a build asks for --yes


class Target(Section):
    """The model to make a drafter for."""

    model: str | None = Field(default=None, min_length=1, description="a folder, or a name on the Hub")
    revision: str | None = Field(default=None, description="branch, tag or commit on the Hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        default="auto", description="what target and drafter compute in; auto: float32 on a CPU, bfloat16 elsewhere"
    )
    config: str | None = Field(
        default=None, description="a config.json with the target's sizes, for forecasts before it is downloaded"
    )


class Recipe(Section):
    """What a build makes."""

    name: str = Field(description="what the drafter's folder is called", json_schema_extra={"pattern": NAME})
    target: Target = Target()
    data: Data | None = None
    stages: list[AnyStage] = Field(min_length=1, description="what is done to a copy of the target, in this order")
    keep_raw: bool = Field(default=False, description="also save the drafter before its first training stage")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of all that is random")
    grid: dict[str, list[Any]] | None = Field(
        default=None,
        description="keys such as stages.0.keep, each with the values to try; empty in a candidate",
        json_schema_extra={"anyOf": [GRID, {"type": "null"}]},
    )

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not re.fullmatch(NAME, name):
            raise ValueError(
                f"{name!r} cannot name a drafter: begin with a letter or digit, then letters, digits, '.', '_', '-', "
                "80 at most; '--' is kept for variants"
            )
        return name

    @model_validator(mode="after")
    def _order_makes_sense(self) -> Recipe:
        faults = _order_faults(self)
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def to_yaml(self) -> str:
        """The recipe with its defaults spelt out; reads back equal."""
        return dump(self.model_dump(mode="json", exclude_none=True))


def _order_faults(recipe: Recipe) -> list[str]:
    faults = []
    training = [place for place, stage in enumerate(recipe.stages) if isinstance(stage, TrainingStage)]
    for place, stage in enumerate(recipe.stages):
        if isinstance(stage, StructuralStage) and training and place > training[-1]:
            faults.append(
                f"stages.{place}: {stage.kind} after the last training stage leaves a damaged drafter; "
                f"move it before stages.{training[-1]}, or train once more after it"
            )
        if isinstance(stage, Fresh) and not any(isinstance(later, Distill) for later in recipe.stages[place:]):
            faults.append(
                f"stages.{place}: fresh leaves random weights, which draft nothing; add `{{kind: distill}}` after it"
            )
        if isinstance(stage, Distill):
            faults += _method_faults(place, stage, recipe.data) + _look_faults(place, stage, recipe.data)
        if isinstance(stage, QuantizingStage) and place < len(recipe.stages) - 1:
            faults.append(
                f"stages.{place}: {stage.kind} must be the last stage: nothing can be pruned, trained or quantised "
                "behind it; move it to the end"
            )
        if stage.needs_text and recipe.data is None:
            faults.append(
                f"stages.{place}: {stage.kind} needs text, and the recipe has no `data`; "
                "add `data: {prompts: bos, samples: 768}`"
            )
    if recipe.keep_raw and not training:
        faults.append("keep_raw: no stage trains, so the drafter itself is the raw one; remove keep_raw")
    if recipe.keep_raw and training and training[0] == 0:
        faults.append("keep_raw: before its first training stage the drafter is a copy of the target; remove keep_raw")
    return faults


def _method_faults(place: int, stage: Distill, data: Data | None) -> list[str]:
    """Where a method of the literature is given other text than it is defined on."""
    wanted = WRITTEN_BY.get(stage.method) if stage.method else None
    if data is None or wanted is None or data.written_by == wanted:
        return []
    return [
        f"stages.{place}.method: {stage.method} is defined on text written by {wanted}; "
        f"write `written_by: {wanted}`, or say `loss` and `on_policy` in place of the method"
    ]


def _look_faults(place: int, stage: Distill, data: Data | None) -> list[str]:
    """What goes by looks at held-out text, where nothing is held out."""
    if data is None or data.held_out > 0:
        return []
    asked = [key for key in ("patience", "check_every") if getattr(stage, key) is not None]
    return [
        f"stages.{place}.{key}: with `held_out: 0` there is nothing to look at; hold some text out, or remove it"
        for key in asked
    ]


@dataclass(frozen=True)
class Loaded:
    """One candidate and the file it came from. Files and folders that it names are absolute paths that exist."""

    recipe: Recipe  # with the candidate's own values, and no grid
    name: str  # the recipe's, and for a point of a grid what it varies: `quick--keep2-lr0.001`
    source: bytes  # the file, byte for byte
    path: Path
    as_given: Recipe  # its paths as they were typed: for what may be shown to others
    document: Document
    candidates: int = 1  # that the recipe describes, this one counted

    def place(self, stage: int) -> str:
        """Where a stage stands, for a fault of it: the value that a grid or `--set` gave it, or else its line."""
        given = [path for path in self.document.options if path[:2] == ("stages", stage)]
        return self.document.place(given[0] if given else ("stages", stage))

    def require_target(self) -> str:
        """The target's folder or Hub name. Raises RecipeError where neither the recipe nor --target gives one."""
        if self.recipe.target.model is None:
            place = self.document.place(("target", "model"))
            raise RecipeError(f"{place}: the recipe names no target; give one with --target MODEL_OR_FOLDER")
        return self.recipe.target.model

    def target_config(self) -> dict[str, Any] | None:
        """The target's config.json where it lies on this machine, else None. Raises RecipeError."""
        target = self.recipe.target
        path = Path(target.config) if target.config else Path(target.model or "") / "config.json"
        if not path.is_absolute() or not path.is_file():
            return None
        place = self.document.place(("target", "config" if target.config else "model"))
        try:
            config = read_json(path)
        except NotJsonError as error:
            raise RecipeError(f"{place}: {path} is no config.json that can be read ({error}); copy it again") from None
        if not isinstance(config, dict):
            raise RecipeError(f"{place}: {path} is no config.json: it must hold an object; copy it again")
        return config


def load(
    source: Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    target: str | None = None,
    many: Literal["refuse", "sample", "all"] = "refuse",
) -> list[Loaded]:
    """The candidates that a file describes, with `--set` overrides and `--target` applied; one without a grid.

    A mapping stands for a file that lies in the working directory.
    `many` says what to do with more than MOST_CANDIDATES: refuse, load every value of the grid once
    (with the others at their first), or load all. Raises RecipeError with all faults.
    """
    path = Path("recipe") if isinstance(source, Mapping) else source
    document = given(source, path.name) if isinstance(source, Mapping) else read(source)
    if "stages" not in document.data and "ks" in document.data:
        raise RecipeError(
            f"{document.mark(('ks',))}: a plan of an evaluation, where a recipe is wanted: "
            f"`factory eval ARTIFACTS --plan {document.name}` takes it"
        )
    if target is not None:
        document = _with_target(document, target)
    document = override(document, overrides)
    axes, wrong = axes_of(document, set(Recipe.model_fields))
    count = candidates(axes)
    if count > MOST_CANDIDATES and many == "refuse":
        raise RecipeError(
            f"{document.place(('grid',))}: {count:,} candidates; to build more than {MOST_CANDIDATES} say --yes, "
            "or vary fewer values"
        )
    found: list[Loaded] = []
    faults = dict.fromkeys(wrong)  # the same fault is told once, not for every point that has it
    for label, point in points(document, axes, each_value_once=count > MOST_CANDIDATES and many == "sample"):
        try:
            recipe = validate(point, Recipe)
            name = f"{recipe.name}--{label}" if label else recipe.name
            located = _located(recipe, point, path.parent)
            found.append(Loaded(located, name, document.source, path, _as_typed(recipe, located), point, count))
        except RecipeError as error:
            faults |= dict.fromkeys(str(error).splitlines())
    if faults:
        raise RecipeError("\n".join(sorted(faults, key=_line_of)))
    return found


def _line_of(fault: str) -> int:
    """To bring faults of many candidates into the order of the file; the command line's come first."""
    line = re.match(r"[^-].*?:(\d+): ", fault)
    return int(line[1]) if line else 0


def _with_target(document: Document, target: str) -> Document:
    """--target names another model: the recipe's revision and config do not describe it."""
    section = document.data.get("target")
    kept = {"dtype": section["dtype"]} if isinstance(section, dict) and "dtype" in section else {}
    return assign(document, ("target",), {**kept, "model": target}, "--target")


def _located(recipe: Recipe, document: Document, folder: Path) -> Recipe:
    """The recipe with its paths made absolute. Relative ones are looked for beside the recipe, then here."""
    faults: list[tuple[tuple[str, ...], str]] = []

    def find(path: tuple[str, ...], text: str, kind: str) -> str | None:
        # What was typed on the command line is meant from the working directory.
        bases = [Path()] if document.mark(path).startswith("--") else [folder, Path()]
        try:
            candidates = list(dict.fromkeys((base / Path(text).expanduser()).resolve() for base in bases))
            for place in candidates:
                place.exists()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, ~ of a user that is none
            reason = getattr(error, "strerror", None) or error
            faults.append((path, f"the text '{text[:60]}' names no {kind}: {str(reason).lower().rstrip('.')}"))
            return None
        found = next((place for place in candidates if (place.is_dir() if kind == "folder" else place.is_file())), None)
        other = next((place for place in candidates if place.exists()), None) if found is None else None
        if other is not None:
            wanted = "the folder that holds the model" if path[0] == "target" and kind == "folder" else f"a {kind}"
            faults.append((path, f"{other} is a {'file' if kind == 'folder' else 'folder'}; name {wanted}"))
        elif found is None and (kind == "file" or _looks_like_a_path(text)):
            looked = " or ".join(str(place) for place in candidates)
            faults.append((path, f"no such {kind}: looked for {looked}; mend the path"))
        return str(found) if found else None

    target, data = recipe.target, recipe.data
    changes: dict[str, Any] = {}
    if target.model is not None:
        model = find(("target", "model"), target.model, "folder")
        if model and not (Path(model) / "config.json").is_file():
            faults.append((("target", "model"), f"{model} holds no config.json; name a Hugging Face model folder"))
        changes["target"] = target.model_copy(update={"model": model or target.model})
    if target.config is not None:
        config = find(("target", "config"), target.config, "file")
        changes["target"] = changes.get("target", target).model_copy(update={"config": config})
    if data and data.prompts != BOS:
        prompts = _located_prompts(data.prompts, find, faults)
        changes["data"] = data.model_copy(update={"prompts": prompts})
        if not faults and (fault := _too_many_texts(changes["data"])):
            faults.append((("data", "samples"), fault))
    if faults:
        faults.sort(key=lambda fault: document.line(fault[0]))
        raise RecipeError("\n".join(visible(f"{document.place(path)}: {what}") for path, what in faults))
    return recipe.model_copy(update=changes)


def _as_typed(recipe: Recipe, located: Recipe) -> Recipe:
    """The recipe with its own paths; a folder of prompts that reads like a dataset's name on the Hub gets a `./`."""
    data, found = recipe.data, located.data
    if data is None or found is None or data.prompts == found.prompts or not isinstance(data.prompts, HubPrompts):
        return recipe
    named = data.prompts.dataset
    prompts = data.prompts.model_copy(update={"dataset": named if _looks_like_a_path(named) else f"./{named}"})
    return recipe.model_copy(update={"data": data.model_copy(update={"prompts": prompts})})


_Find = Callable[[tuple[str, ...], str, str], str | None]


def _located_prompts(
    source: str | HubPrompts | FilePrompts, find: _Find, faults: list[tuple[tuple[str, ...], str]]
) -> str | HubPrompts | FilePrompts | None:
    """The source with its path made absolute, or None where it is not there; what is wrong goes to `faults`."""
    if isinstance(source, HubPrompts):
        folder = find(("data", "prompts", "dataset"), source.dataset, "folder")
        return source.model_copy(update={"dataset": folder or source.dataset})
    text = source if isinstance(source, str) else source.file
    path = ("data", "prompts") if isinstance(source, str) else ("data", "prompts", "file")
    if Path(text).suffix not in FILE_KINDS:
        known = "a .txt, .jsonl or .parquet file"
        others = f"`bos`, {known}, {{dataset, split, column}} or {{file, column}}" if isinstance(source, str) else known
        faults.append((path, f"must be {others}, not the text '{text}'"))
        return None
    file = find(path, text, "file")
    return file if isinstance(source, str) else source.model_copy(update={"file": file})


def _too_many_texts(data: Data) -> str | None:
    """Where the target has one text only for each prompt: that more are asked for than a file has prompts."""
    if not data.greedy or data.samples is None or data.written_by == "none" or isinstance(data.prompts, HubPrompts):
        return None
    try:
        entries = data.entries(Path())
    except DataError:  # told in its own words where the file is read for use
        return None
    if entries is None or data.samples <= len(entries):
        return None
    return f"{data.samples} texts of {len(entries)} prompts would be equal at temperature 0 or top_k 1; ask for fewer"


def _looks_like_a_path(text: str) -> bool:
    """Whether it can be no name on the Hub, which is `name` or `user/name`."""
    return text.startswith((".", "/", "~")) or text.endswith("/") or text.count("/") > 1 or "\\" in text


def digests(recipe: Recipe, target_identity: str, text_digest: str | None) -> list[str]:
    """One sha256 per prefix of the stages: equal digests mean equal weights.

    Each covers the one before it, its stage's fields, kind and version, and where the stage runs on
    text or chance also the text and the seed. `target_identity` and `text_digest` are content hashes:
    paths and names enter nothing. Does not know device, threads or package versions.
    """
    chain = _sha256({"target": target_identity, "dtype": recipe.target.dtype})
    found = []
    for stage in recipe.stages:
        link: dict[str, Any] = {"before": chain, "stage": stage.model_dump(mode="json"), "version": type(stage).version}
        if stage.needs_text:
            link["data"] = facts_of(recipe.data, text_digest)
        if stage.uses_seed:
            link["seed"] = recipe.seed
        chain = _sha256(link)
        found.append(chain)
    return found


def _sha256(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
