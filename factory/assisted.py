"""generation_config.json of a drafter: what makes stock transformers draft as it was measured.

`generate(assistant_model=...)` takes the number of guesses from the *assistant's* generation settings. Left alone it
drafts 20, stops where the assistant is unsure, and adapts: other settings than any that was measured here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "generation_config.json"
_OWN = ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # what transformers takes from config.json where there is none


def with_k(text: str | None, k: int, config: dict[str, Any]) -> str:
    """The settings with k guesses a round, always as many; `text` None is a model that had none. Raises ValueError."""
    settings = {key: config[key] for key in _IDS if config.get(key) is not None} if text is None else _object(text)
    return _written({**settings, **dict(zip(_OWN, (k, "constant", 0), strict=True))})


def without_k(text: str) -> str:
    """The settings as they were before `with_k`, as transformers writes them. Raises ValueError."""
    return _written({key: value for key, value in _object(text).items() if key not in _OWN})


def settle(model_folder: Path) -> None:
    """Give the settings of a model that is being made the form that `without_k` gives back, if they can be read."""
    path = model_folder / NAME
    if path.is_file():
        try:
            path.write_text(without_k(path.read_text(encoding="utf-8")), encoding="utf-8")
        except ValueError:
            return  # loading says what is wrong with it


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("it holds no object")
    return found


def _written(settings: dict[str, Any]) -> str:
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"
