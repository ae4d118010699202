"""Strict YAML files as pydantic models, every fault told in the words of the file, all at once.

A fault reads `file:line: key.path: what is wrong; did you mean 'x'?`. Knows nothing of recipes:
evaluation plans are read by it too.

A model's own validator may begin a line of its ValueError with `key.path: `; the fault is then shown
at that key, and each such line is a fault of its own.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from factory.errors import RecipeError
from factory.files.yaml12 import KeyPath, Parsed, dump, scalar
from factory.wording import visible

__all__ = ["Document", "KeyPath", "assign", "did_you_mean", "dump", "given", "override", "read", "validate"]

AnyModel = TypeVar("AnyModel", bound=BaseModel)

NO_PART = "nothing stands before or after a dot; write a key such as stages.0.keep"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # text, though none that is read here

# pydantic's types of error, and what it wanted to see.
_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
}


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
        found = "it is empty" if parsed.data is None else f"it holds {_kind_of(parsed.data)}"
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
        raise RecipeError(f"{name}: no such file; name one that is there") from None
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
        raise LookupError(f"{before} is {_shown(here)} and holds no key '{part}'")


def validate(document: Document, model: type[AnyModel]) -> AnyModel:
    """The document as a pydantic model. Raises RecipeError with all faults, in the order of the file.

    Validation runs on JSON: in pydantic's strict mode that admits an int for a float and a list for a
    tuple, and still no text for a number.
    """
    try:
        return model.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        faults = _explained(error, document.data, model)
    faults.sort(key=lambda fault: document.line(fault[0]))
    raise RecipeError("\n".join(visible(f"{document.place(path)}: {what}") for path, what in faults))


def did_you_mean(word: object, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` where a known word is close, else nothing."""
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _explained(error: ValidationError, data: Any, model: type[BaseModel]) -> list[tuple[KeyPath, str]]:
    """One (path, what is wrong) per fault; a value that fits no member of a union is one fault, not one a member."""
    groups: dict[KeyPath, list[Any]] = {}
    members = set()  # paths whose errors each speak for one member of a union
    for detail in error.errors(include_url=False):
        path, of_member = _data_path(data, detail["loc"], missing=detail["type"] == "missing")
        groups.setdefault(path, []).append(detail)
        if of_member and detail["type"] in _WANTED:
            members.add(path)
    faults: list[tuple[KeyPath, str]] = []
    for path, details in groups.items():
        # A fault inside a list or mapping tells more than "must be text" about the whole of it, or than its length.
        words = [detail for detail in details if detail["type"] == "literal_error"]
        inside = any(len(other) > len(path) and other[: len(path)] == path for other in groups)
        if inside and (path in members or words or details[0]["type"] == "too_short"):
            continue
        if words and isinstance(words[0]["input"], str):  # a wrong word: that a list may stand there too does not help
            details = words
        wanted = list(dict.fromkeys(_WANTED[detail["type"]] for detail in details if detail["type"] in _WANTED))
        if wanted:
            wanted = [kind for kind in wanted if kind != "a whole number" or "a number" not in wanted]
            shown = _shown(details[0]["input"])
            remedy = _remedy(details[0]["input"], wanted) or _meant(model, data, path, wanted)
            faults.append((path, f"must be {' or '.join(wanted)}, not {shown}{remedy}"))
        else:
            faults += [fault for detail in details for fault in _one(path, detail, model, data)]
    return _without_consequences(list(dict.fromkeys(faults)))


def _without_consequences(faults: list[tuple[KeyPath, str]]) -> list[tuple[KeyPath, str]]:
    """The faults but for a missing key whose misspelt name is told of already."""
    meant = {(*path[:-1], known[1]) for path, what in faults if (known := re.search(r"; did you mean '(.+)'\?$", what))}
    return [(path, what) for path, what in faults if not (what.startswith("missing") and path in meant)]


def _meant(model: type[BaseModel], data: Any, path: KeyPath, wanted: list[str]) -> str:
    """What belongs in a place where something of another kind stands: its description, or the keys that it has."""
    if wanted == ["text"]:
        fields = [part.model_fields.get(str(path[-1])) for part in _models_at(model, data, path)]
        described = next((known.description for known in fields if known is not None and known.description), None)
        return f": {described}" if described else ""
    if wanted[-1] != "keys and values":
        return ""
    inside = _models_at(model, data, (*path, ""))
    kinds = [str(name) for part in inside for name in _kinds(part)]
    if len(inside) > 1 and kinds:
        return f"; write `{{kind: {kinds[0]}}}` or another of {', '.join(kinds)}"
    known = sorted({name for part in inside for name in part.model_fields})
    return f"; known here: {', '.join(known)}" if known else ""


