"""A teacher's predictions at N positions, handed out a few positions at a time: in full, or the top k of a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Predictions(Protocol):
    """What a loss asks of a teacher."""

    @property
    def temperature(self) -> float:
        """What the logits were divided by before the softmax."""

    def __len__(self) -> int:
        """N."""

    def log_p(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Of positions start to stop: (log_p [C, V], None), or (log_p [C, k + 1], ids [C, k] int64).

        In the latter the last column is the log of the mass of all tokens that are not among `ids`, which differ from
        each other. A row is normalised, in float32 or float64, without a graph; -inf is allowed.
        """


@dataclass(frozen=True)
class FullPredictions:
    """Predictions over the whole vocabulary; logits are made when they are asked for, in the teacher's own dtype."""

    hidden: Tensor  # [N, D'] the teacher's last hidden states
    head: Callable[[Tensor], Tensor]  # [C, D'] -> [C, V]
    temperature: float = 1.0

    def __len__(self) -> int:
        """N."""
        return len(self.hidden)

    def log_p(self, start: int, stop: int) -> tuple[Tensor, None]:
        """[C, V], softened in float32 or better. Autocast has no say in it."""
        with torch.no_grad(), torch.autocast(self.hidden.device.type, enabled=False):
            logits = self.head(self.hidden[start:stop])
            precise = torch.promote_types(logits.dtype, torch.float32)
            if self.temperature == 1:
                return torch.log_softmax(logits, -1, dtype=precise), None
            return (logits.to(precise) / self.temperature).log_softmax(-1), None


@dataclass(frozen=True)
class TopPredictions:
    """The k likeliest tokens of each position and the mass of all others, as a cache keeps them."""

    ids: Tensor  # [N, k] int64, all different in a row
    kept: Tensor  # [N, k] their log-probabilities, float16 or wider
    tail: Tensor  # [N] the probability of all others, float32 or wider; 0 and what rounding puts below it are allowed
    temperature: float = 1.0  # that they were softened by before they were kept

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    def log_p(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """([C, k + 1], [C, k]), normalised again, since halves of log-probabilities do not sum to one."""
        tail = self.tail[start:stop, None].clamp(min=0).log()
        return torch.cat((self.kept[start:stop].to(tail.dtype), tail), -1).log_softmax(-1), self.ids[start:stop]
