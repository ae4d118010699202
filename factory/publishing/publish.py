"""`factory publish`: the gate, the card and the files first, all on this machine; then the Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from factory.artifact import Artifact
from factory.hub import require_hub_name
from factory.progress import Progress, silent
from factory.publishing.card import model_card
from factory.publishing.contents import Entry, contents
from factory.publishing.gate import PublishError, Standing, standing
from factory.publishing.origin import origin
from factory.publishing.places import places


@dataclass(frozen=True)
class Wishes:
    """What the publisher says of the card. `even_if_slower`: the reason, where it is not shown to be faster."""

    license: str | None = None
    base_model: str | None = None
    even_if_slower: str | None = None


@dataclass(frozen=True)
class Publication:
    """What is to be sent, and what its publisher should know before."""

    repository: str
    standing: Standing
    entries: list[Entry]
    notes: list[str]

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(entry.size for entry in self.entries)


def passed(artifact: Artifact, to: str, wishes: Wishes, progress: Progress = silent) -> Standing:
    """What may be claimed of it. Raises ArtifactError where files are not the manifest's, PublishError where not."""
    if to.count("/") != 1:
        raise PublishError(
            f"--to {to}: wants user/name, your account or organisation on the Hub and the drafter's name"
        )
    require_hub_name(to, PublishError, "drafter")
    artifact.verify(progress)
    return standing(artifact, wishes.even_if_slower)


def shown_places(artifact: Artifact) -> list[str]:
    """What its publisher should know before anything is asked or sent: which of their folders become public."""
    return [
        f"{place} is a place on this machine, and becomes public: it stands in {', '.join(files)}"
        for place, files in places(artifact).items()
    ]


@contextmanager
def prepared(artifact: Artifact, to: str, found: Standing, wishes: Wishes, *, network: bool) -> Iterator[Publication]:
    """All that publishing will send; its pictures lie in a temporary folder. The artifact is not changed.

    `network`: the target's licence may be asked for on the Hub. Raises PublishError where none can be found.
    """
    come_from = origin(artifact, wishes.license, wishes.base_model, network=network)
    from eval.report.pictures import draw_pictures  # matplotlib: only once there is surely something to draw

    with tempfile.TemporaryDirectory() as folder:
        pictures = draw_pictures(found.results, Path(folder), artifact.name)
        settled = artifact.generation_settings() is not None
        card = model_card(artifact, found, come_from, to, pictures, settled=settled)
        plots = [path for one in pictures for path in (one.svg, one.png)]
        notes = []
        if not come_from.license:
            notes.append("the licence will be read from the target's card on the Hub; without a network it is left out")
        if not settled:
            notes.append("its generation_config.json cannot carry k; the card says how to set it")
        yield Publication(to, found, contents(artifact, card, plots), notes)
