"""What pydantic found wrong with a document, in the words of the file: one fault for one cause, and what was meant."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from factory.files.yaml12 import KeyPath, scalar

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


def did_you_mean(word: object, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` where a known word is close, else nothing."""
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def explained(error: ValidationError, data: Any, model: type[BaseModel]) -> list[tuple[KeyPath, str]]:
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
            found = shown(details[0]["input"])
            remedy = _remedy(details[0]["input"], wanted) or _meant(model, data, path, wanted)
            faults.append((path, f"must be {' or '.join(wanted)}, not {found}{remedy}"))
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
                f"unknown kind '{word}'" if isinstance(word, str) else f"must be the name of a kind, not {shown(word)}"
            )
            yield (*path, "kind"), f"{said}{_choices(word, choices)}"
        else:
            yield path, f"{shown(detail['input'])} is not known here{_choices(detail['input'], choices)}"
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
        yield path, what if isinstance(detail["input"], list | dict) else f"{what}, not {shown(detail['input'])}"


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


def kind_of(value: Any) -> str:
    """What sort of thing stands there."""
    if isinstance(value, dict):
        return "keys and values"
    return "a list" if isinstance(value, list) else "a single value"


def shown(value: Any) -> str:
    """A value as the file would write it, cut short."""
    if value is None:
        return "empty"
    if isinstance(value, list | dict):
        return kind_of(value)
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 60 else value[:57] + '...'}'"
    return json.dumps(value)
