"""What a published repository holds: the model at its root, so that any `from_pretrained` finds it; the rest below.

config.json, *.safetensors, tokenizer*, generation_config.json   the artifact's model/
README.md                                                        the model card
factory/                                                         recipe, manifest, stages, evaluations, certificate
plots/                                                           the card's pictures
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from factory import assisted
from factory.artifact import CERTIFICATE, Artifact
from factory.provenance import sha256_file

CARD = "README.md"
RECORDS = "factory/"
PLOTS = "plots/"
MANIFEST = RECORDS + "manifest.json"


@dataclass(frozen=True)
class Entry:
    """One file of a repository: where it stands there, and what it holds."""

    path: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @property
    def sha256(self) -> str:
        """The name of its bytes where the Hub keeps it as a large file."""
        return hashlib.sha256(self.source).hexdigest() if isinstance(self.source, bytes) else sha256_file(self.source)

    @property
    def git_name(self) -> str:
        """The name of its bytes where the Hub keeps it in git."""
        data = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def contents(artifact: Artifact, card: str, plots: Iterable[Path]) -> list[Entry]:
    """Every file to publish, by path: those of the manifest, what was measured of it, the card and its pictures.

    Nothing else that lies in the artifact's folder is published.
    """
    settings = artifact.generation_settings()
    found = {CARD: Entry(CARD, card.encode()), MANIFEST: Entry(MANIFEST, artifact.folder / "manifest.json")}
    for relative in artifact.manifest["files"]:
        path = in_repository(relative)
        found.setdefault(path, Entry(path, artifact.folder / relative))
    if settings is not None:
        found[assisted.NAME] = Entry(assisted.NAME, settings.encode())
    for file in artifact.eval_files():
        path = f"{RECORDS}evals/{file.name}"
        found[path] = Entry(path, file)
    certificate = artifact.certificate()
    if certificate and certificate["current"]:
        found[RECORDS + CERTIFICATE] = Entry(RECORDS + CERTIFICATE, artifact.folder / CERTIFICATE)
    for plot in plots:
        found[PLOTS + plot.name] = Entry(PLOTS + plot.name, plot)
    return [found[path] for path in sorted(found)]


def in_repository(relative: str) -> str:
    """Where a file of an artifact stands in its repository."""
    return relative.removeprefix("model/") if relative.startswith("model/") else RECORDS + relative
