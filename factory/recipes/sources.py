"""What a recipe may say of its text: where prompts come from, and who writes. Knows no tokenizer; no torch."""

from __future__ import annotations

import difflib
import itertools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from factory.data.prompts import Entry, entries_of, read_file
from factory.data.rows import Row, dataset_name, dataset_rows
from factory.errors import DataError
from factory.files.atomic import write_atomically
from factory.provenance import sha256_text

BOS = "bos"
UNASKED_TEXTS = 1024  # that the target writes where a recipe does not say how many


class Section(BaseModel):
    """A part of a recipe: frozen, and strict about keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class HubPrompts(Section):
    """Rows of a dataset on the Hub, or of a folder that `datasets` can load."""

    dataset: str = Field(min_length=1, description="its name on the Hub")
    subset: str | None = Field(default=None, min_length=1, description="the dataset's configuration")
    split: str = Field(default="train", min_length=1, description="the dataset's part")
    column: str = Field(min_length=1, description="the column that holds the text, or the conversation")
    answer: str | None = Field(default=None, min_length=1, description="the column that holds the answer")
    samples: int | None = Field(default=None, ge=1, description="prompts to read; all where it is not given")
    skip_empty: bool = Field(default=False, description="leave rows without text out, instead of refusing them")

    @property
    def local(self) -> bool:
        """Whether it is a folder on this machine."""
        return Path(self.dataset).is_dir()

    def read(self, cache: Path) -> list[Entry]:
        """Its entries, streamed; those of the Hub are kept in `cache`, since it is neither quick nor always there.

        Raises DataError.
        """
        if self.local:  # what lies here may change
            return self._fetched()
        # Keys that came later enter only where they are used: what an older version has read stays valid.
        later = {key for key in ("subset", "answer", "skip_empty") if not getattr(self, key)}
        stored = cache / f"{sha256_text(self.model_dump_json(exclude=later))}.json"
        if not stored.is_file():
            kept = [[entry.place, entry.record()] for entry in self._fetched()]
            stored.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(stored, json.dumps(kept))
        found = json.loads(stored.read_text(encoding="utf-8"))
        if all(isinstance(item, list) for item in found):
            return [Entry.of(place, record) for place, record in found]
        said = dataset_name(self.dataset, self.subset, self.split)
        rows = [Row(f"{said}, row {n}", {self.column: text}, (self.column,)) for n, text in enumerate(found, 1)]
        return list(entries_of(rows, self.column))

    def _fetched(self) -> list[Entry]:
        wanted = [self.column, *([self.answer] if self.answer else [])]
        rows = dataset_rows(self.dataset, self.subset, self.split, wanted)
        entries = entries_of(rows, self.column, self.answer, skip_empty=self.skip_empty)
        found = list(itertools.islice(entries, self.samples))
        if not found:
            raise DataError(f"{dataset_name(self.dataset, self.subset, self.split)}: holds no row; give another split")
        return found


class FilePrompts(Section):
    """Rows of a file on this machine."""

    file: str = Field(min_length=1, description="a .jsonl or .parquet file, or a .txt file of one prompt a line")
    column: str | None = Field(
        default=None,
        min_length=1,
        description="the column that holds the text, or the conversation; `prompt`, `text`, `turns` or `messages`",
    )
    answer: str | None = Field(default=None, min_length=1, description="the column that holds the answer")
    samples: int | None = Field(default=None, ge=1, description="rows to read, the first ones; all")
    skip_empty: bool = Field(default=False, description="leave rows without text out, instead of refusing them")

    @model_validator(mode="after")
    def _columns_are_named(self) -> FilePrompts:
        if self.column is None and self.answer is not None:
            raise ValueError("answer: name the column of the prompts too: `column`")
        if self.column is None and self.skip_empty:
            raise ValueError("skip_empty: name the column that may be empty: `column`")
        if self.column is not None and Path(self.file).suffix == ".txt":
            raise ValueError("column: a .txt file has no columns, one line is one text; remove it")
        return self

    def read(self) -> list[Entry]:
        """Its entries. Raises DataError with file:line."""
        return read_file(Path(self.file), self.column, self.answer, self.samples, skip_empty=self.skip_empty)


def _like_file(key: Any) -> bool:
    """Whether a key is `file`, or that misspelt."""
    return bool(difflib.get_close_matches(str(key), ["file"]))


def _kind_of_source(value: Any) -> str:
    """By the key that only one of them has; so that a fault is told in the words of that one."""
    if isinstance(value, dict):
        return "FilePrompts" if "dataset" not in value and any(map(_like_file, value)) else "HubPrompts"
    return type(value).__name__ if isinstance(value, HubPrompts | FilePrompts) else "str"


Source = Annotated[
    Annotated[str, Tag("str")] | Annotated[HubPrompts, Tag("HubPrompts")] | Annotated[FilePrompts, Tag("FilePrompts")],
    Discriminator(_kind_of_source),
]


class Data(Section):
    """The text that the drafter learns from."""

    prompts: Source = Field(
        description="`bos` (the target writes from nothing), a .txt, .jsonl or .parquet file, "
        "{dataset, split, column} or {file, column}"
    )
    written_by: Literal["target", "none"] = Field(
        default="target", description="target: it continues the prompts; none: the prompts are the text"
    )
    samples: int | None = Field(
        default=None, ge=1, description="texts that the target writes, over the prompts in turn; 1024, or one a prompt"
    )
    per_prompt: int | None = Field(
        default=None, ge=1, description="texts that the target writes to each prompt, instead of `samples` in all"
    )
    max_new_tokens: int = Field(default=256, ge=1, description="longest continuation")
    temperature: float = Field(default=1.0, ge=0, description="of the target's writing")
    top_k: int = Field(default=0, ge=0, description="write with the likeliest tokens only; 0: all")
    top_p: float = Field(default=1.0, gt=0, le=1, description="write with the likeliest tokens of that share only")
    held_out: float = Field(default=0.05, ge=0, lt=1, description="share never trained on; overlap is measured on it")
    batch: int = Field(default=64, ge=1, description="texts written at once")

    @property
    def greedy(self) -> bool:
        """Whether the target has one text only for each prompt."""
        return self.temperature == 0 or self.top_k == 1

    def texts(self, prompts: int | None = None) -> int:
        """How many the target writes to that many prompts; None where it is not known yet how many there are.

        `per_prompt` to each; else `samples`; else one to each prompt that is asked of a source; else 1024.
        """
        asked = self.prompts.samples if isinstance(self.prompts, HubPrompts | FilePrompts) else None
        known = prompts or asked or (1 if self.prompts == BOS else None)
        if self.per_prompt is not None:
            return self.per_prompt * (known or UNASKED_TEXTS)
        texts = self.samples or (known if asked else None) or UNASKED_TEXTS
        return min(texts, prompts) if self.greedy and prompts else texts

    def entries(self, cache: Path) -> list[Entry] | None:
        """What the prompts are; None where the target begins from nothing. Raises DataError.

        `cache` is where rows from the Hub are kept.
        """
        if isinstance(self.prompts, HubPrompts):
            return self.prompts.read(cache)
        if isinstance(self.prompts, FilePrompts):
            return self.prompts.read()
        return None if self.prompts == BOS else read_file(Path(self.prompts))

    @model_validator(mode="after")
    def _is_possible(self) -> Data:
        faults = []
        if self.prompts == BOS and self.written_by == "none":
            faults.append("written_by: `prompts: bos` is no text by itself; write `written_by: target`")
        elif self.written_by == "target":
            faults += self._writing_faults()
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _writing_faults(self) -> list[str]:
        faults = []
        source = self.prompts
        if isinstance(source, HubPrompts | FilePrompts) and source.answer is not None:
            faults.append("prompts.answer: the target writes the answers; remove it, or write `written_by: none`")
        if self.samples is not None and self.per_prompt is not None:
            faults.append("per_prompt: `samples` says how many texts there are in all; give one of the two")
            return faults
        if not self.greedy:
            return faults
        key, why = ("temperature", "at 0") if self.temperature == 0 else ("top_k", "at 1")
        asked = 1 if source == BOS else source.samples if isinstance(source, HubPrompts | FilePrompts) else None
        if (self.per_prompt or 1) > 1 or (asked is not None and (self.samples or 1) > asked):
            faults.append(f"{key}: {why} all texts of one prompt are equal; raise it, or ask for one a prompt")
        elif source == BOS and self.texts() > 1:
            faults.append(f"{key}: {why} the target has one text only to write from nothing; raise it, or give prompts")
        return faults


def facts_of(data: Data | None, text_digest: str | None) -> dict[str, Any]:
    """What of the section enters a stage's digest: prompts count by what they say, not by where they lie."""
    facts = data.model_dump(mode="json") if data else {}
    if data and data.prompts != BOS:
        facts["prompts"] = "given"  # their content is in text_digest
    return {**facts, "text": text_digest}
