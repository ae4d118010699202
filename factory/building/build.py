"""Run a recipe's candidates: locate the target -> text -> each stage -> artifact. Resumes by digest.

Everything finished lies in OUT/.cache under the digest of all that it depends on, and is used again
whatever the recipe is called; what candidates share is done once. A killed build goes on after its
last finished stage, a training stage from its last checkpoint. What is left to do is decided here,
without torch, so that a build with nothing to do is over at once; the work itself is in workshop.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from factory.anatomy.families import shape_from_config
from factory.artifact import Artifact
from factory.building.job import Job, Progress, shapes_of
from factory.building.room import require_room, require_room_for_download
from factory.building.tasks import Task, tasks_of, wanted, wanting
from factory.building.workers import carry_out
from factory.data.prompts import Entry
from factory.errors import ArtifactError, FactoryError, ModelError, RecipeError, UnsupportedModel
from factory.files.atomic import locked
from factory.files.disk import DiskError, disk_errors
from factory.models.located import locate, model_identity, read_config, require_complete
from factory.processes import Processes, launched, peers_missed
from factory.progress import silent, step
from factory.recipes.recipe import Loaded
from factory.stages import Distill

_LOG = logging.getLogger(__name__)


def build(
    candidates: Sequence[Loaded], out: Path, progress: Progress, jobs: int = 1, *, anyway: bool = False
) -> list[Artifact]:
    """The artifacts of all candidates of one recipe in `out`: of each the drafter, and `<name>--raw` where it is kept.

    What is unchanged since the last build is used again. `jobs` processes share the work and the
    threads; equal threads make equal bytes, in whatever order things are done. A candidate that fails
    does not stop the others. Raises FactoryError (RecipeError, UnsupportedModel, ModelError, DataError,
    DiskError) with all that is finished kept for the next try; what can be known is refused before
    anything is begun, and so is what is forecast not to fit into this machine, unless it is built `anyway`.
    """
    together = launched()
    if together.world > 1 and jobs > 1:
        raise FactoryError(f"--jobs {jobs} within {together.world} launched processes: give one of the two")
    with peers_missed():
        made = _led(candidates, out, progress, jobs, together, anyway) if together.first else _followed(together)
        together.end()
    return made


def _led(
    candidates: Sequence[Loaded], out: Path, progress: Progress, jobs: int, together: Processes, anyway: bool
) -> list[Artifact]:
    """Find out what is left to do, tell the others, and do it."""
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with locked(out) as lock:
            if not anyway:
                require_room_for_download(candidates, out, progress, jobs)
            _require_shareable(candidates, together)
            made = _jobs(candidates, out, progress)
            names = {name: (job, count) for job in made for name, count in wanted(job).items()}
            finished = {name: _complete(out / name, job.chain[count - 1]) for name, (job, count) in names.items()}
            missing = {name: names[name][1] for name, artifact in finished.items() if artifact is None}
            for name in missing:
                if (out / name).exists():
                    kept = out / ".cache" / "replaced"
                    _LOG.warning("%s: the artifact of another recipe there will be kept in %s", out / name, kept)
            if missing:
                _require_first_tokens(made)
                tasks = tasks_of(made, missing)
                if not anyway:
                    require_room(tasks, made, jobs, together=together.world)
                together.told(([replace(job, progress=silent) for job in made], tasks))
                failures = carry_out(tasks, made, progress, jobs, lock, together)
                _raise(failures, tasks, several=len(made) > 1)
                finished |= {name: Artifact.open(out / name) for name in missing}
            else:
                together.told(([], []))
            return [artifact for artifact in finished.values() if artifact is not None]


def _followed(together: Processes) -> list[Artifact]:
    """Take part in what the first process has found to be left to do. The artifacts are its own to tell of."""
    made, tasks = together.told(None)
    carry_out(tasks, made, silent, 1, None, together)
    return []


def _jobs(candidates: Sequence[Loaded], out: Path, progress: Progress) -> list[Job]:
    """Every candidate with its inputs. One recipe has one target, so that is looked at once."""
    first = candidates[0]
    try:
        located = locate(first.require_target(), first.recipe.target.revision, progress)
    except ModelError as error:
        raise ModelError(f"{first.document.place(('target', 'model'))}: {error}") from error
    config = read_config(located.folder)
    _require_possible(candidates, config)
    _require_same_sizes(candidates, config)
    require_complete(located.folder)
    identity = model_identity(located.folder, out / ".cache" / "identity.json", progress)
    entries: dict[str, list[Entry] | None] = {}  # read once: candidates share the very list
    jobs = []
    for loaded in candidates:
        data = loaded.recipe.data
        key = data.model_dump_json(include={"prompts"}) if data else ""
        if key not in entries:
            with step(progress, "reading prompts") if data else nullcontext():
                entries[key] = data.entries(out / ".cache" / "prompts") if data else None
        jobs.append(Job(loaded, located, identity, config, out, entries[key], progress))
    return jobs


def _require_shareable(candidates: Sequence[Loaded], together: Processes) -> None:
    """Raises RecipeError with each stage, and its line, that this many processes cannot do together."""
    faults: dict[str, None] = {}
    for loaded in candidates:
        for index, stage in enumerate(loaded.recipe.stages):
            fault = stage.fault_together(together.world, together.sharded) if isinstance(stage, Distill) else None
            if fault is not None:
                faults[f"{loaded.place(index)}: {fault}"] = None
    if faults:
        raise RecipeError("\n".join(faults))


def _require_same_sizes(candidates: Sequence[Loaded], config: dict[str, Any]) -> None:
    """Raises RecipeError where a recipe's `config` file, which forecasts are made from, is of another model."""
    ours = replace(shape_from_config(config), bits=0, table_bits=0)
    faults: dict[str, None] = {}
    for loaded in candidates:
        told = loaded.target_config() if loaded.recipe.target.config is not None else None
        if told is None:
            continue
        place = loaded.document.place(("target", "config"))
        try:
            theirs = replace(shape_from_config(told), bits=0, table_bits=0)
        except UnsupportedModel as error:
            faults[f"{place}: {error}"] = None
            continue
        pairs = [(name, value, getattr(ours, name)) for name, value in asdict(theirs).items()]
        if differ := [f"{name} {value} instead of {own}" for name, value, own in pairs if value != own]:
            said = f"{place}: its sizes are not those of the target: {', '.join(differ)}"
            faults[f"{said}; remove the key, or name the right file"] = None
    if faults:
        raise RecipeError("\n".join(faults))


