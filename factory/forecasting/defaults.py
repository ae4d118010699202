"""The recipe for `factory build --target MODEL` where none is named: chosen by the forecast, for the user to edit."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from factory.anatomy.families import anatomy_of, shape_from_config
from factory.anatomy.shapes import Shape
from factory.errors import UnsupportedModel
from factory.forecasting.effort import effort_of, text_of, writing
from factory.forecasting.forecast import LOW_CEILING, costs_in_time, served
from factory.forecasting.profile import DeviceProfile
from factory.recipes.sources import Data
from factory.stages import Distill, Gptq

# (share of the layers that stay, held-out overlap): the shipped target's drafters of 1, 2, 5 and 10 of 20 layers, each
# distilled alike, by `factory build recipes/demo/quick.yaml --set stages.0.keep=N --set data.samples=448
# --set stages.1.epochs=3`; overlap is what acceptance is on average.
OVERLAPS = ((0.05, 0.40), (0.10, 0.48), (0.25, 0.67), (0.50, 0.74))
AS_GOOD = 0.97  # of the best forecast: what it cannot tell from the best
INT4_GAINS = 1.05  # what 4 bits must bring in the forecast before they are worth a quantised folder
GROUP: Final = 128
# (layers from, peak learning rate): shallow drafters start far from the target and take a higher rate.
_RATES = ((6, "2.0e-4"), (1, "4.0e-4"))
SAMPLES = (32768, 8192, 2048, 1024)  # texts: the most that the forecast gets done within BUDGET_S, the fewest else
BUDGET_S = 7200.0
_EPOCHS, _NEW_TOKENS = 2, 256


@dataclass(frozen=True)
class Default:
    """A recipe's text, its name, and one sentence that says what was chosen and why."""

    name: str
    text: str
    reason: str


@dataclass(frozen=True)
class _Candidate:
    layers: int
    int4: bool
    alpha: float
    speedup: float
    k: int


def default_recipe(target: str, config: dict[str, Any], profile: DeviceProfile, dtype: str = "auto") -> Default:
    """The default recipe for a target, from its config.json and a device.

    Every depth up to half of the target's is forecast on the device, each at the alpha that such a depth
    may hope for (`hoped_alpha`). Of those within 3 % of the best, which such a forecast cannot tell
    apart, the middle one is taken. At one alpha for all, the shallowest would always win: what depth
    costs the forecast knows, what it brings only a measurement does. Four-bit layers only on CUDA, where
    a kernel reads them, and only where the forecast gains 5 % by them.

    Raises UnsupportedModel for a target of one layer, or of an architecture that is not known.
    """
    anatomy, asked = anatomy_of(config), dtype
    dtype = profile.default_dtype(asked)
    shape = served(shape_from_config(config), dtype)
    if shape.layers < 2:
        raise UnsupportedModel(f"{target}: it has {shape.layers} layer, so none can be dropped")
    chosen = _best(shape, shape.bits, profile, dtype)
    if profile.kind == "cuda" and anatomy.why_gptqmodel is None:
        quantised = _best(shape, _int4_bits(shape), profile, dtype)
        if quantised.speedup >= INT4_GAINS * max(chosen.speedup, 1.0):
            chosen = quantised
    samples = _samples(shape, replace(shape, layers=chosen.layers), profile, dtype)
    name = f"{_slug(target)}-{chosen.layers}of{shape.layers}" + ("-int4" if chosen.int4 else "")
    bits = ", in 4 bits" if chosen.int4 else ""
    reason = (
        f"{name}, since no recipe was named: {chosen.layers} of {shape.layers} layers{bits}, in the middle of the "
        f"best forecasts for {profile.name}{'' if profile.measured else ' (not measured here)'}: {chosen.speedup:.2f}x "
        f"at k = {chosen.k}, were alpha {chosen.alpha:.2f} as it was for the shipped target's drafters of this depth"
    )
    if chosen.speedup <= 1:
        reason += "; by that forecast no depth pays on this device, so measure before you rely on it"
    elif chosen.speedup < LOW_CEILING:
        reason += "; that is little, so measure before you rely on it"
    return Default(name, _text(name, target, asked, chosen, shape, samples, reason), reason + ".")


