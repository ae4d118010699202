"""Whether what a stranger published is an artifact at all, before a byte of it is used.

A manifest says which files there are. It is anybody's text: it must not name a place outside the artifact's folder, no
format that can run code when it is loaded, and nothing that an artifact does not have.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from factory.artifact import SCHEMA_VERSION, lacking
from factory.errors import ArtifactError
from factory.files.documents import read
from factory.publishing.contents import CARD, MANIFEST

EVALUATION = re.compile(r"[0-9a-f]{12}\.json")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_NAME = re.compile(r"[A-Za-z0-9][^/\\\x00-\x1f\x7f-\x9f]{0,199}")
_SUM = re.compile(r"[0-9a-f]{64}")
_ESCAPE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]|\\u00(?:0[0-8b-f]|1[0-9a-f]|7f|[89][0-9a-f])", re.IGNORECASE)
_WHOLE = ("recipe.yaml", "resolved.yaml")
_MODEL = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken")
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".npy", ".npz")


def manifest_in(snapshot: Path, repository: str) -> dict[str, Any]:
    """The manifest of a repository whose records lie in `snapshot`. Raises ArtifactError for what is not ours."""
    path = snapshot / MANIFEST
    if not path.is_file():
        raise ArtifactError(
            f"{repository}: no drafter that `factory publish` published: it holds no {MANIFEST}. To make a drafter for "
            f"that model: `factory build --target {repository}`"
        )
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{repository}: its {MANIFEST} cannot be read ({error}); it must be published again"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"{repository}: its {MANIFEST} is not one of version {SCHEMA_VERSION}; it must be published again, or "
            "pulled with the version of drafter-factory that published it"
        )
    faults = _faults(manifest, text)
    if faults:
        raise ArtifactError("\n".join(f"{repository}: {fault}" for fault in [*faults, "nothing of it was kept"]))
    return manifest


def base_model(snapshot: Path) -> str | None:
    """The target's name on the Hub as the card's metadata has it; None where it names none."""
    try:
        text = (snapshot / CARD).read_text(encoding="utf-8")
        head = text.split("\n---\n", 1)[0].removeprefix("---\n") if text.startswith("---\n") else ""
        named = read(head).data.get("base_model") if head else None
    except Exception:  # a card is anybody's text, and only a hint
        return None
    named = named[0] if isinstance(named, list) and named else named
    return named if isinstance(named, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", named, re.ASCII) else None


def _faults(manifest: dict[str, Any], text: str) -> list[str]:
    name, files = manifest.get("name"), manifest.get("files")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _ESCAPE.search(text):
        return [f"{MANIFEST}: its text holds what would not be shown as it is, or a name that no drafter has"]
    if not isinstance(files, dict) or not files:
        return [f"{MANIFEST}: it lists no files"]
    if without := lacking(manifest):
        return [f"{MANIFEST}: it is without {', '.join(without)}, which every artifact's has"]
    faults = [f"{MANIFEST}: {fault}" for relative, digest in files.items() if (fault := _fault(relative, digest))]
    if not faults and not {"model/config.json", *_WHOLE} <= set(files):
        faults.append(f"{MANIFEST}: lists no model/config.json, recipe.yaml or resolved.yaml, as every artifact's does")
    if not faults and not any(relative.endswith(".safetensors") for relative in files):
        faults.append(f"{MANIFEST}: lists no weights (.safetensors)")
    return faults


def _fault(relative: str, digest: Any) -> str:
    """What is wrong with one file's entry."""
    path = PurePosixPath(relative)
    plain = all(_PART.fullmatch(part) for part in relative.split("/")) and len(path.parts) <= 3
    if not plain:
        return f"{relative[:200]!r} is no place within an artifact"
    if not isinstance(digest, str) or not _SUM.fullmatch(digest):
        return f"{relative}: its sha256 is none"
    if relative in _WHOLE or (path.parts[0] == "stages" and len(path.parts) == 2 and path.suffix == ".json"):
        return ""
    if path.suffix in _PICKLED:
        return f"{relative}: pickled, which can run code when it is loaded; refused"
    if path.parts[0] == "model" and len(path.parts) > 1 and path.suffix in _MODEL:
        return ""
    return f"{relative}: no file that an artifact has; refused"