def _require_possible(candidates: Sequence[Loaded], config: dict[str, Any]) -> None:
    """Raises UnsupportedModel with everything that the target's family or sizes do not allow, each with its line."""
    faults: dict[str, None] = {}  # candidates share most of theirs
    for loaded in candidates:
        try:
            shapes_of(loaded, config)
        except UnsupportedModel as error:
            faults[str(error)] = None
    if faults:
        raise UnsupportedModel("\n".join(faults))


def _complete(folder: Path, digest: str) -> Artifact | None:
    """The finished artifact of that digest, verified, or None."""
    if not (folder / "manifest.json").is_file():
        if folder.exists():
            raise FactoryError(f"{folder}: exists and is no artifact; move it away, or give another --out")
        return None
    try:
        artifact = Artifact.open(folder)
    except ArtifactError:  # of an older version, or damaged: it is set aside when the new one is there
        return None
    if artifact.manifest.get("digest") != digest:
        return None
    artifact.verify()
    return artifact


def _require_first_tokens(jobs: Sequence[Job]) -> None:
    """Raises ModelError where the target is to write from nothing and has no token to begin with."""
    writing = [job for job in jobs if job.recipe.data is not None and job.recipe.data.written_by == "target"]
    if not writing:
        return
    from factory.data.special_tokens import special_tokens

    found = special_tokens(writing[0].located.folder)
    begins = next((job for job in writing if job.entries is None), None)
    if begins is not None and found.first is None:
        place = begins.loaded.document.place(("data", "prompts"))
        raise ModelError(
            f"{place}: {begins.located.folder} names neither a BOS nor an EOS token that is in its vocabulary: "
            "`prompts: bos` cannot begin a text; give a prompts file instead"
        )
    if not found.ends:
        _LOG.warning("the target names no EOS token: every text that it writes goes on to max_new_tokens")


def _raise(failures: dict[str, Exception], tasks: Sequence[Task], several: bool) -> None:
    """One error of all that failed, naming the candidates that it cost; those of the program itself as they are."""
    for error in failures.values():
        if not isinstance(error, FactoryError):
            raise error
    if not failures:
        return
    errors = list(failures.values())
    full = next((error for error in errors if isinstance(error, DiskError)), None)
    if full is not None or not several:
        raise full or errors[0]
    lines = [f"{', '.join(sorted(wanting(tasks, key)))}: {error}" for key, error in failures.items()]
    kinds = {type(error) for error in errors}
    raise (kinds.pop() if len(kinds) == 1 else FactoryError)("\n".join(lines))
