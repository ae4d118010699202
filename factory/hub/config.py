"""A target's config.json from the Hub: from its cache on this machine, else asked for, within seconds; whether the Hub
is there at all. No torch."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from factory.errors import ModelError
from factory.hub.failures import hub_errors
from factory.hub.names import Asked, require_hub_name

TIMEOUT_S = 3.0


@functools.cache  # a recipe's candidates have one target, and an unreachable Hub is asked once
def hub_config(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """config.json of a model on the Hub, or None where it cannot be had: not cached and not reachable, gated, no such.

    For forecasts only: the build itself pins the revision and says what is wrong.
    """
    found = _config(model, revision)
    return found if isinstance(found, dict) else None


def hub_reason(model: str, revision: str | None = None) -> str:
    """Why `hub_config` has none; nothing where it has one."""
    found = _config(model, revision)
    return found if isinstance(found, str) else ""


def _config(model: str, revision: str | None) -> dict[str, Any] | str:
    """The config, or why it cannot be had."""
    folder = snapshot(model, revision)
    text = (folder / "config.json").read_text(encoding="utf-8") if folder is not None else None
    if text is None:
        try:
            text = _asked(model, revision)
        except ModelError as error:
            return str(error)
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    return config if isinstance(config, dict) else f"{model}: its config.json on the Hub holds no object"


def _asked(model: str, revision: str | None) -> str:
    """What the Hub says that config.json holds. Raises ModelError."""
    require_hub_name(model)
    asked = Asked(model, "read config.json of", revision=revision)
    with hub_errors(asked):
        from huggingface_hub import constants, get_session, hf_hub_url
        from huggingface_hub.errors import OfflineModeIsEnabled
        from huggingface_hub.utils import hf_raise_for_status
        from huggingface_hub.utils._headers import build_hf_headers

        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled
        url = hf_hub_url(model, "config.json", revision=revision)
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
