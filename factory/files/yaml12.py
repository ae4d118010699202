"""YAML the 1.2 way: text to plain data, with the line of every value, and back.

PyYAML alone reads `2e-4` as text, `0123` as 83 and `1:30` as 90, and silently keeps the last of two
equal keys: any of these would train the wrong drafter without a word. Here PyYAML only cuts the text
into events; scalars are read by the core schema of YAML 1.2, and what a recipe never needs (tags,
anchors, merge keys, a second document) is a fault. Knows no files and no models.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]

_DEEPEST = 24  # levels of nesting; a recipe has four
_LARGEST = 2**63  # from here on JSON and tensors lose digits

# YAML 1.2.2, section 10.3.2: the core schema.
_NULLS = frozenset(["", "~", "null", "Null", "NULL"])
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGERS = ((re.compile(r"[-+]?[0-9]+"), 10), (re.compile(r"0o[0-7]+"), 8), (re.compile(r"0x[0-9a-fA-F]+"), 16))
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

# What PyYAML says, and what it means to the person who typed it.
_MEANINGS = (
    ("found character '\\t'", "a tab: YAML indents with spaces"),
    ("that cannot start any token", "a character that no plain text may begin with: put the text in quotes"),
    ("mapping values are not allowed", "a second ': ' in one line: put the text in quotes, or mend the indentation"),
    ("could not find expected ':'", "a line without a key: write `key: value`"),
    ("expected ',' or '}'", "a { that is not closed, or a missing comma"),
    ("expected ',' or ']'", "a [ that is not closed, or a missing comma"),
    ("expected <block end>", "indentation that fits no line above"),
    ("expected '<document start>'", "text outside of any key: mend the indentation or the brackets"),
    ("found unexpected end of stream", "a quote that is not closed"),
)


def scalar(text: str) -> Any:
    """An unquoted scalar as None, bool, int, float or str."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    for pattern, base in _INTEGERS:
        if pattern.fullmatch(text):
            return int(text, base) if len(text) < 80 else math.inf  # Python refuses to read thousands of digits
    if _FLOAT.fullmatch(text):
        return float(text)
    return math.nan if _NOT_FINITE.fullmatch(text) else text


def dump(data: Any) -> str:
    """Plain data as YAML that is read back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class Parsed:
    """What a text says: `data`, the line of each key path, and `faults` as (line, what is wrong)."""

    def __init__(self, text: str) -> None:
        self.data: Any = None
        self.lines: dict[KeyPath, int] = {(): 1}
        self.faults: list[tuple[int, str]] = []
        try:
            self._loader = yaml.BaseLoader(text)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self.faults.append((line, f"the character U+{int(error.character):04X}, which YAML forbids: remove it"))
            return
        try:
            self.data = self._document()
        except yaml.MarkedYAMLError as error:
            self.faults.append(_meaning(error))
        except _TooDeepError as error:
            self.faults.append((error.args[0], f"more than {_DEEPEST} levels of nesting"))
        except (ValueError, OverflowError):  # an escape such as "\UFFFFFFFF", which PyYAML lets through to Python
            self.faults.append((self._loader.line + 1, "not YAML: an escape or a number that nothing can stand for"))

    def _next(self) -> tuple[Any, int]:
        """The next event and its line."""
        event: Any = self._loader.get_event()  # type: ignore[no-untyped-call]
        return event, event.start_mark.line + 1

    def _document(self) -> Any:
        data, documents = None, 0
        event, line = self._next()
        while not isinstance(event, yaml.StreamEndEvent):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.faults.append((line, "a second document begins here: one document a file"))
                    break
                event, line = self._next()
                self.lines[()] = line
                data = self._value(event, line, ())
            event, line = self._next()
        return data

    def _value(self, event: Any, line: int, path: KeyPath) -> Any:
        if len(path) > _DEEPEST:
            raise _TooDeepError(line)
        if event.anchor is not None:
            self.faults.append((line, "anchors and aliases (& and *) are not read here: write the value out"))
        if isinstance(event, yaml.AliasEvent):
            return None
        if event.tag is not None:
            self.faults.append((line, f"the tag {event.tag} is not read here: remove it, or put the text in quotes"))
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, line)
        return self._list(path) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(path)

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> Any:
        text = event.value
        value = scalar(text) if event.implicit[0] else text
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            self.faults.append((line, "half of a surrogate pair, which is no character: remove the escape"))
        if isinstance(value, float) and not math.isfinite(value):
            self.faults.append((line, f"{text[:20]} is not a finite number"))
        if isinstance(value, int) and abs(value) >= _LARGEST:
            self.faults.append((line, f"{text[:20]} does not fit 64 bits"))
        return value

    def _list(self, path: KeyPath) -> list[Any]:
        items: list[Any] = []
        event, line = self._next()
        while not isinstance(event, yaml.SequenceEndEvent):
            at = (*path, len(items))
            self.lines[at] = line
            items.append(self._value(event, line, at))
            event, line = self._next()
        return items

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        event, line = self._next()
        while not isinstance(event, yaml.MappingEndEvent):
            key = self._key(event, line, path)
            at = (*path, key)
            if key in entries:
                self.faults.append((line, f"the key '{key}' stands here and in line {self.lines[at]}: keep one"))
            self.lines[at] = line
            entries[key] = self._value(*self._next(), at)
            event, line = self._next()
        return entries

    def _key(self, event: Any, line: int, path: KeyPath) -> str:
        self._value(event, line, (*path, ""))  # for its faults, and to pass over a key that is no scalar
        if isinstance(event, yaml.AliasEvent):
            return f"key of line {line}"
        if not isinstance(event, yaml.ScalarEvent) or not event.value:
            self.faults.append((line, "a key must be one word before the colon"))
            return f"key of line {line}"
        if event.value == "<<" and event.implicit[0]:
            self.faults.append((line, "merge keys (<<) are not read here: write the values out"))
        return str(event.value)


class _TooDeepError(Exception):
    """Nesting that could only exhaust the stack."""


def _meaning(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    problem = error.problem or "it cannot be parsed"
    begun = error.context_mark.line + 1 if error.context_mark else 0
    line = error.problem_mark.line + 1 if error.problem_mark else begun
    meaning = next((meaning for words, meaning in _MEANINGS if words in problem), problem)
    if "expected ':'" in problem and begun:
        return begun, f"not YAML: {meaning}"
    return line, f"not YAML: {meaning}" + (f" (begun in line {begun})" if 0 < begun < line else "")


class _Dumper(yaml.SafeDumper):
    """Also quotes what YAML 1.1 takes for text and YAML 1.2 for a number (`2e-4`, `0o17`); writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if isinstance(scalar(text), str) else "'")


_Dumper.add_representer(str, _quoted)
