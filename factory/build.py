"""Run one recipe: locate the target -> text -> each stage -> artifact. Resumes by digest.

Everything finished lies in OUT/.cache under the digest of all that it depends on, and is used again
whatever the recipe is called. A killed build goes on after its last finished stage, a training
stage from its last checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory import __version__, models, provenance
from factory.anatomy import anatomy_of, edited_config, shape_from_config
from factory.artifact import Artifact, write_manifest
from factory.data import (
    TextBlocks,
    encode_prompts,
    load_dataset_prompts,
    read_prompts,
    split_held_out,
    text_blocks,
    write_text,
)
from factory.edit import Shape
from factory.errors import DataError, FactoryError
from factory.files import locked, write_atomically
from factory.recipe import Loaded, Recipe, digests
from factory.stages import Given, Stage, StructuralStage, TrainingStage
from factory.tensors.surgery import carve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int, int, str], None]


@dataclass
class Workshop:
    """What one build shares between its steps; the target is loaded only when a step needs it."""

    recipe: Recipe
    located: models.Located
    identity: str
    device: str
    cache: Path
    progress: Progress
    text_digest: str = field(init=False)

    def __post_init__(self) -> None:
        self.text_digest = provenance.sha256_text(json.dumps(self._text_key(), sort_keys=True))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The target's config.json."""
        return models.read_config(self.located.folder)

    @cached_property
    def target(self) -> PreTrainedModel:
        """The target, in the recipe's dtype."""
        self.progress(0, 1, "loading the target")
        dtype = models.resolve_dtype(self.recipe.target.dtype, self.device)
        target = models.load_model(self.located.folder, dtype=dtype, device=self.device)
        self.progress(1, 1, "loading the target")
        return target

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The target's tokenizer."""
        return models.load_tokenizer(self.located.folder)

    @cached_property
    def prompt_texts(self) -> list[str] | None:
        """The prompts as text; None where the target begins from its first token."""
        data = self.recipe.data
        if data is None or data.prompts == "bos":
            return None
        if isinstance(data.prompts, str):
            return read_prompts(Path(data.prompts))
        source = data.prompts
        return load_dataset_prompts(source.dataset, source.split, source.column, source.samples)

    def _text_key(self) -> dict[str, Any] | None:
        """All that decides the text."""
        if self.recipe.data is None:
            return None
        data = self.recipe.data.model_dump(exclude={"prompts"})
        return {
            "data": data,
            "prompts": provenance.sha256_text(json.dumps(self.prompt_texts)),
            "seed": self.recipe.seed,
            "dtype": self.recipe.target.dtype,
            "target": self.identity,
        }

    @cached_property
    def text(self) -> tuple[TextBlocks, TextBlocks]:
        """(training, held out), split before anything is seen."""
        data = self.recipe.data
        if data is None:
            raise DataError("the recipe has no `data` section, and a stage needs text")
        room = models.context_length(self.target) - data.max_new_tokens - 1
        prompts = [[models.first_token_id(self.target)]]
        if self.prompt_texts is not None:
            prompts, left_out = encode_prompts(self.tokenizer, self.prompt_texts, room)
            if not prompts:
                raise DataError(
                    f"data.prompts: none of {left_out} prompts leaves room for max_new_tokens = "
                    f"{data.max_new_tokens} in the target's context; give shorter prompts or a smaller max_new_tokens"
                )
        if data.written_by == "none":
            rows = text_blocks([(ids, 1) for ids in prompts])
            samples = len(rows)
        else:
            samples = data.samples
            rows = write_text(
                self.target,
                prompts,
                samples=samples,
                temperature=data.temperature,
                max_new_tokens=data.max_new_tokens,
                batch=data.batch,
                seed=self.recipe.seed,
                folder=self.cache / "text" / self.text_digest,
                progress=self.progress,
            )
        training, held_out = split_held_out(len(prompts), samples, data.held_out)
        return rows.rows(training), rows.rows(held_out)


def build(loaded: Loaded, out: Path, progress: Progress) -> list[Artifact]:
    """The recipe's artifacts in `out`: the drafter, and `<name>--raw` where the recipe keeps it.

    What is unchanged since the last build is used again. Raises FactoryError (RecipeError,
    UnsupportedModel, ModelError, DataError) with all that is finished kept for the next try.
    """
    recipe = loaded.recipe
    out.mkdir(parents=True, exist_ok=True)
    with locked(out), _disk_errors(out):
        device = models.resolve_device("auto")
        located = models.locate(loaded.require_target(), recipe.target.revision)
        identity = models.weights_identity(located.folder, out / ".cache" / "identity.json")
        shop = Workshop(recipe, located, identity, device, out / ".cache", progress)
        shapes = _forecast(recipe, shop.config)
        chain = digests(recipe, identity, shop.text_digest)
        wanted = [(recipe.name, len(recipe.stages))]
        first_training = next((i for i, s in enumerate(recipe.stages) if isinstance(s, TrainingStage)), None)
        if recipe.keep_raw and first_training:
            wanted.append((f"{recipe.name}--raw", first_training))
        finished: dict[str, Artifact] = {}
        for name, count in wanted:
            known = _complete(out / name, chain[count - 1])
            if known is not None:
                finished[name] = known
        if len(finished) < len(wanted):
            for index in range(max(count for name, count in wanted if name not in finished)):
                _run_stage(shop, recipe.stages[index], chain[: index + 1])
        for name, count in wanted:
            if name not in finished:
                finished[name] = _assemble(shop, loaded, out / name, chain[:count], shapes)
        return [finished[name] for name, _ in wanted]


