"""Whether what a stranger published is an artifact at all, before a byte of it is used.

A manifest says which files there are. It is anybody's text: it must not name a place outside the artifact's folder, no
format that can run code when it is loaded, and nothing that an artifact does not have. Neither may its text, or that
of an evaluation, hold what a terminal would obey or not show as it is.
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

from factory.anatomy.shapes import Shape
from factory.artifact import SCHEMA_VERSION, lacking
from factory.errors import ArtifactError
from factory.files.documents import read
from factory.files.json_reading import NotJsonError, read_json
from factory.publishing.contents import CARD, MANIFEST

EVALUATION = re.compile(r"[0-9a-f]{12}\.json")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")  # as recipes and grids call drafters
_SUM = re.compile(r"[0-9a-f]{64}")
_WHOLE = ("recipe.yaml", "resolved.yaml")
_MODEL = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken")
_ELSEWHERE = "adapter_config.json"  # names a base model, which peft would fetch
_TARGET = {"model": str, "revision": str | None, "identity": str, "parameters": int}
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
        manifest = read_json(path)
    except NotJsonError as error:
        raise ArtifactError(
            f"{repository}: its {MANIFEST} cannot be read ({error}); it must be published again"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"{repository}: its {MANIFEST} is not one of version {SCHEMA_VERSION}; it must be published again, or "
            "pulled with the version of drafter-factory that published it"
        )
    faults = _faults(manifest)
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


def is_record_of(path: Path, digest: str) -> bool:
    """Whether an evaluation or a certificate is about the manifest of that digest, and can be shown."""
    try:
        record = read_json(path)
    except NotJsonError:
        return False
    return isinstance(record, dict) and record.get("manifest_sha256") == digest and not _deceives(record)


def _deceives(value: Any) -> bool:
    """Whether a text in it, however deep, would not be shown as it is: a terminal obeys it, or cannot write it."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, list):
            left += one
        elif isinstance(one, str) and not one.replace("\n", "").replace("\t", "").isprintable():
            return True
    return False


def _faults(manifest: dict[str, Any]) -> list[str]:
    name, files = manifest.get("name"), manifest.get("files")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _deceives(manifest):
        return [f"{MANIFEST}: its text holds what would not be shown as it is, or a name that no drafter has"]
    if not isinstance(files, dict) or not files:
        return [f"{MANIFEST}: it lists no files"]
    if without := lacking(manifest) or _lacking_parts(manifest):
        return [f"{MANIFEST}: it is without {', '.join(without)}, which every artifact's has"]
    faults = [f"{MANIFEST}: {fault}" for relative, digest in files.items() if (fault := _fault(relative, digest))]
    if not faults and not {"model/config.json", *_WHOLE} <= set(files):
        faults.append(f"{MANIFEST}: lists no model/config.json, recipe.yaml or resolved.yaml, as every artifact's does")
    if not faults and not any(relative.endswith(".safetensors") for relative in files):
        faults.append(f"{MANIFEST}: lists no weights (.safetensors)")
    return faults


def _lacking_parts(manifest: dict[str, Any]) -> list[str]:
    """What is not there, or is something else, of the facts about the target and of both shapes; it has those."""
    target = manifest["target"]
    found = [f"target.{key}" for key, kind in _TARGET.items() if key not in target or not isinstance(target[key], kind)]
    sizes = {field.name for field in fields(Shape)}
    shapes = {part: manifest[part] for part in ("shape", "target_shape")}
    right = {part for part, shape in shapes.items() if set(shape) == sizes and all(map(_is_size, shape.values()))}
    return [*found, *(f"the sizes of {part}" for part in shapes if part not in right)]


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 2**60


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
    if path.parts[0] == "model" and len(path.parts) > 1 and path.suffix in _MODEL and path.name != _ELSEWHERE:
        return ""
    return f"{relative}: no file that an artifact has; refused"
