"""Is sampled text distributed as the target says? Draws against the exact law of a text's first tokens.

The law is computed from whole forward passes of transformers, without a cache and without a reader
or a sampler of ours: from the prompt down to every beginning that is likely enough to be counted,
each continuation's probability in float64. Which beginnings those are depends on the law and on the
number of draws alone, never on what was drawn: cells chosen by the draws would bias the test.

It does not know how the texts were written.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from eval.lossless.exact_step import exact_step, looked_back
from eval.parity import in_parts
from factory.decoding.decoder import Generation, Limits, autoregressive, speculative
from factory.decoding.drafters import Drafter
from factory.decoding.pace import Pace
from factory.decoding.reader import Reader
from factory.decoding.sampling import Noise, Sampling
from factory.models.placement import entry_device

LEAST_EXPECTED = 5.0  # draws in a cell; below it chi-square is a poor approximation (Cochran, 1954)
_ROUNDINGS = 64  # a cut-off of top-k or top-p may lie that many roundings of the dtype away

Text = tuple[int, ...]


@dataclass(frozen=True)
class Cells:
    """A partition of all texts: each cell is the texts that begin with its key and are in no cell of a longer key.

    `others` is the cell that takes in what is in none.
    """

    probability: dict[Text, float]
    others: Text

    def place(self, text: Text) -> Text:
        """The key of the cell that a text is in."""
        found = next((text[:end] for end in range(len(text), -1, -1) if text[:end] in self.probability), None)
        return self.others if found is None else found


class Law:
    """How a text goes on after a prompt, as far as beginnings of probability `least` and more go."""

    def __init__(self, depth: int, least: float, eos: frozenset[int]) -> None:
        self.depth = depth
        self._least = least
        self._eos = eos
        self._branches: dict[Text, dict[int, float]] = {}  # of each beginning: its likely next tokens, jointly with it
        self._support: dict[Text, torch.Tensor] = {}  # [V] bool: which tokens may follow at all, where some may not

    def cells(self, depth: int) -> Cells:
        """All texts of `depth` tokens (fewer where an EOS ends them), partitioned into cells that can be counted.

        A cell is a likely text, or what remains of a likely beginning once its likely continuations are
        taken out. A remainder too rare for a cell joins that of the next shorter beginning, and at the
        root the rarest cell.
        """
        probability: dict[Text, float] = {}

        def handed_up(text: Text, mass: float) -> float:
            branches = self._branches.get(text) if len(text) < depth else None
            if branches is None:
                probability[text] = mass
                return 0.0
            rest = max(0.0, mass - sum(branches.values()))
            rest += sum(handed_up((*text, token), joint) for token, joint in branches.items())
            if rest < self._least:
                return rest
            probability[text] = rest
            return 0.0

        left = handed_up((), 1.0)
        rarest = min(probability, key=probability.__getitem__)
        probability[rarest] += left
        return Cells(probability, rarest)

    def impossible(self, text: Text, depth: int) -> bool:
        """Whether the target never writes it: a token outside top-k or top-p, or an end without an EOS."""
        for place in range(min(len(text), depth)):
            support = self._support.get(text[:place])
            if support is not None and not bool(support[text[place]]):
                return True
        return len(text) < depth and (not text or text[-1] not in self._eos)

    def expand(self, text: Text, joint: torch.Tensor, support: torch.Tensor | None) -> dict[Text, float]:
        """Take in a beginning's continuations, joint [V] float64; returns those that go on and are likely."""
        likely = (joint >= self._least).nonzero().flatten()
        self._branches[text] = dict(zip(likely.tolist(), joint[likely].tolist(), strict=True))
        if support is not None:
            self._support[text] = support
        return {(*text, token): mass for token, mass in self._branches[text].items() if token not in self._eos}


@torch.inference_mode()
def exact_law(
    model: PreTrainedModel,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    depth: int,
    draws: int,
    eos: frozenset[int],
    rounding: torch.dtype = torch.float32,
    rows: int = 64,
) -> Law:
    """The law of the first `depth` tokens after a prompt, in cells for `draws` draws; `rows` beginnings a pass.

    `rounding` is the dtype that the draws are made in: only a token that no rounding of it could let in
    counts as impossible. At most draws / 5 beginnings of each length are read.
    """
    law = Law(depth, LEAST_EXPECTED / draws, eos)
    slack = _ROUNDINGS * torch.finfo(rounding).eps
    cut = sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0 or sampling.looks_back
    front: dict[Text, float] = {(): 1.0}
    for _ in range(depth):
        following: dict[Text, float] = {}
        for part in in_parts(list(front.items()), rows):
            ids = torch.tensor([[*prompt, *text] for text, _ in part], device=entry_device(model))
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1].double().cpu()  # [N, V]
            if sampling.looks_back:
                logits = torch.stack(
                    [looked_back(row, prompt, text, sampling, eos) for row, (text, _) in zip(logits, part, strict=True)]
                )
            mass = torch.tensor([mass for _, mass in part], dtype=torch.float64)
            joint = exact_step(logits, sampling) * mass.unsqueeze(1)  # [N, V]
            support = exact_step(logits, sampling, slack) > 0 if cut else None
            for row, (text, _) in enumerate(part):
                following |= law.expand(text, joint[row], None if support is None else support[row])
        front = following
    return law


