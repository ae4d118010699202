"""Lossless means: in law. Measured on the joint distribution of the first three tokens, enumerated exactly.

The same test at the same number of draws has to reject four faults that are easy to make and hard
to see: each leaves the text plausible.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import PreTrainedModel

from factory.decoding import decoder, drafters
from factory.decoding import sampling as under_test
from factory.decoding.decoder import Generation, Limits, Round, autoregressive, speculative
from factory.decoding.drafters import Drafter, ModelDrafter, PromptLookup
from factory.decoding.eager import EagerReader
from factory.decoding.processors import History
from factory.decoding.rejection import Draft, accept
from factory.decoding.sampler import Sampler
from factory.decoding.sampling import Distribution, Noise, Sampling, draw


@pytest.fixture(params=["gpt2", "llama"])
def tiny(request: pytest.FixtureRequest, families: dict[str, Callable[..., PreTrainedModel]]) -> Any:
    """What is tested here is the loop's, not a family's: two kinds of positions are enough."""
    return families[request.param]


VOCABULARY = 9
PROMPT = [3, 1, 4, 1]
ROWS = 2_000  # draws per setting
LEVEL = 0.01  # of a whole list of p-values
# With k guesses and k + 2 tokens the third token is a bonus (k = 1) or the second guess (k = 2), or what follows a
# correction.
SETTINGS = [
    (Sampling(temperature=1.0), 1),
    (Sampling(temperature=2.0), 2),
    (Sampling(temperature=1.5, top_k=4), 2),
    (Sampling(temperature=1.5, top_p=0.8), 2),
    (Sampling(temperature=2.0, top_k=6, top_p=0.6), 1),
    (Sampling(temperature=1.5, min_p=0.05, repetition_penalty=1.8, presence_penalty=-1.5), 2),
]
WITH_TOP_P = [sampling.top_p < 1 for sampling, _ in SETTINGS]
WITH_BONUS = [k == 1 for _, k in SETTINGS]
LOOKING_BACK = [sampling.looks_back for sampling, _ in SETTINGS]
EVERYWHERE = [True for _ in SETTINGS]


def distribution(logits: np.ndarray, sampling: Sampling, output: Sequence[int]) -> np.ndarray:
    """What follows PROMPT and output, in float64: one position, written apart from the code under test."""
    logits = logits.astype(float)
    for token in {*PROMPT, *output}:
        logits[token] *= 1 / sampling.repetition_penalty if logits[token] > 0 else sampling.repetition_penalty
    for token in set(output):
        logits[token] -= sampling.presence_penalty
    order = np.argsort(-logits)
    weights = np.exp((logits[order] - logits.max()) / sampling.temperature)
    if sampling.top_k:
        weights[sampling.top_k :] = 0
    weights /= weights.sum()
    if sampling.top_p < 1:
        kept = int(np.searchsorted(np.cumsum(weights), sampling.top_p)) + 1
        weights[kept:] = 0
    weights[weights < sampling.min_p * weights[0]] = 0
    weights /= weights.sum()
    back = np.empty_like(weights)
    back[order] = weights
    return back


def joint_law(model: PreTrainedModel, sampling: Sampling) -> np.ndarray:
    """The probability of every text of three tokens, [V, V, V], from whole forward passes."""
    pairs = list(itertools.product(range(VOCABULARY), repeat=2))
    with torch.no_grad():
        ids = torch.tensor([[*PROMPT, *pair] for pair in pairs])
        logits = model(input_ids=ids, use_cache=False).logits[:, -3:].numpy()
    steps = np.array(  # [V*V, 3, V]
        [
            [distribution(position, sampling, pair[:seen]) for seen, position in enumerate(text)]
            for pair, text in zip(pairs, logits, strict=True)
        ]
    )
    first, second, third = steps[0, 0], steps[::VOCABULARY, 1], steps[:, 2]
    return np.asarray(first[:, None, None] * second[:, :, None] * third.reshape([VOCABULARY] * 3))


def p_value(made: list[Generation], law: np.ndarray) -> float:
    """Chi-square over all texts, those expected fewer than five times taken together. 0 if an impossible one occurs."""
    counts = np.zeros_like(law)
    for row in made:
        counts[tuple(row.tokens[:3])] += 1
    if counts[law == 0].any():
        return 0.0
    expected = law * len(made)
    rare = expected < 5
    seen = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    usable = wanted > 0
    return float(chisquare(seen[usable], wanted[usable] * seen.sum() / wanted.sum()).pvalue)


def rejected(values: list[float]) -> list[bool]:
    """Holm's step-down procedure: which of these p-values are too small, all of them taken into account."""
    answer = [False] * len(values)
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if values[index] > LEVEL / (len(values) - place):
            break
        answer[index] = True
    return answer


