"""A teacher's predictions at N positions, handed out a few positions at a time: in full, or what a cache kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

LEAST_SHIFT = -80.0  # where nothing is left over: in float32 e^-80 is a number still


class Outcomes(NamedTuple):
    """What a divergence sums over at C positions.

    All V tokens; or k tokens and all others as one more; or k tokens and m of the others, drawn by p, for all others.
    """

    log_p: Tensor  # [C, V], [C, k + 1] or [C, k + m]; -inf is allowed
    ids: Tensor | None = None  # [C, k] or [C, k + m] int64; a drawn token may be there more than once
    shift: Tensor | None = None  # [C, k + m] what is added to log q at `ids`; None where "all others" is an outcome


class Predictions(Protocol):
    """What a loss asks of a teacher."""

    @property
    def temperature(self) -> float:
        """What the logits were divided by before the softmax."""

    def __len__(self) -> int:
        """N."""

    def outcomes(self, start: int, stop: int) -> Outcomes:
        """Of positions start to stop, normalised, in float32 or float64, without a graph."""


@dataclass(frozen=True)
class FullPredictions:
    """Predictions over the whole vocabulary; logits are made when they are asked for, in the teacher's own dtype."""

    hidden: Tensor  # [N, D'] the teacher's last hidden states
    head: Callable[[Tensor], Tensor]  # [C, D'] -> [C, V]
    temperature: float = 1.0

    def __len__(self) -> int:
        """N."""
        return len(self.hidden)

    def outcomes(self, start: int, stop: int) -> Outcomes:
        """[C, V], softened in float32 or better. Autocast has no say in it."""
        with torch.no_grad(), torch.autocast(self.hidden.device.type, enabled=False):
            logits = self.head(self.hidden[start:stop])
            precise = torch.promote_types(logits.dtype, torch.float32)
            if self.temperature == 1:
                return Outcomes(torch.log_softmax(logits, -1, dtype=precise))
            return Outcomes((logits.to(precise) / self.temperature).log_softmax(-1))


@dataclass(frozen=True)
class TopPredictions:
    """The k likeliest tokens of each position, the mass r of all others, and m of these, drawn by p with replacement.

    Divergences are sums over tokens of g(p, q), and homogeneous: g(w p, w q) = w g(p, q). So a drawn token s stands
    for the others with weight w = r / (m p_s), that is with p = r / m and q = w q_s, and the sum's mean over draws is
    the sum over all tokens; so is the gradient's (sampled distillation, Anshumann et al., arXiv 2503.16870). Without
    draws all others are one outcome, which hides what differs among them.
    """

    ids: Tensor  # [N, k + m] int64, the first k all different in a row and likeliest first
    kept: Tensor  # [N, k + m] their log-probabilities, float16 or wider
    tail: Tensor  # [N] the probability of all others, float32 or wider; 0 and what rounding puts below it are allowed
    temperature: float = 1.0  # that they were softened by before they were kept
    drawn: int = 0  # m

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    def outcomes(self, start: int, stop: int) -> Outcomes:
        """[C, k + 1] or [C, k + m], normalised again, since halves of log-probabilities do not sum to one."""
        top = self.kept.shape[1] - self.drawn
        ids, kept = self.ids[start:stop], self.kept[start:stop].to(self.tail.dtype)
        tail = self.tail[start:stop, None].clamp(min=0).log()
        log_p = torch.cat((kept[:, :top], tail), -1).log_softmax(-1)
        if not self.drawn:
            return Outcomes(log_p, ids)
        each = log_p[:, top:] - math.log(self.drawn)  # [C, 1] log r / m
        shift = torch.zeros_like(kept)
        shift[:, top:] = (each - kept[:, top:]).clamp_(min=LEAST_SHIFT)
        return Outcomes(torch.cat((log_p[:, :top], each.expand(-1, self.drawn)), -1), ids, shift)
