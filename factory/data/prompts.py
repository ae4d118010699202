"""Prompts, texts, answers and conversations, as text. Knows no tokenizer, and imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.data.rows import Row, file_rows
from factory.errors import DataError
from factory.files.json_reading import json_kind

# Where a file is given without a column, the first of these that a row has.
_TEXTS = ("prompt", "text", "turns")
_CONVERSATIONS = ("messages", "conversations", "conversation")
# How conversations name those who speak: in OpenAI's way, and in ShareGPT's.
_ROLES = {
    **{"user": "user", "human": "user"},
    **{"assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant"},
    **{"system": "system", "developer": "developer", "tool": "tool"},
}

Message = dict[str, str]  # role and content, as chat templates want them


@dataclass(frozen=True)
class Entry:
    """One row of what a recipe is given: a text, a text with its answer, or a conversation."""

    place: str  # where it was read, for errors
    text: str = ""
    answer: str | None = None
    messages: tuple[Message, ...] = ()  # of a conversation; then there is no text

    def record(self) -> Any:
        """What it holds, to be kept as JSON and to be hashed. Where it was read does not count."""
        if self.messages:
            return list(self.messages)
        return self.text if self.answer is None else {"prompt": self.text, "answer": self.answer}

    @staticmethod
    def of(place: str, record: Any) -> Entry:
        """The entry with that record."""
        if isinstance(record, list):
            return Entry(place, messages=tuple(record))
        return Entry(place, record) if isinstance(record, str) else Entry(place, record["prompt"], record["answer"])

    def question(self) -> tuple[Message, ...]:
        """The messages up to the user's last one; none where the user says nothing."""
        turns = [turn for turn, message in enumerate(self.messages, 1) if message["role"] == "user"]
        return self.messages[: turns[-1]] if turns else ()

    def characters(self, *, prompt: bool) -> int:
        """How long it is: the prompt alone, or all of it."""
        messages = self.question() if prompt else self.messages
        spoken = sum(len(message["content"]) for message in messages)
        return spoken + len(self.text) + (0 if prompt else len(self.answer or ""))


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file: JSONL with `prompt`, `text` or Spec-Bench's `turns` (the first), or plain lines.

    Raises DataError with file:line.
    """
    entries = read_file(path)
    spoken = next((entry for entry in entries if entry.messages), None)
    if spoken is not None:
        raise DataError(f"{spoken.place}: a conversation, where text is read; give prompts as text under `prompt`")
    return [entry.text for entry in entries]


def read_file(
    path: Path,
    column: str | None = None,
    answer: str | None = None,
    samples: int | None = None,
    *,
    skip_empty: bool = False,
) -> list[Entry]:
    """The first `samples` entries of a .txt, .jsonl or .parquet file. Raises DataError with file:line."""
    wanted = (*_TEXTS, *_CONVERSATIONS) if column is None else (column, *([answer] if answer else []))
    found = list(itertools.islice(entries_of(file_rows(path, wanted), column, answer, skip_empty=skip_empty), samples))
    if not found:
        raise DataError(f"{path}: holds no prompt; write one a line")
    return found


def entries_of(
    rows: Iterable[Row], column: str | None, answer: str | None = None, *, skip_empty: bool = False
) -> Iterator[Entry]:
    """What stands in a column of each row, and in the column of answers. Without a column, in one of the usual names.

    Raises DataError for a column that is missing or holds nothing that can be read, and for an empty row
    unless those are skipped.
    """
    for row in rows:
        for name in filter(None, (column, answer)):
            if name not in row.columns:
                raise DataError(f"{row.place}: no column {name!r}; it has {sorted(row.columns)}")
        entry = _entry(row, column, answer)
        if entry is not None:
            yield entry
        elif not skip_empty or column is None:
            raise DataError(f"{row.place}: {_nothing(row, column, answer)}")


def _nothing(row: Row, column: str | None, answer: str | None) -> str:
    if column is None:
        return f"no text under `prompt`, `text` or `turns`, and no `messages`; keys here: {sorted(row.columns)}"
    names = f"{column!r} or {answer!r}" if answer else f"{column!r}"
    return f"no text under {names}; mend the row, or leave such rows out with `skip_empty: true`"


def _entry(row: Row, column: str | None, answer: str | None) -> Entry | None:
    """What the row holds, or None where it holds nothing."""
    names = (*_TEXTS, *_CONVERSATIONS) if column is None else (column,)
    name = next((name for name in names if name in row.columns), None)
    value = row.values.get(name) if name is not None else None
    if isinstance(value, list) and value and isinstance(value[0], dict):
        if answer is not None:
            raise DataError(f"{row.place}: {name!r} holds a conversation, answers among it; remove `answer`")
        messages = tuple(_message(f"{row.place}: message {number}", said) for number, said in enumerate(value, 1))
        spoken = any(message["content"].strip() for message in messages)
        return Entry(row.place, messages=messages) if spoken else None
    if isinstance(value, list) and column is None and name in _CONVERSATIONS and value:
        raise DataError(f"{row.place}: {name!r} holds no conversation; write messages with `role` and `content`")
    text = _text(row.place, name, value)
    replied = _text(row.place, answer, row.values.get(answer)) if answer is not None else None
    return Entry(row.place, text, replied) if text and replied != "" else None


def _text(place: str, name: str | None, value: Any) -> str:
    """A column's text, of a list of texts the first; nothing where there are only spaces."""
    if isinstance(value, list) and value:
        value = value[0]
    if value is None or value == []:
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"{place}: no text under {name!r}, but {json_kind(value)}; name a column that holds text, or a list "
            "of messages with `role` and `content`"
        )
    return value if value.strip() else ""


def _message(place: str, said: Any) -> Message:
    """A message in the words of chat templates."""
    if not isinstance(said, dict):
        raise DataError(f"{place}: not a message; write `role` and `content`")
    role, content = said.get("role", said.get("from")), said.get("content", said.get("value"))
    known = _ROLES.get(str(role).lower())
    if known is None:
        raise DataError(f"{place}: its role is {role!r}; known are {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise DataError(f"{place}: its content is no text; leave such conversations out")
    return {"role": known, "content": content}
