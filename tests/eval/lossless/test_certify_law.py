"""The sampling test of a certificate: cells against enumeration, size on a sound decoder, power on faults."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import PreTrainedModel
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from eval.lossless.certificate import LEVEL, law_rows
from eval.lossless.exact_step import exact_step, looked_back
from eval.lossless.law import Fit, Law, ManyTexts, Text, chi_square_tail, exact_law, fit, holm, mean_deviation
from eval.parity import Reference
from factory.decoding import decoder
from factory.decoding.decoder import Limits
from factory.decoding.drafters import Drafter, ModelDrafter
from factory.decoding.eager import EagerReader
from factory.decoding.rejection import Draft, accept
from factory.decoding.sampler import Sampler
from factory.decoding.sampling import PointMasses, Sampling, draw

Tiny = Callable[..., PreTrainedModel]

VOCABULARY = 9
EOS = frozenset({2})
PROMPTS = [[3, 1, 4, 1], [5, 7], [8, 0, 6]]
WAYS = [Sampling(temperature=1.0), Sampling(temperature=0.8, top_k=6, top_p=0.9)]
KS = (2, 3)
DRAWS = 1000  # as a certificate has it


@pytest.fixture(params=["gpt2", "llama"])
def target(request: pytest.FixtureRequest, families: dict[str, Tiny]) -> PreTrainedModel:
    """What is tested is the test's and the loop's, not a family's: two kinds of positions are enough."""
    return families[request.param](layers=1, vocabulary=VOCABULARY, context=64, seed=2, dtype=torch.float32)


def noisy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that is right often, but not always."""
    made, generator = copy.deepcopy(model), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.05 * torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
    return made


@pytest.fixture
def drafter(target: PreTrainedModel) -> Drafter:
    return ModelDrafter(EagerReader(noisy(target)))


def enumerated(model: PreTrainedModel, prompt: list[int], way: Sampling, depth: int) -> dict[Text, float]:
    """Every text of `depth` tokens, or fewer up to an EOS, with its probability: one whole pass for each beginning."""
    texts, ended = {(): 1.0}, {}
    for _ in range(depth):
        longer: dict[Text, float] = {}
        for text, mass in texts.items():
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *text]]), use_cache=False).logits[0, -1]
            weights = (logits.double().numpy() - float(logits.max())) / way.temperature
            order = np.argsort(-weights, kind="stable")
            kept = np.exp(weights[order])
            kept[way.top_k or VOCABULARY :] = 0
            kept /= kept.sum()
            if way.top_p < 1:
                kept[int(np.searchsorted(np.cumsum(kept), way.top_p)) + 1 :] = 0
                kept /= kept.sum()
            for token, share in zip(order.tolist(), kept.tolist(), strict=True):
                (ended if token in EOS else longer)[*text, token] = mass * share
        texts = longer
    return texts | ended


def laws(model: PreTrainedModel, draws: int = DRAWS) -> list[tuple[list[int], Sampling, Law]]:
    reference = copy.deepcopy(model).double()
    given = {"depth": max(KS) + 2, "draws": draws, "eos": EOS}
    return [(prompt, way, exact_law(reference, prompt, way, **given)) for prompt in PROMPTS for way in WAYS]


def certificate_rows(model: PreTrainedModel, drafter: Drafter) -> list[dict[str, object]]:
    """The rows of a certificate: every prompt, way and k, at a certificate's number of draws."""
    texts = ManyTexts(EagerReader(model), EOS, seed=0, rows=DRAWS)
    found, first = [], 0
    for prompt, way, law in laws(model):
        for k in KS:
            made = texts.drafted(drafter, k, prompt, way, range(first, first + DRAWS))
            first += DRAWS
            fitted = fit(law, k + 2, [tuple(text.tokens) for text in made])
            found.append(({"k": k, "temperature": way.temperature}, fitted, fitted))
    return law_rows(found)


