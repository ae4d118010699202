"""How many timings become one figure and its interval. Pure numpy; knows no model and no clock.

A speedup here is a *ratio of totals*: seconds per new token of the baseline over seconds per new
token of the arm, each summed over all prompts. The average of per-prompt ratios is another figure
(one short lucky output weighs as much as a long one) and is not reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
LEVEL = 0.95

Totals = Sequence[tuple[float, float, float, float]]  # per prompt: baseline s, baseline tokens, arm s, arm tokens


@dataclass(frozen=True)
class Interval:
    """A speedup and how far it may be off. low and high are None where there is but one prompt."""

    value: float
    low: float | None
    high: float | None


def speedup(totals: Totals, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Ratio of totals with a paired bootstrap interval over prompts.

    Paired: a resample draws whole prompts, so the baseline and the arm always answer the same ones,
    and the spread between easy and hard prompts does not widen the interval of their ratio. A plain
    percentile interval is too narrow for few prompts; its ends are moved outward as in Hesterberg's
    expanded percentile interval (arXiv 1411.5279): from six prompts on it covers nearly as often
    as it says, below that less. What it does not know: drift of the machine that is the same for all prompts.
    Raises ValueError without prompts.
    """
    if not totals:
        raise ValueError("a speedup needs at least one prompt")
    table = np.asarray(totals, dtype=np.float64)  # [N, 4]
    value = float(_ratio(table.sum(axis=0)))
    count = len(table)
    if count < 2:
        return Interval(value, None, None)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)  # [R, N]
    ratios = _ratio(weights @ table)  # [R]
    tail = expanded_tail(count)
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value))


def expanded_tail(count: int, level: float = LEVEL) -> float:
    """The percentile at which a bootstrap interval over `count` items ends, less than (1 - level) / 2."""
    normal = NormalDist()
    z = normal.inv_cdf((1 + level) / 2)
    return normal.cdf(-math.sqrt(count / (count - 1)) * _student_quantile(z, count - 1))


def repeated_share(sequences: Sequence[Sequence[int]], size: int = 4) -> float | None:
    """Share of n-grams that an output has said before; None where no output is that long.

    A weak model under greedy decoding loops, and loops flatter every drafter: read a speedup beside it.
    """
    total = repeated = 0
    for tokens in sequences:
        grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated / total if total else None


def _ratio(totals: NDArray[np.float64]) -> NDArray[np.float64]:  # [..., 4] -> [...]
    base_s, base_tokens, arm_s, arm_tokens = np.moveaxis(totals, -1, 0)
    return np.asarray((base_s / base_tokens) / (arm_s / arm_tokens), dtype=np.float64)


def _student_quantile(z: float, freedom: int) -> float:
    """Student's t from the normal quantile z: the first terms of the Cornish-Fisher series (2 % low at 3)."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
