"""A target's config.json from the Hub: from its cache on this machine, else asked for, within seconds; whether the Hub
is there at all. No torch."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.errors import ModelError
from factory.hub.failures import failure
from factory.hub.names import Asked, require_hub_name

TIMEOUT_S = 3.0


@dataclass(frozen=True)
class NoConfig:
    """Why a config.json cannot be had; `final` where the Hub says that there is none, so that a build must fail too."""

    reason: str
    final: bool


def hub_config(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """config.json of a model on the Hub, or None where it cannot be had: not cached and not reachable, gated, no such.

    For forecasts only: the build itself pins the revision and says what is wrong.
    """
    found = config_or_reason(model, revision)
    return None if isinstance(found, NoConfig) else found


@functools.cache  # a recipe's candidates have one target, and an unreachable Hub is asked once
def config_or_reason(model: str, revision: str | None = None) -> dict[str, Any] | NoConfig:
    """The config of a model on the Hub, or why it cannot be had."""
    folder = snapshot(model, revision)
    asked = Asked(model, "read config.json of", revision=revision)
    try:
        text = _asked(asked) if folder is None else (folder / "config.json").read_text(encoding="utf-8")
        config = json.loads(text)
    except ModelError as error:
        return NoConfig(str(error), final=True)
    except ValueError:
        return NoConfig(f"{asked.head}: what lies there is no JSON", final=False)
    except Exception as error:  # the client raises many kinds
        final = type(error).__name__ in ("RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError")
        return NoConfig(failure(error, asked, ModelError).args[0], final)
    return config if isinstance(config, dict) else NoConfig(f"{asked.head}: it holds no object", final=False)


def _asked(asked: Asked) -> str:
    """What the Hub says that config.json holds. Raises ModelError where that is no name, else as the client does."""
    require_hub_name(asked.repository)
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import hf_raise_for_status

    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled
    url = hf_hub_url(asked.repository, "config.json", revision=asked.revision)
    answer = get_session().get(url, headers=build_hf_headers(), timeout=TIMEOUT_S, follow_redirects=True)
    hf_raise_for_status(answer)
    return str(answer.text)


def snapshot(model: str, revision: str | None = None) -> Path | None:
    """The folder in the Hub's cache that holds a model, or the beginning of it; None where there is none."""
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:  # no name that the Hub could know
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def hub_access(timeout_s: float = TIMEOUT_S) -> str:
    """`reachable`, or that it is not and why, within the timeout. Nothing is downloaded."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "offline: HF_HUB_OFFLINE is set; models and datasets must lie on this machine"
    answer = _answer(constants.ENDPOINT, timeout_s)
    if isinstance(answer, str):
        return f"offline: not reachable ({answer}); models and datasets must lie on this machine"
    if answer >= 400:
        return f"offline: it answers {answer}; models and datasets must lie on this machine"
    return "reachable"


@functools.cache
def _answer(endpoint: str, timeout_s: float) -> int | str:
    """The status that the Hub answers with, or the name of what went wrong."""
    from huggingface_hub import get_session

    try:
        return int(get_session().head(endpoint, timeout=timeout_s).status_code)
    except Exception as error:  # the client raises many kinds; each is "not reachable" here
        return type(error).__name__
