"""A target and what drafts for it, opened to be run together: what a conversation and a program both begin with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from factory.artifact import Artifact, artifact_folders
from factory.errors import ArtifactError, DataError
from factory.models.located import locate
from factory.progress import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from factory.decoding.drafters import ModelDrafter, PromptLookup
    from factory.decoding.reader import Reader
    from factory.decoding.readers import ReaderKind


@dataclass(frozen=True)
class Pair:
    """Both models on their device, read by the fastest readers that keep them as they are."""

    target: Reader
    model: ModelDrafter | None  # the artifact's; None where a target was opened alone
    lookup: PromptLookup
    tokenizer: PreTrainedTokenizerBase
    eos: frozenset[int]
    notes: tuple[str, ...]  # what runs how, a line each


def open_artifact(folder: Path, progress: Progress = silent) -> Artifact:
    """The artifact, every file compared with its manifest. Raises ArtifactError."""
    if folder.is_dir() and not (folder / "manifest.json").is_file():
        if (folder / "config.json").is_file():
            raise ArtifactError(f"{folder}: a model, not an artifact; `factory chat --target {folder}` talks with it")
        if inside := artifact_folders(folder):
            raise ArtifactError(f"{folder}: holds several drafters; name one: {', '.join(map(str, inside))}")
    artifact = Artifact.open(folder)
    artifact.verify(progress)
    return artifact


def open_pair(
    artifact: Artifact | None,
    target: str | None,
    *,
    reader: ReaderKind,
    drafter_reader: ReaderKind,
    device: str,
    dtype: str,
    progress: Progress,
) -> Pair:
    """Load both; `auto`: CUDA where there is one, float32 on a CPU and bfloat16 elsewhere.

    The target is the one that the artifact was made from, taken from `target` where that is given; without an
    artifact it is `target`, and prompt lookup alone drafts. Of the steps that `progress` is told, the last, warming
    up, is the caller's. Raises ArtifactError, DataError, ModelError, UnsupportedModel.
    """
    if artifact is None and target is None:
        raise DataError("name an ARTIFACT, or give --target MODEL_OR_FOLDER to draft by prompt lookup")
    from factory.decoding.drafters import ModelDrafter, PromptLookup
    from factory.decoding.readers import open_reader, require_target_reader
    from factory.decoding.vocabulary import require_one_vocabulary
    from factory.models import loading

    require_target_reader(reader)
    where = loading.resolve_device(device)
    computed_in = loading.resolve_dtype(dtype, where)
    steps = 2 if artifact is None else 3
    progress(0, steps, "loading, the target")
    if artifact is not None:
        model = artifact.load_target(target, computed_in, where, progress=progress)
    else:
        model = loading.load_model(locate(target or "", progress=progress).folder, dtype=computed_in, device=where)
        loading.require_finite(model)
    tokenizer = loading.load_tokenizer(model.config.name_or_path)
    read = open_reader(model, reader)
    runs = f"{str(computed_in).removeprefix('torch.')} on {where}"
    notes = [f"target: {model.num_parameters() / 1e6:,.1f} M parameters, {runs}, {_run_by(read)}"]
    drafts = None
    if artifact is not None:
        progress(1, steps, "loading, the drafter")
        small = artifact.load_model(computed_in, where)
        by = open_reader(small, drafter_reader)
        require_one_vocabulary(
            tokenizer,
            artifact.load_tokenizer(),
            target_rows=read.vocabulary,
            drafter_rows=by.vocabulary,
            name=artifact.name,
        )
        drafts = ModelDrafter(by, artifact.name, vocabulary=read.vocabulary)
        notes.append(f"drafter {artifact.name}: {small.num_parameters() / 1e6:,.1f} M parameters, {_run_by(by)}")
    lookup = PromptLookup(vocabulary=read.vocabulary, device=where)
    return Pair(read, drafts, lookup, tokenizer, loading.eos_token_ids(model), tuple(notes))


def reader_kind(text: str, name: str) -> ReaderKind:
    """A reader's kind of its name; `name` is what it was given as. Raises DataError."""
    from factory.decoding.readers import KINDS

    for kind in KINDS:
        if kind == text:
            return kind
    raise DataError(f"{name}: must be one of {', '.join(KINDS)}, not {text!r}")


def _run_by(reader: Reader) -> str:
    return f"reader {reader.name}" + (f" ({reader.why})" if reader.why else "")
