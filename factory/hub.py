"""A target's config.json from the Hub: from its cache on this machine, else asked for, within seconds. No torch."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

TIMEOUT_S = 3.0


@functools.cache  # a recipe's candidates have one target, and an unreachable Hub is asked once
def hub_config(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """config.json of a model on the Hub, or None where it cannot be had: not cached and not reachable, gated, no such.

    For forecasts only: the build itself pins the revision and says what is wrong.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:  # no name that the Hub could know
        return None
    if isinstance(cached, str):
        return _object(Path(cached).read_text(encoding="utf-8"))
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        return None
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers

    try:
        url = hf_hub_url(model, "config.json", revision=revision)
        answer = get_session().get(url, headers=build_hf_headers(), timeout=TIMEOUT_S, follow_redirects=True)
        return _object(answer.text) if answer.status_code == 200 else None
    except Exception:  # the client raises many kinds; each means that there is no config to forecast from
        return None


@functools.cache
def _reachable(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=TIMEOUT_S)
    except Exception:
        return False
    return True


def _object(text: str) -> dict[str, Any] | None:
    try:
        config = json.loads(text)
    except ValueError:
        return None
    return config if isinstance(config, dict) else None
