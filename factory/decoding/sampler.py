"""From logits to tokens for the rows of one batch: processors, distribution and numbers, the same for p and for q."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from factory.decoding.processors import History
from factory.decoding.sampling import Distribution, Noise, Sampling, distribution


class Sampler:
    """The one way from logits to tokens, for the target and for what drafts for it.

    The decoding loop moves its rows and tells it what was emitted; drafters only ask. Under greedy it
    makes no numbers, and what looks back costs nothing where it is off.
    """

    def __init__(
        self,
        sampling: Sampling,
        noise: Noise,
        prompts: Sequence[Sequence[int]],
        *,
        eos: frozenset[int] = frozenset(),
        capacity: int,
        vocabulary: int,
        device: torch.device,
    ) -> None:
        """Row b is of request noise.requests[b]; rows reach at most `capacity` tokens, guesses among them.

        Raises ValueError where there are not as many prompts as requests.
        """
        if len(noise.requests) != len(prompts):
            raise ValueError(f"the noise is for {len(noise.requests)} requests, but there are {len(prompts)}")
        self.sampling = sampling
        self.vocabulary = vocabulary
        self.written = [0] * len(prompts)  # tokens of the output, per row
        self._noise = Noise(noise.seed, noise.requests, device)
        self._history = History(prompts, capacity, sampling, eos, vocabulary, device) if sampling.looks_back else None

    @property
    def looks_back(self) -> bool:
        """Whether `distribution` wants to know what was drafted."""
        return self._history is not None

    def distribution(self, logits: torch.Tensor, drafted: torch.Tensor | None = None) -> Distribution:
        """What tokens are drawn from, logits [B, T, V] -> [B, T, V] float32, or point masses [B, T] under greedy.

        `drafted` [B, m] are guesses behind the text: the last position has seen all of them, each one before
        it one fewer. So [B, k+1, V] with k guesses is a verification, and [B, V], which is taken for T = 1
        and answered without T, a drafter's step.
        """
        if self._history is not None:
            single = logits.dim() == 2
            logits = self._history.apply(logits.unsqueeze(1) if single else logits, drafted)
            logits = logits[:, 0] if single else logits
        return distribution(logits, self.sampling)

    def uniform(self, role: str, count: int = 1) -> torch.Tensor | None:
        """Numbers in [0, 1) for each row's next `count` output positions, [B, count] float64; None under greedy."""
        return None if self.sampling.greedy else self._noise.uniform(role, self.written, count)

    def extend(self, runs: list[list[int]]) -> None:
        """Tell what each row emitted."""
        self.written = [old + len(new) for old, new in zip(self.written, runs, strict=True)]
        if self._history is not None:
            self._history.extend(runs)

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order."""
        self.written = [self.written[row] for row in rows]
        self._noise.select(rows)
        if self._history is not None:
            self._history.select(rows)