def _forecast(recipe: Recipe, config: dict[str, Any]) -> list[Shape]:
    """Shapes before and after each stage: what cannot be done is refused before anything starts."""
    shapes = [shape_from_config(config)]
    for stage in recipe.stages:
        shapes.append(stage.forecast(shapes[-1]))
    return shapes


def _stage_folder(cache: Path, digest: str) -> Path:
    return cache / "stages" / digest


def _run_stage(shop: Workshop, stage: Stage, chain: list[str]) -> None:
    """Apply the last stage of a digest chain to the result of those before it, and keep the result."""
    folder = _stage_folder(shop.cache, chain[-1])
    if (folder / "stage.json").is_file():
        return
    previous = _stage_folder(shop.cache, chain[-2]) / "model" if len(chain) > 1 else None
    working = folder.with_name(folder.name + ".working")  # a training stage's checkpoints live here
    working.mkdir(parents=True, exist_ok=True)
    before = models.fingerprint(shop.target)
    training, held_out = shop.text if stage.needs_text else (None, None)
    given = Given(shop.target, training, held_out, shop.recipe.seed, working, shop.progress)
    if isinstance(stage, StructuralStage):
        drafter, facts = _structural(shop, stage, previous, given)
    elif isinstance(stage, TrainingStage):
        source = previous or shop.located.folder
        drafter = models.load_model(source, dtype=shop.target.dtype, device=shop.device)
        facts = stage.apply(drafter, given)
    else:
        raise TypeError(f"{stage.kind} is neither structural nor training")
    if models.fingerprint(shop.target) != before:
        raise FactoryError(
            f"stage {stage.kind} changed the target's weights: nothing of it is kept; please report this"
        )
    drafter.save_pretrained(working / "model")
    shop.tokenizer.save_pretrained(working / "model")
    record = {"stage": stage.model_dump(), "version": stage.version, "facts": facts}
    write_atomically(working / "stage.json", json.dumps(record, indent=1))
    (working / "checkpoint.pt").unlink(missing_ok=True)
    working.rename(folder)


def _structural(
    shop: Workshop, stage: StructuralStage, previous: Path | None, given: Given
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Score, decide, carve into a new model."""
    if previous is None:
        model, config = shop.target, shop.config
    else:
        model = models.load_model(previous, dtype=shop.target.dtype, device=shop.device)
        config = models.read_config(previous)
    scores = stage.measure(model, given)
    edit = stage.decide(shape_from_config(config), scores)
    tensors = carve(model.state_dict().items(), edit, anatomy_of(config).layers)
    drafter = models.new_model(edited_config(config, edit), tensors, like=model)
    return drafter, {"edit": asdict(edit), "scores": scores}


def _complete(folder: Path, digest: str) -> Artifact | None:
    """The finished artifact of that digest, verified, or None."""
    if not (folder / "manifest.json").is_file():
        return None
    artifact = Artifact.open(folder)
    if artifact.manifest.get("digest") != digest:
        return None
    artifact.verify()
    return artifact


def _assemble(shop: Workshop, loaded: Loaded, folder: Path, chain: list[str], shapes: list[Shape]) -> Artifact:
    """Copy the last stage's model and every record into a new artifact folder, then swap it in."""
    recipe = loaded.recipe
    working = shop.cache / "assembling" / folder.name
    shutil.rmtree(working, ignore_errors=True)
    (working / "stages").mkdir(parents=True)
    shutil.copytree(_stage_folder(shop.cache, chain[-1]) / "model", working / "model")
    facts = []
    for index, (stage, digest) in enumerate(zip(recipe.stages, chain, strict=False)):
        record = json.loads((_stage_folder(shop.cache, digest) / "stage.json").read_text())
        facts.append({"kind": stage.kind, **record["facts"]})
        write_atomically(working / "stages" / f"{index}-{stage.kind}.json", json.dumps(record, indent=1))
    (working / "recipe.yaml").write_bytes(loaded.source)
    write_atomically(working / "resolved.yaml", recipe.to_yaml())
    drafter = models.load_model(working / "model", dtype=shop.target.dtype, device="cpu")
    manifest = {
        "name": folder.name,
        "digest": chain[-1],
        "raw": folder.name != recipe.name,
        "target": {
            "model": loaded.target_as_given,
            "path": str(shop.located.folder) if shop.located.revision is None else None,
            "revision": shop.located.revision,
            "identity": shop.identity,
            "parameters": shop.target.num_parameters(),
        },
        "dtype": str(shop.target.dtype).removeprefix("torch."),
        "parameters": drafter.num_parameters(),
        "bytes_on_disk": sum(file.stat().st_size for file in (working / "model").glob("*.safetensors")),
        "target_shape": asdict(shapes[0]),
        "shape": asdict(shapes[len(chain)]),
        "facts": facts,
        "seed": recipe.seed,
        "factory_version": __version__,
        "git_sha": provenance.git_sha(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(shop.device),
    }
    write_manifest(working, manifest)
    shutil.rmtree(folder, ignore_errors=True)
    working.rename(folder)
    artifact = Artifact.open(folder)
    artifact.write_card()
    return artifact


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """A full disk becomes a message: what is finished stays, and the same command goes on."""
    try:
        yield
    except OSError as error:
        raise FactoryError(f"{out}: {error.strerror or error}; make room and run the same command again") from error
