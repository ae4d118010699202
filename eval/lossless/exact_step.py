"""The distribution of the next token in float64, written apart from the sampler under test: what it must come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from factory.decoding.sampling import Sampling


def exact_step(logits: torch.Tensor, sampling: Sampling, slack: float = 0.0) -> torch.Tensor:
    """Temperature, then top-k, then top-p, then min-p: [N, V] -> [N, V] float64.

    Equal logits at the edge of top-k all stay; at the edge of top-p the lower index does. `slack` moves
    all edges outward, by that share of the largest logit or by that much probability: what has
    probability 0 even then cannot be drawn by a rounding.
    """
    scaled = logits.double() / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[-1]:
        edge = scaled.sort(dim=-1, descending=True).values[:, sampling.top_k - 1, None]
        largest = torch.where(scaled.isinf(), 0.0, scaled).abs().amax(dim=-1, keepdim=True)
        scaled = torch.where(scaled < edge - slack * largest, -torch.inf, scaled)
    weights = (scaled - scaled.amax(dim=-1, keepdim=True)).exp()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    if sampling.top_p < 1:
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        kept = torch.searchsorted(ordered.cumsum(dim=-1), torch.full_like(ordered[:, :1], sampling.top_p + slack)) + 1
        inside = torch.arange(ordered.shape[-1], device=ordered.device) < kept
        weights = torch.zeros_like(weights).scatter(-1, order, ordered * inside)
    if sampling.min_p > 0:
        least = (sampling.min_p - slack) * weights.amax(dim=-1, keepdim=True)
        weights = torch.where(weights < least, 0.0, weights)
    return weights / weights.sum(dim=-1, keepdim=True)


def looked_back(
    logits: torch.Tensor, prompt: Sequence[int], text: Sequence[int], sampling: Sampling, eos: frozenset[int]
) -> torch.Tensor:
    """Logits [V] after prompt and text, as penalties, n-grams and the least length leave them, [V] float64.

    Token by token, as `Sampling` says it in words. Where no token would be left, n-grams may return.
    """
    made, before = logits.double().clone(), [*prompt, *text]
    for token in set(before):
        penalty = sampling.repetition_penalty
        made[token] *= penalty if made[token] < 0 else 1 / penalty
    for token, times in Counter(text).items():
        made[token] -= times * sampling.frequency_penalty + sampling.presence_penalty
    if len(text) < sampling.min_new_tokens:
        made[sorted(eos)] = -torch.inf
    size = sampling.no_repeat_ngram_size
    if size == 0:
        return made
    tail, left = before[len(before) - size + 1 :], made.clone()
    for start in range(len(before) - size + 1):
        if before[start : start + size - 1] == tail:
            left[before[start + size - 1]] = -torch.inf
    return made if bool(left.isinf().all()) else left
