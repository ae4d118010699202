"""JSON that others wrote: read whole, or one short reason why not, in words that a message can end with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class NotJsonError(ValueError):
    """What is wrong: `it is empty`, `not JSON from line 3, column 7 on`, `no such file`."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises NotJsonError, also where the text would only exhaust the stack."""
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return json.loads(text)
    except UnicodeDecodeError:
        reason = "not UTF-8 text"
    except json.JSONDecodeError as error:
        line, column = error.lineno, error.colno
        reason = f"not JSON from line {line}, column {column} on" if error.doc.strip() else "it is empty"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError:  # Python refuses to read whole numbers of thousands of digits
        reason = "not JSON: a number of thousands of digits"
    raise NotJsonError(reason)


def read_json(path: Path) -> Any:
    """The value that a file holds. Raises NotJsonError, also where the file cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise NotJsonError("no such file" if missing else (error.strerror or str(error)).lower()) from None
    return parse_json(content)


def json_kind(value: Any) -> str:
    """What a value is, as someone who wrote it would say."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {str: "a text", list: "a list", dict: "an object"}
    return next((said for kind, said in kinds.items() if isinstance(value, kind)), "a number")
