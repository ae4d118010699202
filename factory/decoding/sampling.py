"""Logits to probabilities to tokens, and the numbers that tokens are drawn with: one way for target and drafter."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from factory.decoding.sending import sent

Words = npt.NDArray[np.uint64]

# SplitMix64 (Steele et al., 2014): neighbouring keys give unrelated numbers.
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1
_BLOCK = 128  # output positions that numbers are made for at once, at least
_FIRST_LOOK = 128  # a nucleus is sought among that many tokens first: sorting a whole vocabulary takes 50 times as long


@dataclass(frozen=True)
class Sampling:
    """How logits become a distribution. The defaults are greedy, and everything else off.

    In the order of transformers 5.23 (`GenerationMixin._get_logits_processor`): the repetition penalty
    (CTRL, arXiv 1909.05858: what occurs in prompt or output; its logit is divided by the penalty where
    positive, else multiplied), then frequency and presence penalty (OpenAI's: the logit minus frequency x
    occurrences in the output minus presence where there is one; transformers has neither, vLLM puts them
    here), no_repeat_ngram_size (no n-gram of prompt and output twice), min_new_tokens (no EOS before);
    then, unless greedy, temperature, top-k, top-p and min-p (arXiv 2407.01082: no token below min_p times
    the likeliest one's probability).

    Raises ValueError for a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a finite number >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] (1 is off), got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1] (0 is off), got {self.min_p}")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(
                f"repetition_penalty must be a finite number > 0 (1 is off), got {self.repetition_penalty}"
            )
        for name in ("frequency_penalty", "presence_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number (0 is off), got {getattr(self, name)}")
        for name in ("top_k", "no_repeat_ngram_size", "min_new_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0 (0 is off), got {getattr(self, name)}")

    @property
    def greedy(self) -> bool:
        """Whether every distribution is a point mass."""
        return self.temperature == 0

    @property
    def looks_back(self) -> bool:
        """Whether a distribution depends on the text before it other than through the model."""
        return (
            self.repetition_penalty != 1
            or self.frequency_penalty != 0
            or self.presence_penalty != 0
            or self.no_repeat_ngram_size > 0
            or self.min_new_tokens > 0
        )


@dataclass(frozen=True)
class PointMasses:
    """Distributions that are certain of one token each: what greedy decoding draws from, without the zeros."""

    tokens: torch.Tensor  # [...] int64
    vocabulary: int

    def dense(self) -> torch.Tensor:
        """The same as one-hot probabilities, [..., V] float32."""
        zeros = torch.zeros(*self.tokens.shape, self.vocabulary, device=self.tokens.device)
        return zeros.scatter_(-1, self.tokens.unsqueeze(-1), 1.0)


Distribution = torch.Tensor | PointMasses  # [..., V], or what stands for it


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """The greedy token, [..., V] -> [...] int64. The lowest index wins a tie, and bfloat16 logits do tie.

    The one tie rule: both arms and all drafters come here with logits in the model's own dtype.
    """
    if logits.device.type != "cpu":
        return logits.argmax(dim=-1)
    # PyTorch's argmax on a CPU takes 10 to 50 times as long as NumPy's: 0.5 ms for 5 rows of 32,000
    exact = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    return torch.from_numpy(np.asarray(exact.numpy().argmax(axis=-1)))


def distribution(logits: torch.Tensor, sampling: Sampling) -> Distribution:
    """What a token is drawn from, [..., V] -> [..., V] float32, or point masses [...] under greedy.

    Temperature, top-k, top-p, min-p; penalties are `processors.History`'s. Equal logits at the edge of
    top-k all stay; at the edge of top-p the lower index stays: neither depends on how many rows are
    processed at once.
    """
    if sampling.greedy:
        return PointMasses(most_likely(logits), logits.shape[-1])
    scaled = logits.float()
    if sampling.temperature != 1:
        scaled = scaled / sampling.temperature
    size, largest = logits.shape[-1], None  # [..., top_k]: which they are, the likeliest first
    if 0 < sampling.top_k < size:
        smallest_kept, largest = scaled.topk(sampling.top_k, dim=-1)
        scaled = scaled.masked_fill(scaled < smallest_kept[..., -1:], -torch.inf)
    weights = scaled.softmax(dim=-1)
    if sampling.top_p == 1 and sampling.min_p == 0:
        return weights
    if sampling.top_p < 1:
        if weights.device.type != "cpu":  # it sorts sooner than it answers, and a recorded graph may not ask
            ordered = weights.sort(dim=-1, descending=True).values
        elif largest is not None:
            ordered = weights.gather(-1, largest)
        else:
            ordered = weights.topk(min(size, _FIRST_LOOK), dim=-1).values
        weights = _nucleus(weights, sampling.top_p, ordered)
    if sampling.min_p > 0:
        weights = weights.masked_fill(weights < sampling.min_p * weights.amax(dim=-1, keepdim=True), 0.0)
    return weights / weights.sum(dim=-1, keepdim=True)


