"""Which folders of the publisher's machine stand in what is to be published. They become public, and stay so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from factory.artifact import CERTIFICATE, Artifact
from factory.errors import RecipeError
from factory.files.documents import read
from factory.files.json_reading import NotJsonError, read_json

_PLACE = re.compile(r"[/~].*\w.*")  # from the root, or from somebody's home; in one line


def places(artifact: Artifact) -> dict[str, list[str]]:
    """Every absolute path that a value of a record is, with the files that name it.

    A manifest pins its files, so none of them can be mended afterwards. Builds write paths as they were typed.
    """
    records = [name for name in artifact.manifest["files"] if not name.startswith("model/")]
    names = ["manifest.json", *records, CERTIFICATE]
    names += [f"evals/{path.name}" for path in artifact.eval_files()]
    found: dict[str, list[str]] = {}
    for name in names:
        for place in dict.fromkeys(_absolute(_value(artifact, name))):
            found.setdefault(place, []).append(name)
    return found


def _value(artifact: Artifact, name: str) -> Any:
    """What a record holds; nothing where it is not there or cannot be read."""
    path = artifact.folder / name
    try:
        return read_json(path) if path.suffix == ".json" else read(path.read_text(encoding="utf-8")).data
    except (NotJsonError, RecipeError, OSError):
        return None


def _absolute(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _absolute(one)
    elif isinstance(value, str) and _PLACE.fullmatch(value):
        yield value
