"""How the drafters of an evaluation were trained, as results.json keeps it: what their manifests say, thinned.

The report is drawn from files that may lie far from the artifacts, so what it draws of them goes along.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MOST_LOSSES = 200  # points of a training's loss

Training = dict[str, Any]

FIGURES = ("steps", "planned_steps", "kept_step", "trained_tokens", "held_out_before", "held_out_after")


def trainings_of(artifact: str, facts: Sequence[dict[str, Any]]) -> list[Training]:
    """One record for each stage of a manifest that trained; none for an untrained drafter.

    Earlier manifests have no looks and count no trained tokens: such figures are None. What is not finite
    is None too, since results.json knows neither NaN nor infinity.
    """
    return [
        {
            "artifact": artifact,
            "stage": place,
            "kind": stage["kind"],
            **{key: _finite(stage.get(key)) for key in FIGURES},
            "looks": [_finite(look) for look in stage.get("looks") or ()],
            "losses": thinned(stage.get("losses") or ()),
        }
        for place, stage in enumerate(facts)
        if stage.get("losses") or stage.get("looks")
    ]


def thinned(losses: Sequence[float], most: int = MOST_LOSSES) -> list[list[float]]:
    """At most so many [step, mean loss of the steps since the point before]; every step has the same say."""
    size = math.ceil(len(losses) / most) or 1
    points: list[list[float]] = []
    for first in range(0, len(losses), size):
        some = [loss for loss in losses[first : first + size] if math.isfinite(loss)]
        if some:
            points.append([min(first + size, len(losses)), round(sum(some) / len(some), 5)])
    return points


def _finite(value: Any) -> Any:
    """The same with None in place of what is no number; one level of a dict deep, which is as deep as they go."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
