"""Prompts as text, from files and from datasets of the Hub. Knows no tokenizer, and imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from factory.errors import DataError


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file: JSONL with `prompt`, `text` or Spec-Bench's `turns` (the first), or plain lines.

    Raises DataError with file:line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a UTF-8 .jsonl or .txt file") from error
    if path.suffix == ".jsonl":
        prompts = [_jsonl_prompt(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    else:
        prompts = [line.rstrip("\r") for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"{path}: holds no prompt; write one a line")
    return prompts


def _jsonl_prompt(path: Path, number: int, line: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}:{number}: not JSON ({error}); write one object a line") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}:{number}: expected an object with `prompt`, got {type(record).__name__}")
    value = record.get("prompt", record.get("text", record.get("turns")))
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{path}:{number}: no text under `prompt`, `text` or `turns`; keys here: {sorted(record)}")
    return value


def load_dataset_prompts(name: str, split: str, column: str, count: int | None) -> list[str]:
    """The first `count` texts of a column of a Hub dataset, streamed. Raises DataError."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"data.prompts names the dataset {name}, which needs: pip install 'drafter-factory[datasets]'"
        ) from error
    datasets.disable_progress_bars()
    try:
        stream = datasets.load_dataset(name, split=split, streaming=True)
        texts = []
        for record in stream:
            if column not in record:
                raise DataError(f"dataset {name}: no column {column!r}; it has {sorted(record)}")
            texts.append(str(record[column]))
            if count is not None and len(texts) >= count:
                break
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds for "not reachable" and "no such split"
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"dataset {name} ({split}): {first_line}; check the name and the network") from error
    return texts