def hoped_alpha(share: float) -> float:
    """Acceptance that a drafter with this share of the target's layers may hope for, after a short distillation.

    Lines between what was measured on one small target: for weighing depths against one another, not for a promise.
    """
    line = next((line for line in pairwise(OVERLAPS) if share <= line[1][0]), OVERLAPS[-2:])
    (left, low), (right, high) = line
    return min(1.0, low + (share - left) * (high - low) / (right - left))


def _best(shape: Shape, bits: float | None, profile: DeviceProfile, dtype: str) -> _Candidate:
    """The middle of the depths whose forecasts, each at its own alpha, are as good as the best."""
    found = []
    for layers in range(1, shape.layers // 2 + 1):
        alpha = hoped_alpha(layers / shape.layers)
        drafter = replace(shape, layers=layers, bits=shape.bits if bits is None else bits)
        speedup, k = costs_in_time(drafter, shape, profile, dtype).best(alpha)
        found.append(_Candidate(layers, drafter.bits < shape.bits, alpha, speedup, k))
    best = max(candidate.speedup for candidate in found)
    good = [candidate for candidate in found if candidate.speedup >= AS_GOOD * best]
    return good[(len(good) - 1) // 2]


def _samples(target: Shape, drafter: Shape, profile: DeviceProfile, dtype: str) -> int:
    """How many texts the target writes, and the drafter learns from, within the budget."""
    stage = Distill(kind="distill", epochs=_EPOCHS)
    for samples in SAMPLES:
        text = text_of(Data(prompts="bos", samples=samples, max_new_tokens=_new_tokens(target)))
        if text is None:
            continue
        written = writing(text, target, profile, dtype)
        if written.seconds + effort_of(stage, drafter, drafter, target, text, profile, dtype).seconds <= BUDGET_S:
            return samples
    return SAMPLES[-1]


def _new_tokens(target: Shape) -> int:
    return max(1, min(_NEW_TOKENS, target.context // 2))


def _int4_bits(shape: Shape) -> float | None:
    """Bits a weight after the gptq stage; None where it cannot be done to this shape."""
    try:
        return Gptq(kind="gptq", bits=4, group_size=GROUP).forecast(shape).bits
    except UnsupportedModel:
        return None


def _slug(target: str) -> str:
    """A drafter's name from a folder or Hub name: letters, digits, '.', '_' and single '-'."""
    name = Path(target).resolve().name if Path(target).is_dir() else target.rstrip("/").rsplit("/", 1)[-1]
    slug = re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "-", name)).strip("-._").lower()[:48].rstrip("-._")
    return slug or "drafter"


def _text(name: str, target: str, dtype: str, chosen: _Candidate, shape: Shape, samples: int, reason: str) -> str:
    rate = next(rate for least, rate in _RATES if chosen.layers >= least)
    quantise = f"\n  - {{kind: gptq, bits: 4, group_size: {GROUP}}}" if chosen.int4 else ""
    why = "\n".join(textwrap.wrap(reason + ".", 117, initial_indent="# ", subsequent_indent="# "))
    return f"""\
{why}
# Change what you like and build it again:
#   factory build {name}.yaml
name: {name}
target: {{model: {json.dumps(target)}, dtype: {dtype}}}
data:
  prompts: bos               # the target begins from nothing; a file of prompts like those it will serve is better
  written_by: target
  samples: {str(samples).ljust(17)} # more is better, up to 100000
  max_new_tokens: {_new_tokens(shape)}
stages:
  - {{kind: drop_layers, keep: {chosen.layers}, score: even}}
  - {{kind: distill, loss: forward_kl, epochs: {_EPOCHS}, lr: {rate}}}{quantise}
seed: 0
"""
