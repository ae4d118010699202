"""Logits to probabilities to tokens: the one sampler of both arms, and the noise that it draws with."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# SplitMix64 (Steele et al., 2014): neighbouring keys give unrelated seeds.
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_SMALLEST_TIME = 2.0**-54  # half of the smallest step of a float64 uniform; stands for a drawn 0


@dataclass(frozen=True)
class Sampling:
    """How logits become a distribution: temperature, then top-k, then top-p. 0, 0 and 1.0 mean greedy, off and off.

    Raises ValueError for a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a finite number >= 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0 (0 is off), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] (1 is off), got {self.top_p}")

    @property
    def greedy(self) -> bool:
        """Whether every distribution is a point mass."""
        return self.temperature == 0


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """The greedy token, [..., V] -> [...] int64. The lowest index wins a tie, and bfloat16 logits do tie.

    The one tie rule: both arms and all drafters come here with logits in the model's own dtype.
    """
    return logits.argmax(dim=-1)


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution that a token is drawn from, float32, [..., V] -> [..., V].

    Greedy is a one-hot distribution, not a second code path: acceptance and residual then hold as
    they stand. Equal logits at the edge of top-k all stay; at the edge of top-p the lower index
    stays: neither depends on how many rows are processed at once.
    """
    if sampling.greedy:
        return torch.zeros_like(logits, dtype=torch.float32).scatter_(-1, most_likely(logits).unsqueeze(-1), 1.0)
    scaled = logits.float()
    if sampling.temperature != 1:
        scaled = scaled / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest_kept = scaled.topk(sampling.top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < smallest_kept, -torch.inf)
    weights = scaled.softmax(dim=-1)
    if sampling.top_p == 1:
        return weights
    ordered, index = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    before[..., 0] = 0.0  # the most likely token always stays
    ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
    nucleus = torch.zeros_like(weights).scatter_(-1, index, ordered)
    return nucleus / nucleus.sum(dim=-1, keepdim=True)


def draw(weights: torch.Tensor, race: torch.Tensor) -> torch.Tensor:
    """One token per row by the exponential race, weights [B, V], race [B, V] Exp(1) -> [B] int64.

    argmax(w / e) is distributed as w / sum(w): each token waits Exp(w) and the first one wins. No
    cumulative sum is formed (a float32 one over 128k entries does not end at 1), the weights need
    no normalisation, and a weight of zero never wins.
    """
    return torch.where(weights > 0, weights / race, -1.0).argmax(dim=-1)


class Noise:
    """Random numbers keyed by (seed, request, role, output position), one row per request.

    A row's numbers do not depend on the batch that it is in, on the other rows, on k or on how
    often anything else was drawn. Output is therefore repeatable on one kind of device, but it is
    equal to plain sampling in law only, not token for token. Draws on the CPU use the key's low 32 bits.
    """

    def __init__(self, seed: int, requests: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.requests = list(requests)
        self.device = torch.device(device)
        self._generator = torch.Generator(device=self.device)
        self._keys: dict[str, list[int]] = {}  # per role, one key per row

    def copy(self) -> Noise:
        """The same numbers, with a selection of rows of its own."""
        return Noise(self.seed, self.requests, self.device)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self.requests = [self.requests[row] for row in rows]
        self._keys.clear()

    def race(self, role: str, positions: Sequence[int], vocabulary: int) -> torch.Tensor:
        """Exp(1) waiting times, [B, V] float32, for the row's output position.

        Made from float64 uniforms: with 24 bits, tokens of probability 1e-7 would win too often.
        """
        times = torch.empty(len(positions), vocabulary, dtype=torch.float64, device=self.device)
        self._fill(times, role, positions)
        # log1p, not log: on a CPU the latter goes through a library whose threads stall on a busy machine
        return times.neg_().log1p_().neg_().clamp_(min=_SMALLEST_TIME).float()

    def uniform(self, role: str, positions: Sequence[int], count: int) -> torch.Tensor:
        """`count` numbers in [0, 1) from each row's output position on, [B, count] float32.

        The first ones do not depend on `count`.
        """
        block = 1 << max(6, (count - 1).bit_length())  # a GPU's generator lays numbers out by the size of the draw
        numbers = torch.empty(len(positions), block, dtype=torch.float32, device=self.device)
        self._fill(numbers, role, positions)
        return numbers[:, :count]

    def _fill(self, numbers: torch.Tensor, role: str, positions: Sequence[int]) -> None:
        keys = self._keys.get(role)
        if keys is None:
            base = _mix(_mix(self.seed & _MASK) ^ zlib.crc32(role.encode()))
            keys = self._keys[role] = [_mix(base ^ _mix(request & _MASK)) for request in self.requests]
        for row, key, position in zip(numbers, keys, positions, strict=True):
            row.uniform_(generator=self._generator.manual_seed(_mix(key + position * _GOLDEN & _MASK)))


class Stillness(Noise):
    """What greedy decoding hands on in place of noise: with point masses any number gives the same token."""

    def race(self, role: str, positions: Sequence[int], vocabulary: int) -> torch.Tensor:
        """Ones, [1, 1], to be broadcast over rows and vocabulary."""
        return torch.ones(1, 1, device=self.device)

    def uniform(self, role: str, positions: Sequence[int], count: int) -> torch.Tensor:
        """Zeros, [1, 1], to be broadcast over rows and guesses."""
        return torch.zeros(1, 1, device=self.device)


def _mix(key: int) -> int:
    key = (key + _GOLDEN) & _MASK
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
    return key ^ (key >> 31)
