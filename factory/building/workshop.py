"""Where a build's work is done: text, teacher cache, each stage on the result of the one before, artifact.

Structural stages pass the checkpoint through tensor by tensor; the target is loaded only where a
stage runs it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from factory import __version__, provenance
from factory.anatomy.families import shape_from_config, stored_as, stored_dtype
from factory.anatomy.shapes import Edit
from factory.artifact import Artifact, write_manifest
from factory.assisted import settle
from factory.building.job import Job
from factory.building.meter import metered
from factory.building.text import corpus_of, data_of
from factory.data.blocks import Corpus, TextBlocks, split_held_out
from factory.errors import FactoryError
from factory.files.atomic import readable, write_atomically
from factory.files.disk import DiskError
from factory.forecasting.estimate import forecast_recipe
from factory.forecasting.forecast import costs_in_time, expected_tokens, served
from factory.forecasting.profile import load as load_profile
from factory.models import loading as models
from factory.models.located import model_identity, read_config
from factory.processes import ALONE, Processes
from factory.progress import bytes_shown, step
from factory.provenance import sha256_file
from factory.stages import AnyStage, Distill, Given, QuantizingStage, StructuralStage
from factory.surgery.carving import carve_folder, copy_beside
from factory.teaching.teacher import Memory
from factory.teaching.teacher_cache import TeacherCache, write_cache


class Workshop:
    """Makes the things that candidates of one target need. The target stays loaded from one job to the next."""

    def __init__(self, job: Job, processes: Processes = ALONE) -> None:
        self._processes = processes
        self._device = models.resolve_device("auto")
        self._target: PreTrainedModel | None = None
        self._bits = 0  # the target's fingerprint when it was loaded
        self._texts: dict[str, Corpus] = {}  # by digest; one is kept
        self._memory: tuple[tuple[str, float], Memory] = (("", 0.0), {})  # of one text; its key
        self._job = job

    def turn_to(self, job: Job) -> None:
        """Work on another candidate. What depends on the target's dtype is forgotten where that differs."""
        if job.recipe.target.dtype != self._job.recipe.target.dtype:
            self._target = None
        self._job = job

    def target(self) -> PreTrainedModel:
        """The target, loaded at the first call. Raises ModelError where its weights are damaged."""
        if self._target is None:
            with step(self._job.progress, "loading the target"):
                dtype = models.resolve_dtype(self._job.recipe.target.dtype, self._device)
                self._target = models.load_model(self._job.located.folder, dtype=dtype, device=self._device)
                models.require_finite(self._target)
                self._bits = models.fingerprint(self._target)
        return self._target

    def write_text(self) -> None:
        """The job's text, on disk and in memory."""
        digest = self._job.text_digest
        if digest not in self._texts:
            self._texts = {digest: corpus_of(self._job, self.target, self._processes)}

    def _split_text(self) -> tuple[TextBlocks, TextBlocks]:
        """(training, held out), split before anything is seen."""
        self.write_text()
        text = self._texts[self._job.text_digest]
        training, held_out = split_held_out(text.prompt, data_of(self._job).held_out)
        return text.rows.rows(training), text.rows.rows(held_out)

    def write_teacher(self, count: int) -> None:
        """The teacher cache that stage number `count` reads: of the whole text, whatever is held out of it."""
        job, stage = self._job, self._job.recipe.stages[count - 1]
        if stage.cached is None:
            raise FactoryError(f"stage {stage.kind} reads no teacher cache: nothing is written; report this")
        self.write_text()
        write_cache(
            self.target(),
            self._texts[job.text_digest].rows,
            stage.cached,
            folder=job.teacher_folder(stage),
            key=job.teacher_key(stage),
            progress=job.progress,
            rank=self._processes.rank,
            world=self._processes.world,
            wait=self._processes.wait,
        )

    def run_stage(self, count: int) -> None:
        """Apply stage number `count` to the result of those before it, and keep the result.

        Of several processes the first does it and all others wait, unless it is one that they do together.
        """
        job, processes = self._job, self._processes
        stage, folder = job.recipe.stages[count - 1], job.stage_folder(count)
        # Always read back from disk, in an undisturbed build as in a resumed one: both end alike.
        source = job.stage_folder(count - 1) / "model" if count > 1 else job.located.folder
        working = folder.with_name(folder.name + ".working")  # a training stage's checkpoints live here
        if processes.first:
            shutil.rmtree(folder, ignore_errors=True)  # a damaged result is made again, never used
            shutil.rmtree(working / "model", ignore_errors=True)
            (working / "model").mkdir(parents=True)
        processes.wait()
        if stage.needs_text:
            self.write_text()  # together, where it has to be made or read again
        if processes.first or isinstance(stage, Distill):
            with self._told_where(count):
                self._run(stage, source, working)
        processes.wait()  # until nobody reads there any more
        if processes.first:
            working.rename(folder)
            for path in (folder / "checkpoint.pt", folder / "best.pt"):
                path.unlink(missing_ok=True)
            shutil.rmtree(folder / "reference", ignore_errors=True)
        processes.wait()

    @contextmanager
    def _told_where(self, count: int) -> Iterator[None]:
        """What goes wrong in stage number `count` is told with its line. A full disk is no fault of the recipe's."""
        try:
            yield
        except DiskError:
            raise
        except FactoryError as error:
            raise type(error)(f"{self._job.loaded.place(count - 1)}: {error}") from error

    def _run(self, stage: AnyStage, source: Path, working: Path) -> None:
        """Apply a stage to the model in `source`; its model and its record are left in `working`."""
        job = self._job
        training, held_out = self._split_text() if stage.needs_text else (None, None)
        cache = job.teacher_folder(stage) if stage.cached is not None else None
        if cache is not None:
            TeacherCache.open(cache, job.teacher_key(stage))  # of this very target and text, and whole
        dtype = models.resolve_dtype(job.recipe.target.dtype, self._device)
        given = Given(
            self.target,
            training,
            held_out,
            job.recipe.seed,
            working,
            job.progress,
            cache,
            modelled=self._modelled(),
            half=dtype.itemsize == 2,
            processes=self._processes,
            memory=self._memory_of(stage),
        )
        with metered(self._device) as taken:
            facts = self._applied(stage, source, working / "model", given)
        if self._target is not None and models.fingerprint(self._target) != self._bits:
            raise FactoryError(f"stage {stage.kind} changed the target's weights: nothing of it is kept; report this")
        if not self._processes.first:
            return
        files = sorted((working / "model").iterdir())
        more = bytes_shown(job.progress, "hashing what was written", sum(path.stat().st_size for path in files))
        for path in files:
            readable(path)
        sums = {path.name: sha256_file(path, more) for path in files}
        record = {"stage": stage.model_dump(), "version": stage.version, "facts": {**facts, **taken}, "files": sums}
        write_atomically(working / "stage.json", json.dumps(record, indent=1))

    def _memory_of(self, stage: AnyStage) -> Memory | None:
        """What the target's states on the present text are kept in, where they are looked at more than once.

        By the recipe alone: a reading in other batches is another one to the last bits.
        """
        whole = isinstance(stage, Distill) and stage.epochs > 1
        if not whole or self._processes.world > 1:
            return None
        key = (self._job.text_digest, data_of(self._job).held_out)
        if self._memory[0] != key:
            self._memory = (key, {})
        return self._memory[1]

    def _modelled(self) -> Callable[[float], dict[str, Any]]:
        """What a drafter of the finished recipe's shape would bring on this device, from alpha alone."""
        profile = load_profile()
        dtype = profile.default_dtype(self._job.recipe.target.dtype)
        drafter, target = served(self._job.shapes[-1], dtype), served(self._job.shapes[0], dtype)
        costs = costs_in_time(drafter, target, profile, dtype)

        def modelled(alpha: float) -> dict[str, Any]:
            speedup, k = costs.best(alpha)
            return {"tau": expected_tokens(alpha, k), "speedup": speedup, "k": k}

        return modelled

    def _applied(self, stage: AnyStage, source: Path, destination: Path, given: Given) -> dict[str, Any]:
        """Do what the stage says to the model in `source`, write the result into `destination`; its facts."""
        config = stored_as(read_config(source), self._job.recipe.target.dtype)
        if isinstance(stage, QuantizingStage):
            if config["dtype"] != stored_dtype(read_config(source)):  # the target itself
                cast = given.checkpoint / "cast"
                shutil.rmtree(cast, ignore_errors=True)
                cast.mkdir()
                carve_folder(source, cast, config, Edit())
                source = cast
            facts = stage.quantize(source, destination, given)
            shutil.rmtree(given.checkpoint / "cast", ignore_errors=True)
            return facts
        if isinstance(stage, StructuralStage):
            return self._carved(stage, config, source, destination, given)
        drafter = models.load_model(source, dtype=torch.float32, device=self._device)  # master weights
        facts = stage.apply(drafter, given)
        if self._processes.first:
            with step(given.progress, "saving the drafter"):
                drafter.to(models.DTYPES[config["dtype"]]).save_pretrained(destination)
                copy_beside(source, destination)
        return facts

    def _carved(
        self, stage: StructuralStage, config: dict[str, Any], source: Path, destination: Path, given: Given
    ) -> dict[str, Any]:
        """Score, decide, carve into a new folder, tensor by tensor."""
        scores = {}
        if stage.needs_model:
            dtype = models.resolve_dtype(self._job.recipe.target.dtype, self._device)
            first = source == self._job.located.folder
            model = self.target() if first else models.load_model(source, dtype=dtype, device=self._device)
            scores = stage.measure(model, given)
        edit = stage.decide(shape_from_config(config), scores, given.seed)
        with step(given.progress, f"{stage.kind}: cutting"):
            carve_folder(source, destination, config, edit)
        return {"edit": asdict(edit), "scores": scores}

    def assemble(self, name: str, count: int) -> Artifact:
        """Copy the last stage's model and every record into a new artifact folder, then swap it in."""
        job = self._job
        folder, chain, shape = job.out / name, job.chain[:count], job.shapes[count]
        working = job.cache / "assembling" / name
        shutil.rmtree(working, ignore_errors=True)
        (working / "stages").mkdir(parents=True)
        shutil.copytree(job.stage_folder(count) / "model", working / "model")
        settle(working / "model")
        facts = []
        for index, stage in enumerate(job.recipe.stages[:count]):
            record = json.loads((job.stage_folder(index + 1) / "stage.json").read_text())
            facts.append({"kind": stage.kind, **_brief(record["facts"])})
            write_atomically(working / "stages" / f"{index}-{stage.kind}.json", json.dumps(record, indent=1))
        (working / "recipe.yaml").write_bytes(job.loaded.source)
        given = job.loaded.as_given
        target = given.target.model_copy(update={"revision": job.located.revision})
        write_atomically(working / "resolved.yaml", given.model_copy(update={"target": target}).to_yaml())
        if model_identity(job.located.folder, job.cache / "identity.json") != job.identity:
            raise FactoryError(f"{job.located.folder}: the target's files changed during the build; run it again")
        forecast = forecast_recipe(job.loaded, load_profile(), config=job.config)
        manifest = {
            "name": name,
            "digest": chain[-1],
            "chain": chain,
            "raw": name != job.name,
            "target": {
                "model": given.target.model,
                "revision": job.located.revision,
                "identity": job.identity,
                "parameters": job.shapes[0].parameters,
            },
            "dtype": stored_dtype(read_config(working / "model")),
            "weight_format": _weight_format(facts, job),
            "parameters": shape.parameters,
            "bytes_on_disk": sum(file.stat().st_size for file in (working / "model").glob("*.safetensors")),
            "forecast_bytes": round(shape.weight_bytes),
            "forecast": forecast.record() if forecast is not None and name == job.name else None,
            "target_shape": asdict(job.shapes[0]),
            "shape": asdict(shape),
            "facts": facts,
            "text": job.text_facts() if any(stage.needs_text for stage in job.recipe.stages[:count]) else None,
            "seed": job.recipe.seed,
            "factory_version": __version__,
            "git_sha": provenance.git_sha(),
            "versions": provenance.versions(),
            "hardware": provenance.hardware(self._device),
        }
        artifact = write_manifest(working, manifest)
        if job.located.revision is None:
            artifact.write_target_folder(job.located.folder)
        if folder.exists():  # an artifact of another recipe: kept aside, since its evaluations cannot be made again
            replaced = job.cache / "replaced" / f"{name}-{time.time_ns()}"
            replaced.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(replaced)
        working.rename(folder)
        artifact = Artifact.open(folder)
        artifact.write_card()
        return artifact


def _weight_format(facts: list[dict[str, Any]], job: Job) -> dict[str, Any]:
    """How the weights are stored and what will run them: `format`, `bits`, `kernel`, `loader`, and where it is slow."""
    last = facts[-1]
    if "weight_format" not in last:
        dtype = stored_as(job.config, job.recipe.target.dtype)["dtype"]
        return {"format": dtype, "kernel": "torch", "loader": "transformers", "only_saves_size": None}
    named = {key: last[key] for key in ("bits", "group_size", "kernel", "loader", "why_loader", "only_saves_size")}
    return {"format": last["weight_format"], **named}


def _brief(facts: dict[str, Any]) -> dict[str, Any]:
    """A stage's facts without the lists of channels, which its own record keeps."""
    brief = {key: value for key, value in facts.items() if key != "scores"}
    if "edit" in brief:
        brief["edit"] = {"keep_layers": brief["edit"]["keep_layers"]}
    return brief
