"""What a drafter costs and could gain, from shapes alone: no weights, no clock.

The model of the cost is memory traffic at batch 1: a step takes as long as streaming its weights.
It does not know launch or interpreter overhead (which make c larger for shallow drafters on small
models) nor that verifying k + 1 tokens costs more than one step: it is a ceiling, not a promise.
"""

from __future__ import annotations

from factory.edit import Shape


def cost_ratio(drafter: Shape, target: Shape) -> float:
    """c: bytes streamed for one draft step / for one target step."""
    return drafter.step_bytes / target.step_bytes


def expected_tokens(alpha: float, k: int) -> float:
    """Mean tokens per target pass under i.i.d. acceptance, (1 - a^(k+1)) / (1 - a) (arXiv 2211.17192, eq. 1)."""
    if alpha >= 1:
        return float(k + 1)
    return float((1 - alpha ** (k + 1)) / (1 - alpha))


def modelled_speedup(alpha: float, k: int, c: float) -> float:
    """Expected tokens / (k * c + 1) (arXiv 2211.17192, theorem 3.8): verification costs one target step."""
    return expected_tokens(alpha, k) / (k * c + 1)