def smallest(rows: list[dict[str, object]]) -> float:
    return min(float(str(row["p_adjusted"])) for row in rows)


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (Sampling(temperature=1.0), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (Sampling(temperature=1.0, top_k=2), [0.625, 0.375, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.7), [0.625, 0.375, 0, 0]),
        (Sampling(temperature=1.0, top_k=3, top_p=0.4), [1, 0, 0, 0]),
        (Sampling(temperature=1.0, min_p=0.5), [0.625, 0.375, 0, 0]),
    ],
)
def test_a_step_is_what_one_computes_by_hand(way: Sampling, expected: list[float]) -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log() + 3
    assert torch.allclose(exact_step(logits, way)[0], torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_equal_logits_stay_at_top_k_and_the_lower_index_at_top_p() -> None:
    tied = torch.zeros(1, 4)
    assert (exact_step(tied, Sampling(1.0, top_k=2)) == 0.25).all()
    assert exact_step(tied, Sampling(1.0, top_p=0.5)).tolist() == [[0.5, 0.5, 0, 0]]


def test_slack_lets_in_only_what_lies_at_the_edge() -> None:
    logits = torch.tensor([[3.0, 2.0, 2.0 - 1e-7, 0.0]], dtype=torch.float64)
    assert (exact_step(logits, Sampling(1.0, top_k=2)) > 0).tolist() == [[True, True, False, False]]
    assert (exact_step(logits, Sampling(1.0, top_k=2), slack=1e-5) > 0).tolist() == [[True, True, True, False]]
    quarters = torch.zeros(1, 4, dtype=torch.float64)
    assert (exact_step(quarters, Sampling(1.0, top_p=0.5), slack=1e-5) > 0).tolist() == [[True, True, True, False]]


def test_looking_back_is_what_transformers_and_the_words_of_openai_make_of_it() -> None:
    prompt, text, eos = [3, 1, 4, 1], [5, 3, 1], frozenset({2})
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor([[*prompt, *text]])
    for way, processor in (
        (Sampling(1.0, repetition_penalty=1.7), RepetitionPenaltyLogitsProcessor(1.7)),
        (Sampling(1.0, no_repeat_ngram_size=1), NoRepeatNGramLogitsProcessor(1)),
        (Sampling(1.0, no_repeat_ngram_size=3), NoRepeatNGramLogitsProcessor(3)),
        (Sampling(1.0, min_new_tokens=4), MinNewTokensLengthLogitsProcessor(len(prompt), 4, [2])),
        (Sampling(1.0, min_new_tokens=3), MinNewTokensLengthLogitsProcessor(len(prompt), 3, [2])),
    ):
        expected = processor(ids, logits.clone().unsqueeze(0))[0]
        assert torch.equal(looked_back(logits, prompt, text, way, eos), expected), way
    less = logits - looked_back(
        logits, prompt, [5, 3, 5], Sampling(1.0, frequency_penalty=0.5, presence_penalty=2), eos
    )
    assert torch.allclose(less, torch.tensor([0, 0, 0, 2.5, 0, 3, 0, 0, 0], dtype=torch.float64))
    stuck = looked_back(logits, list(range(VOCABULARY)), [], Sampling(1.0, no_repeat_ngram_size=1), eos)
    assert torch.equal(stuck, logits)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("draws", [40, 1000])
def test_cells_are_a_partition_with_the_probabilities_of_enumeration(
    target: PreTrainedModel, way: Sampling, draws: int
) -> None:
    model = target.double()
    law = exact_law(model, PROMPTS[0], way, depth=3, draws=draws, eos=EOS)
    for depth in (1, 2, 3):
        cells = law.cells(depth)
        found: Counter[Text] = Counter()
        for text, mass in enumerated(model, PROMPTS[0], way, depth).items():
            found[cells.place(text)] += mass
            assert law.impossible(text, depth) <= (mass == 0)
        assert found.keys() == cells.probability.keys()
        assert all(abs(found[key] - mass) < 1e-9 for key, mass in cells.probability.items())
        assert min(cells.probability.values()) * draws >= 5 - 1e-9
    assert len(law.cells(3).probability) > len(law.cells(1).probability) or draws == 40


def test_what_the_target_never_writes_is_impossible(target: PreTrainedModel) -> None:
    law = exact_law(target.double(), PROMPTS[0], WAYS[1], depth=3, draws=DRAWS, eos=EOS)
    texts = enumerated(target, PROMPTS[0], WAYS[1], 3)
    (likely, _), *_ = sorted(texts.items(), key=lambda item: -item[1])
    firsts = {text[0] for text, mass in texts.items() if mass > 0}
    never = next(token for token in range(VOCABULARY) if token not in firsts)
    assert not law.impossible(likely, 3)
    assert law.impossible((never, *likely[1:]), 3)
    assert law.impossible(likely[:1], 3) == (likely[0] not in EOS)  # a text that stops for no reason
    assert fit(law, 3, [likely] * 50 + [(never, *likely[1:])]).p_value == 0


def test_the_figures_are_scipys_and_holms_own() -> None:
    for value, freedom in ((3.0, 2), (40.0, 25), (300.0, 150)):
        assert chi_square_tail(value, freedom) == pytest.approx(stats.chi2.sf(value, freedom), rel=1e-9)
    assert chi_square_tail(0.0, 0) == 1
    for draws, probability in ((10, 0.3), (1000, 0.005), (7, 0.999)):
        binomial = stats.binom(draws, probability)
        expected = sum(abs(x - draws * probability) * binomial.pmf(x) for x in range(draws + 1))
        assert mean_deviation(draws, probability) == pytest.approx(expected, rel=1e-9)
    assert mean_deviation(10, 1.0) == 0
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_exact_draws_have_the_variation_that_is_expected_of_them(target: PreTrainedModel) -> None:
    law = exact_law(target.double(), PROMPTS[0], WAYS[0], depth=2, draws=300, eos=EOS)
    probability = law.cells(2).probability
    texts, masses = list(probability), np.array(list(probability.values()))
    draws = np.random.default_rng(0).multinomial(300, masses / masses.sum(), size=200)
    fits = [fit(law, 2, list(itertools.chain(*map(itertools.repeat, texts, row.tolist())))) for row in draws]
    average = sum(one.total_variation for one in fits) / len(fits)
    assert average == pytest.approx(fits[0].expected_total_variation, rel=0.03)


def test_a_sound_decoder_is_rejected_as_seldom_as_the_level_says(target: PreTrainedModel, drafter: Drafter) -> None:
    """Over 120 seeds the p-values of one test are uniform, so that any level means what it says."""
    way, draws, k = WAYS[0], 200, 2
    law = exact_law(copy.deepcopy(target).double(), PROMPTS[0], way, depth=k + 2, draws=draws, eos=EOS)
    fits: list[Fit] = []
    for seed in range(120):
        texts = ManyTexts(EagerReader(target), EOS, seed, rows=draws)
        made = texts.drafted(drafter, k, PROMPTS[0], way, range(draws))
        fits.append(fit(law, k + 2, [tuple(text.tokens) for text in made]))
    values = [one.p_value for one in fits]
    for level in (0.05, 0.2, 0.5):
        rejections = sum(value <= level for value in values)
        assert stats.binomtest(rejections, len(values), level).pvalue > 1e-3, (level, rejections)
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_the_size_of_batches_changes_no_text(target: PreTrainedModel, drafter: Drafter) -> None:
    whole, parts = (ManyTexts(EagerReader(target), EOS, 3, rows) for rows in (90, 32))
    for way in WAYS:
        assert whole.alone(PROMPTS[0], way, 4, range(90)) == parts.alone(PROMPTS[0], way, 4, range(90))
        left, right = (one.drafted(drafter, 2, PROMPTS[0], way, range(90)) for one in (whole, parts))
        assert [text.tokens for text in left] == [text.tokens for text in right]


def test_sound_texts_pass_at_the_size_of_a_certificate(target: PreTrainedModel, drafter: Drafter) -> None:
    assert smallest(certificate_rows(target, drafter)) > LEVEL


def test_texts_of_a_sampler_that_looks_back_follow_their_law_and_no_other(
    target: PreTrainedModel, drafter: Drafter
) -> None:
    way, k = Sampling(temperature=1.2, repetition_penalty=1.3, frequency_penalty=1.5, no_repeat_ngram_size=2), 2
    made = ManyTexts(EagerReader(target), EOS, 0, DRAWS).drafted(drafter, k, PROMPTS[0], way, range(DRAWS))
    texts, given = [tuple(text.tokens) for text in made], {"depth": k + 2, "draws": DRAWS, "eos": EOS}
    model = copy.deepcopy(target).double()
    assert fit(exact_law(model, PROMPTS[0], way, **given), k + 2, texts).p_value > LEVEL
    for other in (replace(way, repetition_penalty=1.0), replace(way, frequency_penalty=0.0)):
        assert fit(exact_law(model, PROMPTS[0], other, **given), k + 2, texts).p_value < LEVEL


def p_read_late(
    draft: Draft, p: torch.Tensor, u: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Guesses are judged by the distribution one position on."""
    return accept(draft, torch.cat([p[:, 1:], p[:, -1:]], dim=1), u, last)


def q_read_late(
    draft: Draft, p: torch.Tensor, u: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The drafter's probabilities belong to the guess before."""
    return accept(draft if draft.q is None else replace(draft, q=draft.q.roll(1, dims=1)), p, u, last)


def no_residual(
    draft: Draft, p: torch.Tensor, u: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A correction is drawn from p, not from max(0, p - q)."""
    tokens, count = accept(draft, p, u, last)
    row = torch.arange(len(count))
    tokens[row, count - 1] = draw(p[row, count - 1], last)
    return tokens, count


def guesses_that_are_likely_stand(
    draft: Draft, p: torch.Tensor, u: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The greedy rule where text is sampled: p >= q stands, everything else falls."""
    return accept(draft, p, torch.ones_like(u) - 1e-7, last)


@pytest.mark.parametrize("fault", [p_read_late, q_read_late, no_residual, guesses_that_are_likely_stand])
def test_a_planted_fault_is_rejected_at_the_same_size(
    target: PreTrainedModel,
    drafter: Drafter,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[..., tuple[torch.Tensor, torch.Tensor]],
) -> None:
    monkeypatch.setattr(decoder, "accept", fault)
    assert smallest(certificate_rows(target, drafter)) <= LEVEL


def test_greedy_by_the_rule_of_sampling_is_caught_by_parity(
    target: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temperature 0 run through u < p(x) with softmax probabilities emits what is not the argmax."""
    model = target.double()
    limits, generator = Limits(24, EOS, 64), torch.Generator().manual_seed(0)
    reference = Reference(model, EagerReader(model), PROMPTS, limits, [2], batch=3)
    twin = ModelDrafter(EagerReader(noisy(model)))
    assert reference.against(twin, 2).passed
    sound, rows = Sampler.distribution, [0]

    def softmax(
        sampler: Sampler, logits: torch.Tensor, drafted: torch.Tensor | None = None
    ) -> torch.Tensor | PointMasses:
        rows[0] = len(logits)
        return logits.float().softmax(dim=-1) if logits.dim() == 3 else sound(sampler, logits, drafted)

    def uniform(sampler: Sampler, role: str, count: int = 1) -> torch.Tensor:
        return torch.rand(rows[0], count, generator=generator)

    monkeypatch.setattr(Sampler, "distribution", softmax)
    monkeypatch.setattr(Sampler, "uniform", uniform)
    found = reference.against(twin, 2)
    assert not found.passed
    assert "instead of" in found.detail[0] or "ends after" in found.detail[0]
