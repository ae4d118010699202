"""Which tokens begin and end a model's text, by its configuration alone: no weights are read.

config.json may leave out what is its family's default; only then is transformers asked, which takes seconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.errors import ModelError
from factory.models.located import load_failure, read_config

_KEYS = ("bos_token_id", "eos_token_id", "vocab_size")


@dataclass(frozen=True)
class SpecialTokens:
    """`first` begins a text that is written from nothing (None: nothing can); `ends` end one."""

    first: int | None
    ends: frozenset[int]


def special_tokens(folder: Path) -> SpecialTokens:
    """As models.first_token_id and models.eos_token_ids find them in the loaded model. Raises ModelError."""
    config = read_config(folder)
    if not all(key in config for key in _KEYS):
        config = _with_defaults(folder)
    try:
        generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        generation = {}
    if not isinstance(generation, dict):  # transformers ends in a TypeError there
        raise ModelError(f"{folder / 'generation_config.json'}: it must hold an object; mend the file, or remove it")
    ids = generation.get("eos_token_id")
    ids = config["eos_token_id"] if ids is None else ids
    ends = frozenset(() if ids is None else [ids] if isinstance(ids, int) else ids)
    begins = (i for i in (config["bos_token_id"], *sorted(ends)) if i is not None and i < config["vocab_size"])
    return SpecialTokens(next(begins, None), ends)


def _with_defaults(folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    from factory.models import loading as models  # noqa: F401 - silences transformers before it is first used

    try:
        known = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise load_failure(str(folder), error) from error
    return {key: getattr(known, key, None) for key in _KEYS}
