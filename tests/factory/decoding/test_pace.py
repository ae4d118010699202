"""How many tokens to propose: decisions on simulated costs, and text that stays the target's whatever was decided."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from factory.decoding.batch import Round
from factory.decoding.costs import measure_costs
from factory.decoding.decoder import Limits, autoregressive, speculative
from factory.decoding.drafters import ModelDrafter, PromptLookup
from factory.decoding.lean import LeanReader
from factory.decoding.pace import AutoPace, Costs, SteadyPace
from factory.decoding.sampling import Noise, Sampling
from factory.errors import DataError


def costs(draft_s: float, verify_s: float = 0.05, rows: int = 1, most: int = 8) -> Costs:
    """A plain step takes 1 s; a draft step `draft_s`, each further verified token `verify_s`."""
    ks = (1, 2, 4, most)
    return Costs(
        rows=rows,
        draft_s={k: k * draft_s for k in ks},
        verify_s={k: 1 + k * verify_s for k in (0, *ks)},
        rest_s=dict.fromkeys((0, *ks), 0.01),
        read_s=0.0,
    )


def simulated(
    pace: AutoPace | SteadyPace, price: Costs, alpha: Callable[[int], float], tokens: int = 4000, seed: int = 1
) -> float:
    """Seconds for that many tokens of one text whose guesses stand with probability alpha(tokens so far)."""
    chance, written, taken_s = random.Random(seed), 0, 0.0
    pace.begin(1)
    pace.saw(Round([0], [[1]], [0], [0]))
    while written < tokens:
        k = min(pace.choose([tokens - written]), tokens - written - 1)
        accepted = 0
        while accepted < k and chance.random() < alpha(written):
            accepted += 1
        taken_s += price.round_s(k)
        written += accepted + 1
        pace.saw(Round([0], [[1] * (accepted + 1)], [accepted], [k]))
    return taken_s


@pytest.mark.parametrize("draft_s", [0.05, 0.15, 0.4])
@pytest.mark.parametrize("alpha", [0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9])
def test_it_comes_within_3_percent_of_the_best_fixed_k(draft_s: float, alpha: float) -> None:
    """The best by expectation, no drafting at all among them; learning and probing are paid for."""
    price = costs(draft_s)
    fixed = [sum(alpha**place for place in range(k + 1)) / price.round_s(k) for k in range(1, 9)]
    best_s = 4000 / max(*fixed, 1 / price.round_s(0))
    taken_s = [simulated(AutoPace(price), price, lambda _: alpha, seed=seed) for seed in range(6)]
    assert sum(taken_s) / len(taken_s) < 1.03 * best_s


def test_a_useless_drafter_is_switched_off_and_costs_next_to_nothing() -> None:
    price = costs(0.2)
    pace = AutoPace(price)
    assert simulated(pace, price, lambda _: 0.0) < 1.03 * 4000 * price.round_s(0)
    assert not pace.drafting


def test_drafting_that_cannot_pay_is_never_begun() -> None:
    price = costs(2.0)
    pace = AutoPace(price)
    assert {pace.choose([50]) for _ in range(20)} == {0}


def test_a_text_that_becomes_easy_is_noticed() -> None:
    price = costs(0.1)
    pace = AutoPace(price)
    easy = simulated(pace, price, lambda written: 0.02 if written < 1500 else 0.9)
    assert pace.drafting
    assert easy < 0.75 * 4000 * price.round_s(0)


def test_better_acceptance_means_longer_drafts() -> None:
    chosen = []
    for alpha in (0.4, 0.7, 0.95):
        pace = AutoPace(costs(0.1))
        simulated(pace, costs(0.1), lambda _, alpha=alpha: alpha)  # type: ignore[misc]
        chosen.append(pace.choose([100]))
    assert chosen[0] < chosen[1] < chosen[2]


def test_costs_of_the_nearest_batch_are_used() -> None:
    pace = AutoPace(costs(0.05), costs(3.0, rows=16))
    assert pace.choose([50]) > 0
    assert pace.choose([50] * 16) == 0
    assert pace.choose([50] * 3) > 0
    assert pace.choose([50] * 5) == 0


def test_what_is_asked_for_must_be_possible() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        SteadyPace(0)
    with pytest.raises(ValueError, match="k = 0"):
        Costs(rows=1, draft_s={1: 0.1}, verify_s={1: 1.0}, rest_s={1: 0.0}, read_s=0.0)


class Restless:
    """A pace that skips, stops and begins again, and reads the prompts late: what no rule would do."""

    most = 5

    def __init__(self, reads: bool) -> None:
        self._reads, self._ks = reads, itertools.cycle((0, 0, 3, 5, 1, 0, 2))

    def begin(self, prompt_tokens: int) -> bool:
        return self._reads

    def choose(self, room: list[int]) -> int:
        return next(self._ks)

    def saw(self, done: Round) -> None:
        pass


PROMPTS = [[1, 5, 9], [1, 7], [1, 11, 12, 13, 14, 15, 16, 17], [1, 20, 20]]


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("lookup", [True, False])
def test_text_does_not_depend_on_when_the_drafter_is_asked(
    families: dict[str, Callable[..., PreTrainedModel]],
    noisy: Callable[..., PreTrainedModel],
    reads: bool,
    temperature: float,
    lookup: bool,
) -> None:
    target = families["llama"](layers=2, vocabulary=300, seed=1)
    reader = LeanReader(target)
    # under sampling a drafter that is the target itself has every guess accepted, so the text is the plain one's
    twin = target if temperature else noisy(target)
    drafter = PromptLookup(vocabulary=300) if lookup else ModelDrafter(LeanReader(twin))
    limits, noise, sampling = Limits(25, frozenset({3, 4}), 160), Noise(0, range(4)), Sampling(temperature)
    plain = autoregressive(reader, PROMPTS, sampling, limits, noise)
    found = speculative(reader, drafter, PROMPTS, Restless(reads), sampling, limits, noise)
    if temperature == 0:
        assert [one.tokens for one in found] == [one.tokens for one in plain]
    elif not lookup:
        assert all(one.accepted == one.proposed for one in found)
    assert {k for one in found for k in one.proposed} >= ({0, 1, 3} if not lookup else {0})


def test_a_pace_on_real_models_keeps_the_text(
    families: dict[str, Callable[..., PreTrainedModel]], noisy: Callable[..., PreTrainedModel]
) -> None:
    target = families["qwen2"](layers=2, vocabulary=300, seed=1)
    reader, drafter = LeanReader(target), ModelDrafter(LeanReader(noisy(target)))
    ticks = itertools.count()
    price = measure_costs(reader, drafter, [[1, 5, 9]], Sampling(), lambda: float(next(ticks)), ks=(1, 3))
    assert set(price.verify_s) == {0, 1, 3} and price.rows == 1
    assert all(seconds > 0 for seconds in (*price.verify_s.values(), *price.draft_s.values()))
    limits, noise = Limits(40, frozenset(), 160), Noise(0, [0])
    plain = autoregressive(reader, [[1, 5, 9]], Sampling(), limits, noise)
    for pace in (AutoPace(price), AutoPace(costs(0.01, 0.0)), AutoPace(costs(5.0))):
        assert speculative(reader, drafter, [[1, 5, 9]], pace, Sampling(), limits, noise)[0].tokens == plain[0].tokens


@pytest.mark.parametrize("rows", [1, 4])
def test_a_useless_drafter_is_left_alone_and_a_good_one_asked_for_more(
    families: dict[str, Callable[..., PreTrainedModel]], rows: int
) -> None:
    target = families["llama"](layers=2, vocabulary=300, seed=1)
    useless = families["llama"](layers=1, vocabulary=300, seed=9)
    reader, limits, noise = LeanReader(target), Limits(60, frozenset(), 160), Noise(0, range(rows))
    for prompts in (PROMPTS[:rows], [[1, 40 + row] for row in range(rows)]):
        plain = [row.tokens for row in autoregressive(reader, prompts, Sampling(), limits, noise)]
        pace = AutoPace(costs(0.2, rows=rows))
        for _ in range(2):  # what was learnt stays
            made = speculative(reader, ModelDrafter(LeanReader(useless)), prompts, pace, Sampling(), limits, noise)
            assert [row.tokens for row in made] == plain
        assert not pace.drafting
        assert sum(made[0].proposed) == 0
        pace = AutoPace(costs(0.2, rows=rows))
        made = speculative(reader, ModelDrafter(LeanReader(target)), prompts, pace, Sampling(), limits, noise)
        assert [row.tokens for row in made] == plain
        assert max(made[0].proposed) == 8
        assert 0 not in made[0].proposed[:-1]


class Ticking(LeanReader):
    """A reader whose passes take as long as they are told to, on a clock of its own."""

    now_s = 0.0

    def __init__(self, model: PreTrainedModel, pass_s: float, token_s: float) -> None:
        super().__init__(model)
        self._pass_s, self._token_s = pass_s, token_s

    def feed(self, tokens: torch.Tensor, count: list[int] | None = None) -> torch.Tensor:
        Ticking.now_s += self._pass_s + self._token_s * tokens.shape[1]
        return super().feed(tokens, count)

    def feed_last(self, tokens: torch.Tensor, count: list[int] | None = None) -> torch.Tensor:
        Ticking.now_s += self._pass_s + self._token_s * tokens.shape[1]
        return super().feed_last(tokens, count)


@pytest.mark.parametrize("context", [160, 24])
@pytest.mark.parametrize("rows", [1, 3])
def test_costs_are_those_of_full_rounds_of_the_pair(
    families: dict[str, Callable[..., PreTrainedModel]], noisy: Callable[..., PreTrainedModel], rows: int, context: int
) -> None:
    """A pass of the target takes 1 s and .1 s a token, one of the drafter .2 s and .001 s a token, all else nothing."""
    model = families["llama"](layers=2, vocabulary=300, seed=1, context=context)
    target, drafter = Ticking(model, 1.0, 0.1), ModelDrafter(Ticking(noisy(model), 0.2, 0.001))
    prompts = [[1, 5, 9, 7], [1, 7], [3] * 10][:rows]
    found = measure_costs(target, drafter, prompts, Sampling(), lambda: Ticking.now_s, ks=(4, 1, 2))
    assert found.rows == rows
    assert set(found.draft_s) == {1, 2, 4}
    for k in (0, 1, 2, 4):
        assert found.verify_s[k] == pytest.approx(1 + 0.1 * (k + 1))
        assert found.rest_s[k] == pytest.approx(0, abs=1e-9)
        if k:  # one or two tokens are unread as a rule
            assert 0.201 * k - 1e-9 <= found.draft_s[k] <= 0.201 * k + 0.0021
    longest = max(map(len, prompts))
    assert found.read_s == pytest.approx((0.2 + 0.001 * longest) / longest)


def test_a_drafter_that_offers_nothing_has_its_rounds_filled(
    families: dict[str, Callable[..., PreTrainedModel]],
) -> None:
    class Silent(PromptLookup):
        def _continue(self, *_: object) -> list[int]:
            return []

    target = Ticking(families["llama"](layers=1, vocabulary=300), 1.0, 0.1)
    for drafter in (Silent(vocabulary=300), PromptLookup(vocabulary=300)):
        found = measure_costs(target, drafter, [[1, 5]], Sampling(1.0), lambda: Ticking.now_s, ks=(2,))
        assert found.draft_s == {2: 0.0}
        assert found.verify_s == {0: pytest.approx(1.1), 2: pytest.approx(1.3)}
        assert found.read_s == 0


def test_costs_that_cannot_be_measured_are_refused(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    target = LeanReader(families["llama"](layers=1, vocabulary=300, context=8))
    drafter, ticks = PromptLookup(vocabulary=300), itertools.count()
    given = (target, drafter, [[1, 5]], Sampling(), lambda: float(next(ticks)))
    assert set(measure_costs(*given, ks=(2, 8)).draft_s) == {2}
    with pytest.raises(DataError, match="a context of 8 tokens has no room for rounds of 3 guesses"):
        measure_costs(*given, ks=(3, 8))
    with pytest.raises(ValueError, match="at least 1"):
        measure_costs(*given, ks=(0, 1))