@pytest.fixture
def law_target(tiny: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return tiny(layers=1, vocabulary=VOCABULARY, context=64, seed=2, dtype=torch.float32)


@pytest.fixture
def law_drafter(law_target: PreTrainedModel, noisy: Callable[..., PreTrainedModel]) -> Drafter:
    return ModelDrafter(EagerReader(noisy(law_target, scale=0.05)))


def limits(k: int) -> Limits:
    return Limits(max_new_tokens=k + 2, eos=frozenset(), context=64)


def speculative_p_values(target: PreTrainedModel, drafter: Drafter) -> list[float]:
    """One p-value per setting. Many requests of one prompt, decoded as one batch that turns ragged at once."""
    values = []
    for number, (sampling, k) in enumerate(SETTINGS):
        noise = Noise(number, range(ROWS))
        made = speculative(EagerReader(target), drafter, [PROMPT] * ROWS, k, sampling, limits(k), noise)
        accepted, proposed = sum(sum(row.accepted) for row in made), sum(sum(row.proposed) for row in made)
        assert 0.2 < accepted / proposed < 0.9  # both branches of the rule are taken often
        values.append(p_value(made, joint_law(target, sampling)))
    return values


def test_speculative_text_has_the_law_of_the_target(law_target: PreTrainedModel, law_drafter: Drafter) -> None:
    values = speculative_p_values(law_target, law_drafter)
    assert not any(rejected(values)), values


def test_plain_text_and_prompt_lookup_have_it_too(law_target: PreTrainedModel) -> None:
    values, copied = [], 0
    for number, (sampling, k) in enumerate(SETTINGS):
        law = joint_law(law_target, sampling)
        prompts, noise = [PROMPT] * ROWS, Noise(number, range(ROWS))
        values.append(p_value(autoregressive(EagerReader(law_target), prompts, sampling, limits(1), noise), law))
        lookup = PromptLookup(vocabulary=VOCABULARY)
        made = speculative(EagerReader(law_target), lookup, prompts, k, sampling, limits(k), noise)
        copied += sum(sum(row.accepted) for row in made)
        values.append(p_value(made, law))
    assert copied > ROWS / 10
    assert not any(rejected(values)), values


class Changing:
    """A pace whose k hangs on what was accepted just now: 2 at first, then 0 after a round without, else 1."""

    most = 2

    def __init__(self) -> None:
        self._k = 2

    def begin(self, prompt_tokens: int) -> bool:
        return True

    def choose(self, room: Sequence[int]) -> int:
        return self._k

    def saw(self, done: Round) -> None:
        self._k = 2 if not any(done.proposed) else int(sum(done.accepted) > 0)


def test_a_k_that_hangs_on_what_was_accepted_leaves_the_law(law_target: PreTrainedModel, law_drafter: Drafter) -> None:
    """Rows alone, so that each one's rounds decide over its own next k."""
    sampling = Sampling(temperature=1.5)
    made, changed = [], set[tuple[int, ...]]()
    for request in range(ROWS // 2):
        noise, end = Noise(9, [request]), Limits(max_new_tokens=5, eos=frozenset(), context=64)
        made += speculative(EagerReader(law_target), law_drafter, [PROMPT], Changing(), sampling, end, noise)
        changed.add(tuple(made[-1].proposed))
    assert len(changed) >= 4
    assert p_value(made, joint_law(law_target, sampling)) > LEVEL


def residual_without_max(
    draft: Draft, p: torch.Tensor, u: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As if a negative rest were a weight too: |p - q| in place of max(0, p - q)."""
    tokens, count = accept(draft, p, u, last)
    if draft.q is not None:
        row, at = torch.arange(len(count)), (count - 1).clamp(max=draft.tokens.shape[1] - 1)
        fell = count <= torch.tensor(draft.length)
        tokens[row[fell], at[fell]] = draw((p[row, at] - draft.q[row, at]).abs(), last)[fell]
    return tokens, count


def bonus_from_q(
    draft: Draft, p: torch.Tensor, u: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, count = accept(draft, p, u, last)
    if draft.q is not None:
        length = torch.tensor(draft.length)
        stood = (count > length) & (length > 0)
        row = torch.arange(len(count))[stood]
        end = length[stood]
        tokens[row, end] = draw(draft.q[row, end - 1], last[stood])
    return tokens, count


@pytest.mark.parametrize(("fault", "shows"), [(residual_without_max, EVERYWHERE), (bonus_from_q, WITH_BONUS)])
def test_a_fault_in_the_rule_is_rejected(
    law_target: PreTrainedModel,
    law_drafter: Drafter,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    shows: list[bool],
) -> None:
    monkeypatch.setattr(decoder, "accept", fault)
    values = speculative_p_values(law_target, law_drafter)
    assert rejected(values) == shows, values


def test_a_q_taken_before_top_p_is_rejected(
    law_target: PreTrainedModel, law_drafter: Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guesses are drawn from the nucleus, but the q that goes along is that of before."""
    sound = Sampler.distribution
    drawn_with: list[Sampling] = []

    def before_top_p(sampler: Sampler, logits: torch.Tensor, drafted: torch.Tensor | None = None) -> Distribution:
        right = sampler.sampling
        if logits.dim() == 2:  # the drafter's
            drawn_with.append(right)
            sampler.sampling = replace(right, top_p=1.0)
        made = sound(sampler, logits, drafted)
        sampler.sampling = right
        return made

    def draw_from_nucleus(q: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        nucleus = under_test.distribution(q.log(), Sampling(1.0, top_p=drawn_with[-1].top_p))
        return draw(nucleus, number)

    monkeypatch.setattr(Sampler, "distribution", before_top_p)
    monkeypatch.setattr(drafters, "draw", draw_from_nucleus)
    values = speculative_p_values(law_target, law_drafter)
    assert rejected(values) == WITH_TOP_P, values


def test_a_history_without_the_draft_before_it_is_rejected(
    law_target: PreTrainedModel, law_drafter: Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every position of a verification, and every step of the drafter, as if no guess came before it."""
    sound = History.apply

    def without_the_draft(history: History, logits: torch.Tensor, drafted: torch.Tensor | None) -> torch.Tensor:
        return torch.cat([sound(history, logits[:, at : at + 1], None) for at in range(logits.shape[1])], dim=1)

    monkeypatch.setattr(History, "apply", without_the_draft)
    values = speculative_p_values(law_target, law_drafter)
    assert rejected(values) == LOOKING_BACK, values