def _nucleus(weights: torch.Tensor, top_p: float, ordered: torch.Tensor) -> torch.Tensor:
    """The smallest set of likeliest tokens whose probability reaches top_p, the others 0; [..., V] -> [..., V].

    `ordered` [..., n]: the n largest weights, from the largest on; more are looked at where they do not reach it.
    """
    size, reached = weights.shape[-1], ordered.cumsum(dim=-1)
    while ordered.shape[-1] < size and bool((reached[..., -1] < top_p).any()):
        ordered = weights.topk(min(size, 8 * ordered.shape[-1]), dim=-1).values
        reached = ordered.cumsum(dim=-1)
    # a token stays while what lies before it has not reached top_p; the likeliest always does
    count = (reached[..., :-1] < top_p).sum(dim=-1, keepdim=True)
    edge = ordered.gather(-1, count)
    kept = weights >= edge
    excess = kept.sum(dim=-1, keepdim=True) > count + 1
    if weights.device.type != "cpu" or bool(excess.any()):  # several have the edge's probability
        tied = weights == edge
        room = count + 1 - (weights > edge).sum(dim=-1, keepdim=True)
        kept = kept & ~(tied & (tied.cumsum(dim=-1) > room))
    return weights.masked_fill(~kept, 0.0)


def draw(weights: Distribution, number: torch.Tensor | None) -> torch.Tensor:
    """One token per row, [B] int64: weights [B, V] need no normalisation, number [B, 1] float64 in [0, 1).

    The token at which the running sum passes number x total. The sum is float64: a float32 one over
    128k entries does not end at 1 (seen: 1.00001). A weight of zero is never drawn. Point masses need
    no number.
    """
    if isinstance(weights, PointMasses):
        return weights.tokens
    if number is None:
        raise ValueError("a token can be drawn without a number from point masses only")
    reached = weights.cumsum(dim=-1, dtype=torch.float64)
    # the goal is below the total, since the numbers have 52 bits
    return torch.searchsorted(reached, number * reached[:, -1:], right=True).squeeze(1)


class Noise:
    """Random numbers keyed by (seed, request, role, output position), one row per request.

    A row's numbers do not depend on the batch that it is in, on the other rows, on k, on the device or
    on how often anything else was drawn: they are SplitMix64 of the key, no generator has a state.
    Speculative output is therefore repeatable, but it is equal to plain sampling in law only, not token
    for token.
    """

    def __init__(self, seed: int, requests: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.requests = list(requests)
        self.device = torch.device(device)
        self._tables: dict[str, torch.Tensor] = {}  # per role, [B, positions]; made ahead, since a call costs most
        self._steps = torch.arange(_BLOCK, device=self.device)

    def copy(self) -> Noise:
        """The same numbers, with a selection of rows of its own."""
        return Noise(self.seed, self.requests, self.device)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self.requests = [self.requests[row] for row in rows]
        self._tables = {role: table[list(rows)] for role, table in self._tables.items()}

    def uniform(self, role: str, positions: Sequence[int], count: int = 1) -> torch.Tensor:
        """Numbers for `count` output positions of each row, the first of them positions[b]: [B, count] float64.

        Multiples of 2^-52 in [0, 1). The first ones do not depend on `count`.
        """
        first, last = min(positions), max(positions)
        table = self._tables.get(role)
        if table is None or table.shape[1] < last + count:
            table = self._tables[role] = self._table(role, _BLOCK << ((last + count - 1) // _BLOCK).bit_length())
            self._steps = torch.arange(table.shape[1], device=self.device)
        if first == last:
            return table[:, first : first + count]
        return table.gather(1, sent(positions, self.device).unsqueeze(1) + self._steps[:count])

    def _table(self, role: str, positions: int) -> torch.Tensor:
        keys = _mix(_word([zlib.crc32(role.encode())]) ^ _mix(_word([self.seed])))
        keys = _mix(keys ^ _mix(_word(self.requests)))  # [B]
        words = _mix(keys[:, None] + np.arange(positions, dtype=np.uint64) * np.uint64(_GOLDEN))
        return torch.from_numpy((words >> np.uint64(12)).astype(np.float64) * 2.0**-52).to(self.device)


def _word(numbers: Sequence[int]) -> Words:
    return np.array([number & _WORD for number in numbers], dtype=np.uint64)


def _mix(key: Words) -> Words:
    """SplitMix64's step from a key to a number, elementwise; sums and products are modulo 2^64."""
    key = key + np.uint64(_GOLDEN)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
