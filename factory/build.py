"""Run one recipe: locate the target -> text -> each stage -> artifact. Resumes by digest.

Everything finished lies in OUT/.cache under the digest of all that it depends on, and is used again
whatever the recipe is called. A killed build goes on after its last finished stage, a training
stage from its last checkpoint. What is left to do is decided here, without torch, so that a build
with nothing to do is over at once; the work itself is in workshop.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from factory.artifact import Artifact
from factory.errors import FactoryError
from factory.files import locked, write_atomically
from factory.job import Job, Progress
from factory.located import locate, read_config, weights_identity
from factory.prompts import load_dataset_prompts, read_prompts
from factory.provenance import sha256_text
from factory.recipe import Loaded, Recipe
from factory.stages import TrainingStage


def build(loaded: Loaded, out: Path, progress: Progress) -> list[Artifact]:
    """The recipe's artifacts in `out`: the drafter, and `<name>--raw` where the recipe keeps it.

    What is unchanged since the last build is used again. Raises FactoryError (RecipeError,
    UnsupportedModel, ModelError, DataError) with all that is finished kept for the next try.
    """
    recipe = loaded.recipe
    with _disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            located = locate(loaded.require_target(), recipe.target.revision)
            identity = weights_identity(located.folder, out / ".cache" / "identity.json")
            config = read_config(located.folder)
            job = Job(loaded, located, identity, config, out, _prompt_texts(recipe, out / ".cache"), progress)
            wanted = _wanted(job)
            finished = {name: _complete(out / name, job.chain[count - 1]) for name, count in wanted.items()}
            missing = {name: wanted[name] for name, artifact in finished.items() if artifact is None}
            if missing:
                from factory.workshop import Workshop  # torch: only where there is something to do

                finished |= Workshop(job).make(missing)
            return [artifact for artifact in finished.values() if artifact is not None]


def _prompt_texts(recipe: Recipe, cache: Path) -> list[str] | None:
    data = recipe.data
    if data is None or data.prompts == "bos":
        return None
    if isinstance(data.prompts, str):
        return read_prompts(Path(data.prompts))
    source = data.prompts
    stored = cache / "prompts" / f"{sha256_text(source.model_dump_json())}.json"
    if not stored.is_file():  # read once: the Hub is neither quick nor always there
        texts = load_dataset_prompts(source.dataset, source.split, source.column, source.samples)
        stored.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(stored, json.dumps(texts))
    return [str(text) for text in json.loads(stored.read_text(encoding="utf-8"))]


def _wanted(job: Job) -> dict[str, int]:
    """Artifact names and how many stages each has behind it; refuses what the target's shape does not allow."""
    stages = job.recipe.stages
    wanted = {job.recipe.name: len(job.shapes) - 1}
    if job.recipe.keep_raw:
        wanted[f"{job.recipe.name}--raw"] = next(
            i for i, stage in enumerate(stages) if isinstance(stage, TrainingStage)
        )
    return wanted


def _complete(folder: Path, digest: str) -> Artifact | None:
    """The finished artifact of that digest, verified, or None."""
    if not (folder / "manifest.json").is_file():
        if folder.exists():
            raise FactoryError(f"{folder}: exists and is no artifact; move it away, or give another --out")
        return None
    artifact = Artifact.open(folder)
    if artifact.manifest.get("digest") != digest:
        return None
    artifact.verify()
    return artifact


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """A full or read-only disk becomes a message: what is finished stays, and the same command goes on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FactoryError(f"{out}: {reason}; mend that and run the same command again") from error
