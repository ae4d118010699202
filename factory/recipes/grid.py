"""A recipe's `grid:`: every combination of its values is a candidate, named by those values.

A key is dotted, as with `--set`. Expanding gives documents, each a whole recipe whose varied values
remember the line they came from; whether they are sound is for the recipe to say.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from factory.errors import RecipeError
from factory.files.documents import NO_PART, Document, KeyPath, assign, did_you_mean
from factory.wording import visible

LARGEST_LABEL = 100  # characters; a folder's name may have 255, and a build adds to it
_NOT_VARIED = {
    "grid": "a grid cannot vary itself",
    "name": "candidates are named by their values; remove it from the grid",
    "target": "one grid is about one target; build once for each, with --target MODEL_OR_FOLDER",
}
# As JSON Schema has it.
GRID: Any = {
    "type": "object",
    "propertyNames": {"pattern": rf"^(?!({'|'.join(_NOT_VARIED)})(\.|$))[^.]+(\.[^.]+)*$"},
    "additionalProperties": {"type": "array", "minItems": 1, "uniqueItems": True},
}


@dataclass(frozen=True)
class Axis:
    """One key of a grid and the values it takes, each with where it stands (`r.yaml:12: grid`)."""

    path: KeyPath
    values: tuple[Any, ...]
    marks: tuple[str, ...]

    @property
    def key(self) -> str:
        """As the recipe writes it."""
        return ".".join(map(str, self.path))


def axes_of(document: Document, known: Collection[str]) -> tuple[list[Axis], list[str]]:
    """The grid of a document, in its order, and what is wrong with the rest of it; `known` are a recipe's own keys.

    What `--set` gave is settled: such a key is no longer varied. Wrong is a key that cannot be varied,
    one without values, one with a value twice.
    """
    grid = document.data.get("grid")
    if grid is None:
        return [], []
    if not isinstance(grid, dict):
        return [], [f"{document.place(('grid',))}: must be keys with lists, such as stages.0.keep: [1, 2]"]
    axes: list[Axis] = []
    faults: list[str] = []
    for key, values in grid.items():
        at: KeyPath = ("grid", key)
        path = key_path(str(key))
        fault = _fault_of(document, path, values, known) or _overlap(path, axes)
        settled = [option for option in document.options if option[: len(path)] == path]
        if fault:
            faults.append(f"{document.place(at)}: {fault}")
        elif any(len(option) > len(path) for option in settled):
            faults.append(
                f"{document.place(at)}: {document.options[settled[0]]} sets a part of it; set the whole of it"
            )
        elif not settled:
            marks = tuple(f"{document.mark((*at, place))}: grid" for place in range(len(values)))
            axes.append(Axis(path, tuple(values), marks))
    return axes, list(map(visible, faults))


def key_path(key: str) -> KeyPath:
    """`stages.0.keep` in its parts."""
    return tuple(int(part) if re.fullmatch("[0-9]{1,9}", part) else part for part in key.split("."))


def _fault_of(document: Document, path: KeyPath, values: Any, known: Collection[str]) -> str:
    """What is wrong with one key of a grid, or nothing."""
    if path[0] in _NOT_VARIED:
        return _NOT_VARIED[str(path[0])]
    if "" in path:
        return NO_PART
    if str(path[0]) not in known:
        return f"a recipe has no key '{path[0]}'{did_you_mean(path[0], sorted(known))}"
    if not isinstance(values, list):
        return "must be a list of the values to try, such as [1, 2]"
    if not values:
        return "no value to try; give at least one, or remove the key"
    texts = Counter(json.dumps(value, sort_keys=True) for value in values)
    twice = next((text for text, count in texts.items() if count > 1), None)
    if twice is not None:
        return f"{twice} stands there twice; every value makes a candidate of its own"
    try:
        assign(document, path, values[0], "")
    except LookupError as error:
        return str(error.args[0])
    return ""


def _overlap(path: KeyPath, axes: list[Axis]) -> str:
    for axis in axes:
        if path[: len(axis.path)] == axis.path or axis.path[: len(path)] == path:
            return f"overlaps {axis.key}, which the grid varies too; keep one of them"
    return ""


def candidates(axes: list[Axis]) -> int:
    """How many combinations there are: counted, not made."""
    return math.prod(len(axis.values) for axis in axes)


def points(document: Document, axes: list[Axis], each_value_once: bool = False) -> Iterator[tuple[str, Document]]:
    """(label, the recipe at that point), the last key varying fastest; the label is empty without a grid.

    `each_value_once` leaves every other key at its first value: the sum of the lengths, not the product.
    Raises RecipeError where two points would have one name.
    """
    plain = replace(
        document,
        data={key: value for key, value in document.data.items() if key != "grid"},
        # A point knows nothing of the lines of other points: copied for each, they would make it quadratic.
        lines={at: line for at, line in document.lines.items() if at[:1] != ("grid",) or len(at) == 1},
    )
    names = _short_keys(document, axes)
    labels: set[str] = set()
    for chosen in _indices(axes, each_value_once):
        point, parts = plain, []
        for axis, name, index in zip(axes, names, chosen, strict=True):
            point = assign(point, axis.path, axis.values[index], axis.marks[index])
            parts.append(f"{name}{_shown(axis.values[index])}")
        label = _cut("-".join(parts))
        if label.casefold() in labels:  # some file systems do not tell a from A
            raise RecipeError(
                f"{document.place(('grid',))}: two candidates would be called '{label}'; give one a grid of its own"
            )
        labels.add(label.casefold())
        yield label, point


def _indices(axes: list[Axis], each_value_once: bool) -> Iterator[tuple[int, ...]]:
    if not each_value_once:
        yield from itertools.product(*(range(len(axis.values)) for axis in axes))
        return
    first = [0] * len(axes)
    yield tuple(first)
    for place, axis in enumerate(axes):
        yield from ((*first[:place], index, *first[place + 1 :]) for index in range(1, len(axis.values)))


def _short_keys(document: Document, axes: list[Axis]) -> list[str]:
    """The last part of each key; with its stage's kind before it, or written out, where two would be alike."""
    ways = [
        [_legal(str(axis.path[-1])) if isinstance(axis.path[-1], str) else axis.key for axis in axes],
        [_with_kind(document, axis) for axis in axes],
        [axis.key for axis in axes],
    ]
    return [
        next(way[place] for way in ways if way is ways[-1] or way.count(way[place]) == 1) for place in range(len(axes))
    ]


def _with_kind(document: Document, axis: Axis) -> str:
    """`drop_layers.keep` for stages.0.keep."""
    stages = document.data.get("stages")
    if axis.path[0] == "stages" and len(axis.path) > 2 and isinstance(stages, list):
        stage = stages[axis.path[1]] if isinstance(axis.path[1], int) and axis.path[1] < len(stages) else None
        if isinstance(stage, dict) and isinstance(stage.get("kind"), str):
            return _legal(".".join([stage["kind"], *map(str, axis.path[2:])]))
    return axis.key


def _shown(value: Any) -> str:
    """A value as a part of a folder's name: 2, 0.001, true, 0+3, first_last."""
    if isinstance(value, list):
        return "+".join(map(_shown, value))
    if isinstance(value, dict):
        return "+".join(map(_shown, value.values()))
    return _legal(value if isinstance(value, str) else json.dumps(value))


def _legal(text: str) -> str:
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._+-]", "_", text))


def _cut(label: str) -> str:
    """A label short enough for a folder; what was cut off stays told apart by a hash."""
    if len(label) <= LARGEST_LABEL:
        return label
    return f"{label[: LARGEST_LABEL - 9]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
