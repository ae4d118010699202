"""The tables of distillation.py: each arm beside the one that it differs from in one choice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from factory.provenance import git_sha, hardware, versions

STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # 97.5 % quantile, by seeds less one
RESAMPLES = 4000


def table(folder: Path, kept: Path) -> None:
    """Gather the runs of a folder into one JSON, and print it."""
    runs = [json.loads(path.read_text()) for path in sorted((folder / "runs").glob("*.json"))]
    if runs:
        by_arm: dict[str, list[dict[str, Any]]] = {}
        for one in runs:
            by_arm.setdefault(one["arm"], []).append(one)
        arms = [_arm(found, by_arm) for found in by_arm.values()]
        facts = {"hardware": hardware("cpu"), "versions": versions(), "git": git_sha()}
        kept.write_text(json.dumps({**facts, "arms": arms}, indent=1) + "\n")
    _print(json.loads(kept.read_text()))


def _arm(runs: list[dict[str, Any]], by_arm: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    first = runs[0]
    means = {name: _mean(runs, place) for place, name in ((1, "overlap"), (2, "same_top"), (3, "forward_kl"))}
    keys = ("arm", "against", "stage", "text", "fresh", "layers", "steps", "trained_tokens", "teacher_cache")
    found = {key: first[key] for key in keys if key in first} | means
    found["seeds"] = [one["seed"] for one in runs]
    found["overlaps"] = [round(_of(one, 1), 5) for one in runs]
    if first["against"] in by_arm:
        others = {one["seed"]: one for one in by_arm[first["against"]]}
        pairs = [(one, others[one["seed"]]) for one in runs if one["seed"] in others]
        found["difference"] = difference(pairs) if pairs else None
    return found


def _of(run: dict[str, Any], place: int) -> float:
    return float(sum(row[place] for row in run["rows"]) / sum(row[0] for row in run["rows"]))


def _mean(runs: list[dict[str, Any]], place: int) -> float:
    return round(sum(_of(one, place) for one in runs) / len(runs), 5)


def difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float | None]:
    """Mean difference in overlap over seeds, and how far it may be off: seeds by Student's t, rows by bootstrap.

    Both spreads are taken for independent and added in squares: training's chance, and that of the text judged on.
    """
    each = [_of(one, 1) - _of(other, 1) for one, other in pairs]
    value = sum(each) / len(each)
    rows = np.asarray([[one["rows"], other["rows"]] for one, other in pairs])  # [S, 2, N, 4]
    sums = rows[..., 1].mean(axis=0)  # [2, N] overlap, mean over seeds
    tokens = rows[0, 0, :, 0]
    weights = np.random.default_rng(0).multinomial(len(tokens), np.full(len(tokens), 1 / len(tokens)), size=RESAMPLES)
    drawn = (weights @ (sums[0] - sums[1])) / (weights @ tokens)
    of_rows = 1.96 * float(drawn.std())
    if len(each) < 2:
        return {"value": round(value, 5), "low": None, "high": None}
    deviation = math.sqrt(sum((one - value) ** 2 for one in each) / (len(each) - 1))
    of_seeds = STUDENT_T[len(each) - 1] * deviation / math.sqrt(len(each))
    half = math.hypot(of_rows, of_seeds)
    return {"value": round(value, 5), "low": round(value - half, 5), "high": round(value + half, 5)}


def _print(found: dict[str, Any]) -> None:
    print("| what | against | overlap | difference, 95 % interval | same likeliest token | KL, nats | seeds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for arm in sorted(found["arms"], key=lambda one: (one["layers"], -one["overlap"])):
        said, more = "", arm.get("difference")
        if more:
            said = f"{more['value']:+.4f}"
            said += f" ({more['low']:+.4f} to {more['high']:+.4f})" if more["low"] is not None else " (one seed)"
        cells = [arm["arm"], arm["against"] or "", f"{arm['overlap']:.4f}", said, f"{arm['same_top']:.4f}"]
        cells += [f"{arm['forward_kl']:.3f}", str(len(arm["seeds"]))]
        print(f"| {' | '.join(cells)} |")
