"""What a drafter costs and could gain, from shapes and a device's figures alone: no weights, no clock, no torch.

Two models of a step's cost at batch 1. *In bytes*: a step takes as long as streaming its weights, and
verifying k + 1 tokens takes one step; hardware drops out, and what comes out is a ceiling. *In time*:
a roofline of the device (bytes / bandwidth against operations / peak) and what the engine adds
on the host. Neither knows attention over a long past, sampling, or acceptance: alpha is always given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from factory.anatomy.families import BITS
from factory.anatomy.shapes import Shape
from factory.forecasting.profile import DeviceProfile

ALPHAS = (0.6, 0.7, 0.8, 0.9)
KS = range(1, 17)
LOW_CEILING = 1.3  # best speedup at alpha .80 below which a drafter is hardly worth its training


def cost_ratio(drafter: Shape, target: Shape) -> float:
    """c in bytes: what is streamed for one draft step / for one target step."""
    return drafter.step_bytes / target.step_bytes


def expected_tokens(alpha: float, k: int) -> float:
    """tau: mean tokens per target pass under i.i.d. acceptance, (1 - a^(k+1)) / (1 - a) (arXiv 2211.17192, eq. 1)."""
    if alpha >= 1:
        return float(k + 1)
    return float((1 - alpha ** (k + 1)) / (1 - alpha))


def modelled_speedup(alpha: float, k: int, c: float, verify: float = 1.0) -> float:
    """Expected tokens / (k * c + verify) (arXiv 2211.17192, theorem 3.8, where verification costs one step).

    `verify` is t_v(k+1): the seconds of a target pass over k + 1 tokens / of one over one token.
    """
    return expected_tokens(alpha, k) / (k * c + verify)


@dataclass(frozen=True)
class Costs:
    """What a draft step and a verification cost, both in steps of the target alone; `target_s` says how long one is."""

    target_s: float  # 0 where no device is meant
    c: float
    verify: Callable[[int], float]  # k -> t_v(k+1)
    round: float = 0.0  # what a round costs besides drafting and verification

    @property
    def draft_s(self) -> float:
        """Seconds of one draft step."""
        return self.c * self.target_s

    def verify_s(self, k: int) -> float:
        """Seconds of one target pass over k + 1 tokens."""
        return self.verify(k) * self.target_s

    def speedup(self, alpha: float, k: int) -> float:
        """Modelled speedup of drafting k tokens a round."""
        return modelled_speedup(alpha, k, self.c, self.verify(k) + self.round)

    def best(self, alpha: float) -> tuple[float, int]:
        """Best speedup over k from 1 to 16, and that k; the smaller k where two are equal."""
        return max(((self.speedup(alpha, k), k) for k in KS), key=lambda found: (found[0], -found[1]))


def costs_in_bytes(drafter: Shape, target: Shape) -> Costs:
    """The ceiling: memory traffic alone, verification costs one step."""
    return Costs(0.0, cost_ratio(drafter, target), lambda _k: 1.0)


def costs_in_time(drafter: Shape, target: Shape, profile: DeviceProfile, dtype: str) -> Costs:
    """On a device, with this project's engine. Shapes as served (see `served`)."""
    target_s = step_seconds(target, 1, profile, dtype)
    drafting = profile
    if profile.draft_overhead_s is not None:
        drafting = replace(profile, step_overhead_s=profile.draft_overhead_s)
    draft_s = step_seconds(drafter, 1, drafting, dtype)
    return Costs(
        target_s,
        draft_s / target_s,
        lambda k: step_seconds(target, k + 1, profile, dtype) / target_s,
        profile.round_overhead_s / target_s,
    )


def served(shape: Shape, dtype: str) -> Shape:
    """The shape with its weights in the dtype that it runs in; quantised layers stay as they are."""
    bits = BITS[dtype]
    return replace(shape, bits=shape.bits if shape.bits < shape.table_bits else bits, table_bits=bits)


def unpacked(shape: Shape, profile: DeviceProfile) -> bool:
    """Whether its layers are quantised to a width that the device's kernels do not read; a CPU's read 4 bits only."""
    return profile.kind == "cpu" and shape.bits < shape.table_bits and not 4 <= shape.bits < 6


def step_seconds(shape: Shape, tokens: int, profile: DeviceProfile, dtype: str) -> float:
    """Seconds of one pass over `tokens` tokens: max(bytes / bandwidth, operations / peak), and the host's part.

    A CPU does the host's work and the arithmetic in turn, so they add; a GPU works while its host
    prepares what follows, so the slower of the two decides. Quantised layers that no kernel of the
    device reads as they are stored are unpacked first, and gain no time.
    """
    if unpacked(shape, profile):
        shape = replace(shape, bits=shape.table_bits)
    reading_s = shape.step_bytes / profile.bandwidth(shape.step_bytes)
    computing_s = shape.step_operations * tokens / profile.peak(dtype, tokens)
    device_s = max(reading_s, computing_s)
    layer_s = profile.layer_overhead_s
    if tokens > 1 and profile.verify_layer_overhead_s is not None:
        layer_s = profile.verify_layer_overhead_s
    host_s = shape.layers * layer_s + profile.step_overhead_s
    return device_s + host_s if profile.kind == "cpu" else max(device_s, host_s)
