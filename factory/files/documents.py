"""Strict YAML files as pydantic models, every fault told in the words of the file, all at once.

A fault reads `file:line: key.path: what is wrong; did you mean 'x'?`. Knows nothing of recipes:
evaluation plans are read by it too.

A model's own validator may begin a line of its ValueError with `key.path: `; the fault is then shown
at that key, and each such line is a fault of its own.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from factory.errors import RecipeError
from factory.files.faults import did_you_mean, explained, kind_of, shown
from factory.files.nearby import meant
from factory.files.yaml12 import KeyPath, Parsed, dump
from factory.wording import visible

__all__ = ["Document", "KeyPath", "assign", "did_you_mean", "dump", "given", "override", "read", "validate"]

AnyModel = TypeVar("AnyModel", bound=BaseModel)

NO_PART = "nothing stands before or after a dot; write a key such as stages.0.keep"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # text, though none that is read here


@dataclass(frozen=True)
class Document:
    """What a file says, and where it says it."""

    name: str
    data: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    source: bytes = b""
    options: dict[KeyPath, str] = field(default_factory=dict)  # what the command line set, and the option that did

    def mark(self, path: KeyPath) -> str:
        """`file:line` of a value, of what it should stand in where it is missing, or the option that set it."""
        line, option = self._nearest(path)
        return option or (f"{self.name}:{line}" if self.lines else self.name)

    def place(self, path: KeyPath) -> str:
        """How a fault begins: `file:line: key.path`, or `--set key.path`."""
        mark, key = self.mark(path), ".".join(map(str, path))
        return mark if not key or mark == f"--set {key}" else f"{mark}: {key}"

    def line(self, path: KeyPath) -> int:
        """The line alone, to sort by; 0 for what the command line set."""
        return self._nearest(path)[0]

    def _nearest(self, path: KeyPath) -> tuple[int, str]:
        for end in range(len(path), -1, -1):
            if path[:end] in self.options:
                return 0, self.options[path[:end]]
            if path[:end] in self.lines:
                return self.lines[path[:end]], ""
            # What stands in neither was made for what an option set inside it.
            made = next((option for at, option in self.options.items() if end and at[:end] == path[:end]), "")
            if made:
                return 0, made
        return 1, ""


def read(source: Path | str, name: str | None = None, example: str = "name: quick") -> Document:
    """A file (Path) or a text (str); `name` is what faults call it, `example` a line that it could hold.

    Raises RecipeError.
    """
    name = name or (str(source) if isinstance(source, Path) else "text")
    content = _bytes(source, name) if isinstance(source, Path) else source.encode(errors="surrogatepass")
    if b"\0" in content and not content.startswith(_UTF_16):
        raise RecipeError(f"{name}: not text, but some other kind of file; name a YAML file")
    try:
        parsed = Parsed(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{name}:{line}: not UTF-8 text: save the file as UTF-8") from None
    faults = sorted(set(parsed.faults))
    if not faults and not isinstance(parsed.data, dict):
        found = "it is empty" if parsed.data is None else f"it holds {kind_of(parsed.data)}"
        faults = [(parsed.lines[()], f"{found}, but must hold keys and values such as `{example}`")]
    if faults:
        raise RecipeError("\n".join(visible(f"{name}:{line}: {fault}") for line, fault in faults))
    return Document(name, parsed.data, parsed.lines, content)


def given(data: Mapping[str, Any], name: str) -> Document:
    """What a program says in place of a file, a path as text; faults name keys alone. Raises RecipeError."""
    try:
        plain = json.loads(json.dumps(data, default=os.fspath))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{name}: holds what no YAML file could: {error}") from None
    return Document(name, plain, source=dump(plain).encode())


def _bytes(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RecipeError(f"{name}: no such file{meant(path, folder=False) or '; name one that is there'}") from None
    except IsADirectoryError:
        raise RecipeError(f"{name}: a folder; name one .yaml file") from None
    except OSError as error:
        raise RecipeError(f"{name}: cannot be read: {error.strerror}") from None


def override(document: Document, settings: Iterable[str]) -> Document:
    """The document with every `KEY=VALUE` applied; KEY is dotted, VALUE is YAML. Raises RecipeError."""
    faults: list[str] = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not key or not equals:
            faults.append(f"--set {setting}: write KEY=VALUE, such as stages.0.keep=2")
            continue
        parsed = Parsed(text)
        faults += [f"--set {key}: {fault}" for _, fault in parsed.faults]
        path: KeyPath = tuple(int(part) if re.fullmatch("[0-9]{1,9}", part) else part for part in key.split("."))
        if "" in path:
            faults.append(f"--set {key}: {NO_PART}")
            continue
        if path[0] == "grid" and len(path) > 1:  # a grid's own keys are dotted
            path = ("grid", key.removeprefix("grid."))
        try:
            document = assign(document, path, parsed.data, f"--set {key}")
        except LookupError as error:
            faults.append(f"--set {key}: {error.args[0]}")
    if faults:
        raise RecipeError("\n".join(map(visible, faults)))
    return document


def assign(document: Document, path: KeyPath, value: Any, option: str) -> Document:
    """The document with one value replaced by an option of the command line. Raises LookupError."""
    data = copy.deepcopy(document.data)
    here: Any = data
    for depth, part in enumerate(path):
        _check_step(here, part, ".".join(map(str, path[:depth])))
        part = str(part) if isinstance(here, dict) else part
        if depth == len(path) - 1:
            here[part] = value
            break
        if isinstance(here, dict) and here.get(part) is None:
            here[part] = {}
        here = here[part]

    def outside(known: dict[KeyPath, Any]) -> dict[KeyPath, Any]:
        return {at: mark for at, mark in known.items() if at[: len(path)] != path}

    return replace(
        document, data=data, lines=outside(document.lines), options=outside(document.options) | {path: option}
    )


def _check_step(here: Any, part: str | int, before: str) -> None:
    if isinstance(here, list) and (not isinstance(part, int) or part >= len(here)):
        raise LookupError(f"{before} is a list of {len(here)}; its entries are counted from 0")
    if not isinstance(here, list | dict):
        raise LookupError(f"{before} is {shown(here)} and holds no key '{part}'")


def validate(document: Document, model: type[AnyModel]) -> AnyModel:
    """The document as a pydantic model. Raises RecipeError with all faults, in the order of the file.

    Validation runs on JSON: in pydantic's strict mode that admits an int for a float and a list for a
    tuple, and still no text for a number.
    """
    try:
        return model.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        faults = explained(error, document.data, model)
    faults.sort(key=lambda fault: document.line(fault[0]))
    raise RecipeError("\n".join(visible(f"{document.place(path)}: {what}") for path, what in faults))