def _one(path: KeyPath, detail: Any, model: type[BaseModel], data: Any) -> Iterator[tuple[KeyPath, str]]:
    """One error of pydantic in our words."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing" and isinstance(path[-1], int):
        yield path[:-1], "too short: a value is missing"
    elif kind == "missing":
        key, around = str(path[-1]), _models_at(model, data, path)
        fields = [part.model_fields[key] for part in around if key in part.model_fields]
        described = next((known.description for known in fields if known.description), None)
        yield path, "missing" + (f": {described}" if described else "")
    elif kind == "extra_forbidden":
        known = sorted({name for part in _models_at(model, data, path) for name in part.model_fields})
        meant = did_you_mean(path[-1], known) or f"; known here: {', '.join(known)}"
        yield path, f"unknown key '{path[-1]}'{meant}"
    elif kind in ("literal_error", "union_tag_invalid"):
        expected = context.get("expected_tags") or context["expected"]
        choices = re.findall(r"'([^']*)'", expected) or [expected]
        if kind == "union_tag_invalid":
            word = detail["input"]["kind"]
            said = (
                f"unknown kind '{word}'" if isinstance(word, str) else f"must be the name of a kind, not {_shown(word)}"
            )
            yield (*path, "kind"), f"{said}{_choices(word, choices)}"
        else:
            yield path, f"{_shown(detail['input'])} is not known here{_choices(detail['input'], choices)}"
    elif kind == "union_tag_not_found":
        kinds = [str(name) for part in _models_at(model, data, (*path, "kind")) for name in _kinds(part)]
        yield (*path, "kind"), f"missing; one of {', '.join(kinds)}"
    elif kind == "value_error":
        for line in str(context["error"]).splitlines():
            keyed = re.match(r"([a-z_]\w*(?:\.\w+)*): (?=.)", line)
            inner = tuple(int(part) if part.isdecimal() else part for part in keyed[1].split(".")) if keyed else ()
            yield (*path, *inner), line[keyed.end() :] if keyed else line
    else:
        what = re.sub(r"^\w+ should ", "must ", detail["msg"]).replace(" after validation,", ",")
        yield path, what if isinstance(detail["input"], list | dict) else f"{what}, not {_shown(detail['input'])}"


def _choices(word: object, choices: list[str]) -> str:
    return did_you_mean(word, choices) or f"; one of {', '.join(choices)}"


def _data_path(data: Any, location: Sequence[str | int], missing: bool) -> tuple[KeyPath, bool]:
    """pydantic's location without its union tags, and whether the last part of it was such a tag."""
    path: list[str | int] = []
    here, tagged, last = data, False, len(location) - 1
    for position, part in enumerate(location):
        is_tag = isinstance(here, dict) and not tagged and here.get("kind") == part and position < last
        inside = part in here if isinstance(here, dict) else isinstance(here, list) and part in range(len(here))
        if inside and not is_tag:
            path.append(part)
            here, tagged = here[part], False
        elif missing and position == last:
            path.append(part)
            tagged = False
        else:
            tagged = True
    return tuple(path), tagged


def _models_at(model: type[BaseModel], data: Any, path: KeyPath) -> list[type[BaseModel]]:
    """The models that the mapping around `path` may be; where a `kind` decides, only that one."""
    models, here = [model], data
    for part in path[:-1]:
        if isinstance(part, str):
            fields = [found.model_fields[part] for found in models if part in found.model_fields]
            models = [found for known in fields for found in _models_in(known.annotation)]
        try:
            here = here[part]
        except (LookupError, TypeError):  # what is missing says nothing of its kind
            here = None
        kind = here.get("kind") if isinstance(here, dict) else None
        models = [found for found in models if kind in _kinds(found)] or models
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) is None:
        return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
    return [found for inner in get_args(annotation) for found in _models_in(inner)]


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    known = model.model_fields.get("kind")
    return get_args(known.annotation) if known and get_origin(known.annotation) is Literal else ()


def _remedy(value: Any, wanted: list[str]) -> str:
    if not isinstance(value, str):
        return ""
    if "true or false" in wanted and value.lower() in ("yes", "no", "on", "off"):
        return f"; write {'true' if value.lower() in ('yes', 'on') else 'false'}"
    meant = scalar(value.replace("_", ""))
    if isinstance(meant, int | float) and wanted != ["text"]:
        return "; remove the quotes" if scalar(value) == meant else f"; write {value.replace('_', '')}"
    return ""


def _kind_of(value: Any) -> str:
    if isinstance(value, dict):
        return "keys and values"
    return "a list" if isinstance(value, list) else "a single value"


def _shown(value: Any) -> str:
    """A value as the file would write it, cut short."""
    if value is None:
        return "empty"
    if isinstance(value, list | dict):
        return _kind_of(value)
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 60 else value[:57] + '...'}'"
    return json.dumps(value)