@dataclass(frozen=True)
class Fit:
    """How well draws fit the law."""

    draws: int
    cells: int
    chi_square: float
    p_value: float  # of Pearson's chi-square with cells - 1 degrees of freedom; 0 where an impossible text was drawn
    total_variation: float  # over the cells
    expected_total_variation: float  # that of as many exact draws, on average
    impossible: int  # texts that the target never writes

    def facts(self) -> dict[str, Any]:
        """As a certificate has it."""
        return {
            "draws": self.draws,
            "cells": self.cells,
            "chi_square": self.chi_square,
            "p": self.p_value,
            "total_variation": self.total_variation,
            "total_variation_expected": self.expected_total_variation,
            "impossible": self.impossible,
        }


def fit(law: Law, depth: int, texts: Sequence[Text]) -> Fit:
    """Pearson's chi-square (1900) and the total variation of texts against the law of their first `depth` tokens."""
    cells, draws = law.cells(depth), len(texts)
    texts = [text[:depth] for text in texts]
    counts = Counter(cells.place(text) for text in texts)
    impossible = sum(law.impossible(text, depth) for text in texts)
    chi_square = variation = chance = 0.0
    for key, probability in cells.probability.items():
        expected = draws * probability
        chi_square += (counts[key] - expected) ** 2 / expected
        variation += abs(counts[key] / draws - probability) / 2
        chance += mean_deviation(draws, probability) / draws / 2
    p_value = 0.0 if impossible else chi_square_tail(chi_square, len(cells.probability) - 1)
    return Fit(draws, len(cells.probability), chi_square, p_value, variation, chance, impossible)


def chi_square_tail(value: float, freedom: int) -> float:
    """The probability that chi-square with that many degrees of freedom exceeds `value`; 1 with none."""
    if freedom == 0:
        return 1.0
    half = torch.tensor([freedom / 2, value / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def mean_deviation(draws: int, probability: float) -> float:
    """E|X - np| of a binomial X (de Moivre, 1730): 2 m C(n, m) p^m (1 - p)^(n - m + 1), m = floor(np) + 1."""
    m = math.floor(draws * probability) + 1
    if m > draws or not 0 < probability < 1:
        return 0.0
    ways = math.lgamma(draws + 1) - math.lgamma(m + 1) - math.lgamma(draws - m + 1)
    return 2 * m * math.exp(ways + m * math.log(probability) + (draws - m + 1) * math.log1p(-probability))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): values at or below a level reject with that level for the whole family.

    It holds however the tests depend on one another.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True)
class ManyTexts:
    """Writes one prompt many times over, as rows of batches; each row is a request of its own."""

    reader: Reader
    eos: frozenset[int]
    seed: int
    rows: int = 256

    def alone(self, prompt: list[int], sampling: Sampling, tokens: int, requests: range) -> list[Text]:
        """The target alone: the first `tokens` tokens of each request."""
        limits = self._limits(tokens)
        made: list[Generation] = []
        for part in in_parts(requests, self._together(1)):
            noise = self._noise(part)
            made += autoregressive(self.reader, [prompt] * len(part), sampling, limits, noise)
        return [tuple(one.tokens) for one in made]

    def drafted(
        self, drafter: Drafter, k: int | Pace, prompt: list[int], sampling: Sampling, requests: range
    ) -> list[Generation]:
        """With a drafter: k + 2 tokens, the prefill's, k guesses or what corrects them, and the bonus behind them.

        With fewer, the decoder would never propose k. Where a pace chooses, k is the largest it may choose.
        """
        most = k if isinstance(k, int) else k.most
        limits = self._limits(most + 2)
        made: list[Generation] = []
        for part in in_parts(requests, self._together(most + 1)):
            noise = self._noise(part)
            made += speculative(self.reader, drafter, [prompt] * len(part), k, sampling, limits, noise)
        return made

    def _limits(self, tokens: int) -> Limits:
        return Limits(tokens, self.eos, self.reader.context)

    def _noise(self, requests: Sequence[int]) -> Noise:
        return Noise(self.seed, requests, device=self.reader.device)

    def _together(self, positions: int) -> int:
        """Rows of a batch: as many as asked for, but no more than 2^26 probabilities at once."""
        return max(1, min(self.rows, (1 << 26) // (self.reader.vocabulary * positions)))
