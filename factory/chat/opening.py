"""A session made of what was named: an artifact with its target, or a target alone. Torch comes with the models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from factory.artifact import Artifact, artifact_folders
from factory.chat.settings import LOOKUP, MODEL, Settings
from factory.errors import ArtifactError, DataError
from factory.models.located import locate
from factory.progress import Progress

if TYPE_CHECKING:
    from factory.chat.session import Session
    from factory.decoding.drafters import Drafter
    from factory.decoding.reader import Reader
    from factory.decoding.readers import ReaderKind


def open_artifact(folder: Path) -> Artifact:
    """The artifact, every file compared with its manifest. Raises ArtifactError."""
    if folder.is_dir() and not (folder / "manifest.json").is_file():
        if (folder / "config.json").is_file():
            raise ArtifactError(f"{folder}: a model, not an artifact; `factory chat --target {folder}` talks with it")
        if inside := artifact_folders(folder):
            raise ArtifactError(f"{folder}: holds several drafters; name one: {', '.join(map(str, inside))}")
    artifact = Artifact.open(folder)
    artifact.verify()
    return artifact


def open_session(
    artifact: Artifact | None,
    target: str | None,
    settings: Settings,
    *,
    reader: str,
    drafter_reader: str,
    system: str | None,
    seed: int,
    progress: Progress,
) -> tuple[Session, list[str]]:
    """Load, warm up, and have everything ready for the first line; float32 on a CPU, bfloat16 on CUDA.

    Returns the session, and lines on what runs how.

    With an artifact its model can draft, and prompt lookup; the target is the one that it was made from, taken
    from `target` where that is given. With a target alone there is prompt lookup. Raises ArtifactError,
    DataError, ModelError, UnsupportedModel.
    """
    if artifact is None and target is None:
        raise DataError("name an ARTIFACT, or give --target MODEL_OR_FOLDER to draft by prompt lookup")
    from factory.chat.conversation import Conversation
    from factory.chat.session import Session
    from factory.decoding.drafters import ModelDrafter, PromptLookup
    from factory.decoding.readers import open_reader, require_target_reader
    from factory.decoding.vocabulary import require_one_vocabulary
    from factory.models import loading as models

    kind, drafter_kind = _reader_kind(reader, "--reader"), _reader_kind(drafter_reader, "--drafter-reader")
    require_target_reader(kind)
    device = models.resolve_device("auto")
    dtype = models.resolve_dtype("auto", device)
    steps = 2 if artifact is None else 3
    progress(0, steps, "loading, the target")
    if artifact is not None:
        model = artifact.load_target(target, dtype, device)
    else:
        model = models.load_model(locate(target or "").folder, dtype=dtype, device=device)
        models.require_finite(model)
    tokenizer = models.load_tokenizer(model.config.name_or_path)
    read = open_reader(model, kind)
    where = f"{str(dtype).removeprefix('torch.')} on {device}"
    notes = [f"target: {model.num_parameters() / 1e6:,.1f} M parameters, {where}, {_run_by(read)}"]
    conversation = Conversation(tokenizer, read.context, system)
    drafters: dict[str, Drafter] = {}
    if artifact is not None:
        progress(1, steps, "loading, the drafter")
        small = artifact.load_model(dtype, device)
        drafts = open_reader(small, drafter_kind)
        require_one_vocabulary(
            tokenizer,
            artifact.load_tokenizer(),
            target_rows=read.vocabulary,
            drafter_rows=drafts.vocabulary,
            name=artifact.name,
        )
        drafters[MODEL] = ModelDrafter(drafts, artifact.name, vocabulary=read.vocabulary)
        notes.append(f"drafter {artifact.name}: {small.num_parameters() / 1e6:,.1f} M parameters, {_run_by(drafts)}")
    drafters[LOOKUP] = PromptLookup(vocabulary=read.vocabulary, device=device)
    session = Session(read, drafters, conversation, settings, models.eos_token_ids(model), seed)
    progress(steps - 1, steps, "loading, warming up")
    session.warm_up()
    progress(steps, steps, "loading, warming up")
    return session, notes


def _run_by(reader: Reader) -> str:
    return f"reader {reader.name}" + (f" ({reader.why})" if reader.why else "")


def _reader_kind(text: str, name: str) -> ReaderKind:
    from factory.decoding.readers import KINDS

    for kind in KINDS:
        if kind == text:
            return kind
    raise DataError(f"{name}: must be one of {', '.join(KINDS)}, not {text!r}")
