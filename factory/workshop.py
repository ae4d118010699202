"""Where a build's work is done: the target's text, each stage on the result of the one before, the artifact."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from factory import __version__, models, provenance
from factory.anatomy import anatomy_of, edited_config, shape_from_config
from factory.artifact import Artifact, write_manifest
from factory.data import TextBlocks, encode_prompts, split_held_out, text_blocks, write_text
from factory.errors import DataError, FactoryError
from factory.files import write_atomically
from factory.job import Job
from factory.located import read_config
from factory.provenance import sha256_file
from factory.stages import AnyStage, Given, StructuralStage
from factory.tensors.surgery import carve


class Workshop:
    """What the steps of one build share; target and text are made when a step first needs them."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._device = models.resolve_device("auto")

    def make(self, wanted: dict[str, int]) -> dict[str, Artifact]:
        """Artifacts by name, each the result of the recipe's first so many stages."""
        for count in range(1, max(wanted.values()) + 1):
            self._run(self._job.recipe.stages[count - 1], self._job.chain[:count])
        return {name: self._assemble(self._job.out / name, self._job.chain[:count]) for name, count in wanted.items()}

    @cached_property
    def _target(self) -> PreTrainedModel:
        self._job.progress(0, 1, "loading the target")
        dtype = models.resolve_dtype(self._job.recipe.target.dtype, self._device)
        target = models.load_model(self._job.located.folder, dtype=dtype, device=self._device)
        self._job.progress(1, 1, "loading the target")
        return target

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return models.load_tokenizer(self._job.located.folder)

    @cached_property
    def _text(self) -> tuple[TextBlocks, TextBlocks]:
        """(training, held out), split before anything is seen."""
        recipe = self._job.recipe
        data = recipe.data
        if data is None:
            raise DataError("the recipe has no `data` section, and a stage needs text")
        prompts = [[models.first_token_id(self._target)]]
        if self._job.prompt_texts is not None:
            written = 0 if data.written_by == "none" else data.max_new_tokens
            room = models.context_length(self._target) - written
            prompts, left_out = encode_prompts(self._tokenizer, self._job.prompt_texts, room)
            if not prompts:
                raise DataError(
                    f"data.prompts: none of {left_out} prompts leaves room for {written} new tokens in the target's "
                    "context; give shorter prompts or a smaller max_new_tokens"
                )
        if data.written_by == "none":
            rows = text_blocks([(ids, 1) for ids in prompts])
        else:
            rows = write_text(
                self._target,
                prompts,
                samples=data.samples,
                temperature=data.temperature,
                max_new_tokens=data.max_new_tokens,
                batch=data.batch,
                seed=recipe.seed,
                folder=self._job.cache / "text" / self._job.text_digest,
                progress=self._job.progress,
            )
        training, held_out = split_held_out(len(prompts), len(rows), data.held_out)
        return rows.rows(training), rows.rows(held_out)

    def _folder(self, digest: str) -> Path:
        """Where the result of a chain of stages is kept."""
        return self._job.cache / "stages" / digest

    def _run(self, stage: AnyStage, chain: list[str]) -> None:
        """Apply the last stage of a digest chain to the result of those before it, and keep the result."""
        folder = self._folder(chain[-1])
        if _is_sound(folder):
            return
        shutil.rmtree(folder, ignore_errors=True)  # a damaged result is made again, never used
        # Always read back from disk, in an undisturbed build as in a resumed one: both end alike.
        source = self._folder(chain[-2]) / "model" if len(chain) > 1 else self._job.located.folder
        working = folder.with_name(folder.name + ".working")  # a training stage's checkpoints live here
        working.mkdir(parents=True, exist_ok=True)
        before = models.fingerprint(self._target)
        training, held_out = self._text if stage.needs_text else (None, None)
        given = Given(self._target, training, held_out, self._job.recipe.seed, working, self._job.progress)
        drafter = models.load_model(source, dtype=self._target.dtype, device=self._device)
        if isinstance(stage, StructuralStage):
            drafter, facts = _carved(stage, drafter, read_config(source), given)
        else:
            facts = stage.apply(drafter, given)
        if models.fingerprint(self._target) != before:
            raise FactoryError(f"stage {stage.kind} changed the target's weights: nothing of it is kept; report this")
        drafter.save_pretrained(working / "model")
        self._tokenizer.save_pretrained(working / "model")
        sums = {path.name: sha256_file(path) for path in sorted((working / "model").iterdir())}
        record = {"stage": stage.model_dump(), "version": stage.version, "facts": facts, "files": sums}
        write_atomically(working / "stage.json", json.dumps(record, indent=1))
        working.rename(folder)
        (folder / "checkpoint.pt").unlink(missing_ok=True)

    def _assemble(self, folder: Path, chain: list[str]) -> Artifact:
        """Copy the last stage's model and every record into a new artifact folder, then swap it in."""
        job = self._job
        working = job.cache / "assembling" / folder.name
        shutil.rmtree(working, ignore_errors=True)
        (working / "stages").mkdir(parents=True)
        shutil.copytree(self._folder(chain[-1]) / "model", working / "model")
        facts = []
        for index, (stage, digest) in enumerate(zip(job.recipe.stages, chain, strict=False)):
            record = json.loads((self._folder(digest) / "stage.json").read_text())
            facts.append({"kind": stage.kind, **record["facts"]})
            write_atomically(working / "stages" / f"{index}-{stage.kind}.json", json.dumps(record, indent=1))
        (working / "recipe.yaml").write_bytes(job.loaded.source)
        target = job.recipe.target.model_copy(update={"revision": job.located.revision})
        write_atomically(working / "resolved.yaml", job.recipe.model_copy(update={"target": target}).to_yaml())
        drafter = models.load_model(working / "model", dtype=self._target.dtype)
        manifest = {
            "name": folder.name,
            "digest": chain[-1],
            "chain": chain,
            "raw": folder.name != job.recipe.name,
            "target": {
                "model": job.loaded.target_as_given,
                "path": str(job.located.folder) if job.located.revision is None else None,
                "revision": job.located.revision,
                "identity": job.identity,
                "parameters": self._target.num_parameters(),
            },
            "dtype": str(self._target.dtype).removeprefix("torch."),
            "parameters": drafter.num_parameters(),
            "bytes_on_disk": sum(file.stat().st_size for file in (working / "model").glob("*.safetensors")),
            "target_shape": asdict(job.shapes[0]),
            "shape": asdict(job.shapes[len(chain)]),
            "facts": facts,
            "seed": job.recipe.seed,
            "factory_version": __version__,
            "git_sha": provenance.git_sha(),
            "versions": provenance.versions(),
            "hardware": provenance.hardware(self._device),
        }
        write_manifest(working, manifest)
        if folder.exists():  # an artifact of another recipe: kept aside, since its evaluations cannot be made again
            replaced = job.cache / "replaced" / f"{folder.name}-{time.time_ns()}"
            replaced.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(replaced)
        working.rename(folder)
        artifact = Artifact.open(folder)
        artifact.write_card()
        return artifact


def _is_sound(folder: Path) -> bool:
    """Whether a stage's result is complete and every file of its model is as it was written."""
    if not (folder / "stage.json").is_file():
        return False
    sums = json.loads((folder / "stage.json").read_text())["files"]
    files = {name: folder / "model" / name for name in sums}
    return all(path.is_file() and sha256_file(path) == sums[name] for name, path in files.items())


def _carved(
    stage: StructuralStage, model: PreTrainedModel, config: dict[str, Any], given: Given
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Score, decide, carve into a new model."""
    scores = stage.measure(model, given)
    edit = stage.decide(shape_from_config(config), scores)
    tensors = carve(model.state_dict().items(), edit, anatomy_of(config).layers)
    return models.new_model(edited_config(config, edit), tensors, like=model), {"edit": asdict(edit), "scores": scores}
