"""Who takes part: the artifacts asked for, their untrained siblings where kept, and prompt lookup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from eval.measurement import AUTO, MODEL, PROMPT_LOOKUP, Arm, ArmFacts, K
from eval.plan import EvalPlan
from factory.anatomy.shapes import Shape
from factory.artifact import Artifact
from factory.decoding.drafters import Drafter, ModelDrafter, PromptLookup
from factory.decoding.reader import Reader
from factory.decoding.readers import ReaderKind, open_reader
from factory.decoding.vocabulary import require_one_vocabulary
from factory.errors import ArtifactError
from factory.forecasting.forecast import cost_ratio, served
from factory.models.loading import load_tokenizer
from factory.models.quantized import is_quantized, kernel_of, only_saves_size, passed_over

RAW = "--raw"


@dataclass(frozen=True)
class Entry:
    """One drafter, and the k it is tried at. `artifact` None is prompt lookup."""

    artifact: Artifact | None
    ks: tuple[int, ...]
    auto: bool = False  # also at a k chosen anew in each round

    @property
    def arms(self) -> list[Arm]:
        """One for each k."""
        ks: tuple[K, ...] = (*self.ks, AUTO) if self.auto else self.ks
        if self.artifact is None:
            return [Arm(None, PROMPT_LOOKUP, k) for k in ks]
        return [Arm(self.artifact.name, MODEL, k) for k in ks]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of its drafter and of the target that this was made from; none where no model drafts."""
        if self.artifact is None:
            return ()
        made = self.artifact.manifest
        return Shape(**made["shape"]), Shape(**made["target_shape"])

    def facts(self, dtype: str) -> ArmFacts:
        """What its manifest says; c in bytes is that of both models as they run, in that dtype."""
        if self.artifact is None:
            return ArmFacts(parameters=0, bytes_on_disk=0, cost_ratio=None)
        made = self.artifact.manifest
        drafter, target = self.shapes
        c = cost_ratio(served(drafter, dtype), served(target, dtype))
        return ArmFacts(int(made["parameters"]), int(made["bytes_on_disk"]), c, drafter, target)


@dataclass(frozen=True)
class Running:
    """An entry that can draft: its model is on the device."""

    drafter: Drafter
    model: PreTrainedModel | None
    reader: Reader | None = None
    kernel: str | None = None  # what should be known of its weight format on this device

    @property
    def notes(self) -> list[str]:
        """What should be known of how it runs, as far as it has run."""
        why = reason(self.reader, self.drafter.name) if self.reader is not None else None
        return [note for note in (self.kernel, why) if note is not None]

    @property
    def weight_bytes(self) -> int:
        """Of the drafter's own tensors."""
        return int(self.model.get_memory_footprint()) if self.model is not None else 0


def entries(artifacts: Sequence[Artifact], plan: EvalPlan) -> list[Entry]:
    """Prompt lookup, then every artifact, each followed by its `--raw` sibling where there is one.

    Every file is compared with its manifest first. Raises ArtifactError where one is damaged, where
    two artifacts have one name, or where they were made from different targets.
    """
    found: dict[Path, Artifact] = {}
    for artifact in artifacts:
        found.setdefault(artifact.folder.resolve(), artifact)
        sibling = artifact.folder.with_name(artifact.folder.name + RAW)
        if (sibling / "manifest.json").is_file():
            raw = Artifact.open(sibling)
            if raw.manifest["digest"] in artifact.manifest["chain"]:  # else it is left over from another recipe
                found.setdefault(sibling.resolve(), raw)
    if not found:
        raise ArtifactError("no artifact to evaluate: `factory build RECIPE` makes one, `factory ls` lists them")
    by_name: dict[str, Artifact] = {}
    for artifact in found.values():
        artifact.verify()
        if artifact.name in by_name:
            raise ArtifactError(f"{artifact.folder} and {by_name[artifact.name].folder} have one name: rename one")
        by_name[artifact.name] = artifact
    targets = {artifact.manifest["target"]["identity"]: artifact for artifact in found.values()}
    if len(targets) > 1:
        folders = ", ".join(str(artifact.folder) for artifact in targets.values())
        raise ArtifactError(f"made from different targets, so not comparable: {folders}; evaluate them one by one")
    drafters = [Entry(a, plan.raw_ks) if a.manifest["raw"] else Entry(a, plan.ks, plan.auto_k) for a in found.values()]
    return [Entry(None, plan.lookup_ks, plan.auto_k), *drafters]


def start(
    entry: Entry,
    vocabulary: int,
    dtype: torch.dtype,
    device: str,
    kind: ReaderKind = "auto",
    drafts_to: torch.device | None = None,
) -> Running:
    """Load what the entry drafts with, and read it by that kind of reader. Raises ModelError, UnsupportedModel.

    `drafts_to`: the target's device, where the drafter lies on another.
    """
    if entry.artifact is None:
        return Running(PromptLookup(vocabulary=vocabulary, device=drafts_to or device), None)
    name, model = entry.artifact.name, entry.artifact.load_model(dtype, device)
    reader = opened(model, kind)
    kernel = _note(entry.artifact, model, device)
    return Running(ModelDrafter(reader, name, vocabulary=vocabulary, device=drafts_to), model, reader, kernel)


def require_vocabulary(field: Sequence[Entry], target: PreTrainedModel) -> None:
    """Raises UnsupportedModel where a drafter's tokens are not the target's, of which the first is named.

    An artifact carries the target's tokenizer, so this finds folders that were put together by hand.
    """
    theirs, rows = load_tokenizer(target.name_or_path), int(target.get_output_embeddings().weight.shape[0])
    for artifact in (entry.artifact for entry in field if entry.artifact is not None):
        require_one_vocabulary(
            theirs,
            artifact.load_tokenizer(),
            target_rows=rows,
            drafter_rows=int(artifact.manifest["shape"]["head_rows"]),
            name=artifact.name,
        )


def opened(model: PreTrainedModel, kind: ReaderKind) -> Reader:
    """A reader of a plan's kind, or of a simpler one, which then says why. Raises UnsupportedModel."""
    return open_reader(model, kind)


def reason(reader: Reader, whose: str) -> str | None:
    """Why no faster reader runs that model; None where nothing is to be said."""
    return f"{whose} runs by the reader {reader.name}: {reader.why}" if reader.why else None


def _note(artifact: Artifact, model: PreTrainedModel, device: str) -> str | None:
    """Which kernel runs a quantised drafter here, and whether it can bring any speed."""
    if not is_quantized(artifact.model_folder):
        return None
    kernel = kernel_of(model)
    runs = f"{artifact.name} is {artifact.manifest['weight_format']['bits']}-bit GPTQ, run by {kernel}."
    failed = passed_over(model)
    said = [
        runs,
        f"Faster kernels could not be loaded ({failed})." if failed else None,
        only_saves_size(device, kernel),
    ]
    return " ".join(part for part in said if part)
