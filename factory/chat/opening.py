"""A session made of what was named: an artifact with its target, or a target alone. Torch comes with the models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from factory.artifact import Artifact
from factory.chat.settings import LOOKUP, MODEL, Settings
from factory.pair import open_artifact, open_pair, reader_kind
from factory.progress import Progress

if TYPE_CHECKING:
    from factory.chat.session import Session
    from factory.decoding.drafters import Drafter

__all__ = ["open_artifact", "open_session"]


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
    pair = open_pair(
        artifact,
        target,
        reader=reader_kind(reader, "--reader"),
        drafter_reader=reader_kind(drafter_reader, "--drafter-reader"),
        device="auto",
        dtype="auto",
        progress=progress,
    )
    from factory.chat.conversation import Conversation
    from factory.chat.session import Session

    drafters: dict[str, Drafter] = (
        {LOOKUP: pair.lookup} if pair.model is None else {MODEL: pair.model, LOOKUP: pair.lookup}
    )
    conversation = Conversation(pair.tokenizer, pair.target.context, system)
    session = Session(pair.target, drafters, conversation, settings, pair.eos, seed)
    steps = 2 if artifact is None else 3
    progress(steps - 1, steps, "loading, warming up")
    session.warm_up()
    progress(steps, steps, "loading, warming up")
    return session, list(pair.notes)
