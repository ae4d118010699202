"""The choice on measurements made by hand: each prompt has its seconds, nothing is random but the bootstrap."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from eval.measurement import AUTO, CHOOSE, MODEL, PROMPT_LOOKUP, Arm, Cell, Timed
from eval.verdict.choose import Candidate, break_even_alpha, pool, promising, shortlist, verdict
from factory.decoding.decoder import Generation
from factory.forecasting.forecast import expected_tokens

TOKENS = 13  # one from the prefill, then four rounds of three


def output(request: int, seconds: float, accepted: int = 2, proposed: int = 3, rounds: int = 4) -> Timed:
    generation = Generation([1], [7] * TOKENS, 1 + rounds, [accepted] * rounds, [proposed] * rounds)
    return Timed((request,), [generation], seconds, 0.1 * seconds, 0.2 * seconds, 0.6 * seconds, 0.05 * seconds)


def alone(seconds: Sequence[float], suite: str = "s", temperature: float = 0.0) -> Cell:
    runs = [[output(i, s, 0, 0, TOKENS - 1) for i, s in enumerate(seconds)]]
    return Cell(Arm(), suite, temperature, CHOOSE, runs, lossless=True)


def drafted(
    name: str | None,
    k: int,
    seconds: Sequence[float],
    *,
    lossless: bool | None = True,
    suite: str = "s",
    temperature: float = 0.0,
    accepted: int = 2,
) -> Cell:
    arm = Arm(name, MODEL if name else PROMPT_LOOKUP, k)
    runs = [[output(i, s, accepted) for i, s in enumerate(seconds)]]
    return Cell(arm, suite, temperature, CHOOSE, runs, lossless=lossless)


BASE = [1.0] * 10
STEADY = [0.66, 0.67, 0.68, 0.66, 0.67, 0.66, 0.67, 0.68, 0.66, 0.67]  # 1.49 on average, little spread
LUCKY = [0.2, 0.2, 0.2, 0.9, 0.9, 0.9, 0.9, 0.7, 0.8, 0.9]  # 1.52 on average, great spread


def candidates(*cells: Cell, base: Sequence[float] = BASE) -> list[Candidate]:
    return pool([(alone(base), cell) for cell in cells], seed=0)


def test_the_lower_bound_beats_the_mean() -> None:
    steady, lucky = candidates(drafted("steady", 3, STEADY), drafted("lucky", 3, LUCKY))
    assert lucky.interval.value > steady.interval.value
    assert shortlist([lucky, steady])[0].arm.artifact == "steady"


@pytest.mark.parametrize("lossless", [False, None])
def test_what_is_not_lossless_never_wins_however_fast(lossless: bool | None) -> None:
    found = candidates(drafted("cheat", 4, [0.1] * 10, lossless=lossless), drafted("honest", 2, STEADY))
    assert [c.arm.artifact for c in shortlist(found)] == ["honest"]
    said = verdict(found, found, [0.0])
    assert (said["artifact"], said["k"]) == ("honest", 2)
    assert "cheat at k = 4" in said["reason"]
    only = candidates(drafted("cheat", 4, [0.1] * 10, lossless=lossless))
    assert not promising(only)
    said = verdict(only, [], [0.0])
    assert said["artifact"] is None and said["speedup"] is None
    assert said["reason"].startswith("None is faster than the target, because no drafter's output")


def test_one_unfaithful_cell_disqualifies_the_whole_arm() -> None:
    pairs = [
        (alone(BASE), drafted("a", 3, STEADY)),
        (alone(BASE, "other"), drafted("a", 3, STEADY, lossless=False, suite="other")),
    ]
    assert shortlist(pool(pairs, 0)) == []


def test_the_verdict_carries_the_second_figure() -> None:
    first = candidates(drafted("a", 3, STEADY), drafted("b", 2, [0.7] * 10))
    second = candidates(drafted("a", 3, [0.8, 0.81] * 5), drafted("b", 2, [0.9, 0.91] * 5))
    said = verdict(first, second, [0.0, 1.0])
    assert (said["artifact"], said["drafter"], said["k"]) == ("a", MODEL, 3)
    assert said["speedup"] == pytest.approx(10 / 8.05)
    assert said["speedup_low"] <= said["speedup"] <= said["speedup_high"]
    assert said["runner_up"]["artifact"] == "b"
    assert said["runner_up"]["speedup"] == pytest.approx(10 / 9.05)
    for words in (
        "1.24 times",
        "greedy and temperature 1",
        "10 prompts",
        "1.50x",
        "Runner-up: b at k = 2",
        "timed once",
    ):
        assert words in said["reason"]


def test_a_divergence_on_the_fresh_prompts_hands_the_verdict_to_the_runner_up() -> None:
    first = candidates(drafted("a", 3, STEADY), drafted("b", 2, [0.7] * 10))
    second = candidates(drafted("a", 3, STEADY, lossless=False), drafted("b", 2, [0.7] * 10))
    said = verdict(first, second, [0.0])
    assert (said["artifact"], said["runner_up"]) == ("b", None)
    assert "a at k = 3" in said["warnings"][0]


def test_divergences_of_both_on_the_fresh_prompts_leave_nothing_to_claim() -> None:
    first = candidates(drafted("a", 3, STEADY), drafted("b", 2, [0.7] * 10))
    second = candidates(drafted("a", 3, STEADY, lossless=False), drafted("b", 2, [0.7] * 10, lossless=False))
    said = verdict(first, second, [0.0])
    assert (said["artifact"], said["speedup"]) == (None, None)
    assert "no drafter's output was the target's own" in said["reason"]


def test_the_runner_up_is_claimed_where_only_it_holds_up() -> None:
    first = candidates(drafted("a", 3, STEADY), drafted("b", 2, [0.7] * 10))
    second = candidates(drafted("a", 3, [1.1, 1.2] * 5), drafted("b", 2, [0.8, 0.81] * 5))
    said = verdict(first, second, [0.0])
    assert (said["artifact"], said["k"]) == ("b", 2)
    assert "The first choice did not hold up on the fresh prompts: a at k = 3" in said["reason"]


def test_an_interval_around_one_claims_nothing() -> None:
    first = candidates(drafted("a", 3, STEADY))
    second = candidates(drafted("a", 3, [0.7, 1.2] * 5))
    said = verdict(first, second, [0.0])
    assert said["artifact"] is None and said["k"] is None and said["runner_up"] is None
    assert "that interval includes 1 (10 prompts)" in said["reason"]


def test_one_prompt_claims_nothing() -> None:
    found = candidates(drafted("a", 3, [0.5]), base=[1.0])
    said = verdict(found, found, [0.0])
    assert said["artifact"] is None
    assert "Give more prompts" in said["reason"]


def test_none_faster_says_why_from_the_numbers() -> None:
    # Every round accepts 0 of 3 and costs 1.6 steps: 1 + a + a^2 + a^3 = 1.6 at a = .389.
    rounds = TOKENS - 1
    runs = [[output(i, 1.6, 0, 3, rounds) for i in range(10)]]
    cell = Cell(Arm("slow", MODEL, 3), "s", 0.0, CHOOSE, runs, lossless=True)
    found = candidates(cell)
    assert not promising(found)
    said = verdict(found, [], [0.0])
    assert said["artifact"] is None
    assert "too little is accepted: a round brings 1.00 tokens for 1.60 steps of the target" in said["reason"]
    assert "alpha is 0.00" in said["reason"] and "would have to be 0.39" in said["reason"]


def test_none_faster_because_rounds_are_too_dear() -> None:
    runs = [[output(i, 3.0, 2, 2, 4) for i in range(10)]]  # four rounds for the price of 36 steps
    cell = Cell(Arm("dear", MODEL, 2), "s", 0.0, CHOOSE, runs, lossless=True)
    assert "even with alpha 1 would bring no more than 3:" in verdict(candidates(cell), [], [0.0])["reason"]


def test_rounds_that_pay_are_not_blamed_where_the_rest_costs_more() -> None:
    # Of 1.1 s the prefill is 0.9 s: four rounds of three tokens in 0.2 s, where a step alone takes 0.075 s.
    runs = [[Timed((i,), output(i, 1.1).generations, 1.1, 0.9, 0.05, 0.1, 0.01) for i in range(10)]]
    cell = Cell(Arm(None, PROMPT_LOOKUP, 3), "s", 0.0, CHOOSE, runs, lossless=True)
    reason = verdict(candidates(cell), [], [0.0])["reason"]
    assert "what rounds gain is lost outside of them, as in prefills: a round brings 3.00 tokens for 0.67" in reason


def test_where_not_even_prompt_lookup_pays_the_best_drafter_is_named_too() -> None:
    slow = drafted("a", 3, [2.0] * 10)
    found = candidates(slow, drafted(None, 4, [1.25] * 10))
    reason = verdict(found, [], [0.0])["reason"]
    assert "the best, prompt lookup at k = 4, measured 0.80x" in reason
    assert "Of the drafters with weights the best was a at k = 3, 0.50x" in reason


def test_prompt_lookup_can_win_and_then_no_drafter_is_needed() -> None:
    found = candidates(drafted("a", 3, STEADY), drafted(None, 4, [0.5, 0.51] * 5))
    said = verdict(found, found, [0.0])
    assert (said["artifact"], said["drafter"], said["k"]) == (None, PROMPT_LOOKUP, 4)
    assert said["speedup"] > 1.9
    assert "no trained drafter is needed" in said["reason"]


def test_pooling_adds_suites_and_temperatures_up_and_counts_a_prompt_once() -> None:
    pairs = [
        (alone([1.0, 1.0]), drafted("a", 3, [0.5, 0.5])),
        (alone([1.0, 1.0], temperature=1.0), drafted("a", 3, [1.0, 1.0], temperature=1.0)),
        (alone([4.0, 4.0], "other"), drafted("a", 3, [2.0, 2.0], suite="other")),
    ]
    (found,) = pool(pairs, 0)
    assert found.prompts == 4
    assert found.interval.value == pytest.approx(12 / 7)
    assert found.alpha == pytest.approx(2 / 3)  # two accepted, one rejected a round


def test_batches_are_resampled_whole() -> None:
    def batched(arm: Arm, seconds: Sequence[float], accepted: int, rounds: int) -> Cell:
        runs = [[]]
        for place, spent in enumerate(seconds):
            pair = [output(2 * place + row, spent, accepted, 3, rounds) for row in (0, 1)]
            both = [one.generations[0] for one in pair]
            runs[0].append(replace(pair[0], requests=(2 * place, 2 * place + 1), generations=both))
        return Cell(arm, "s", 0.0, CHOOSE, runs, batch=2, lossless=True)

    base, cell = batched(Arm(), [1.0] * 5, 0, TOKENS - 1), batched(Arm("a", MODEL, 3), [0.5] * 5, 2, 4)
    (found,) = pool([(base, cell)], 0)
    assert (found.prompts, found.resampled, found.batch) == (10, 5, 2)
    assert found.interval.value == pytest.approx(2.0)
    assert found.round_tokens == pytest.approx(3.0)  # of each row
    said = verdict([found], [found], [0.0])
    assert said["batch"] == 2
    assert "over 10 prompts, 2 at a time, that took no part" in said["reason"]
    assert "Only 5 batches of 2: the interval is rough" in said["reason"]


def test_a_k_chosen_each_round_is_told_with_its_mean() -> None:
    """Two of three proposed tokens stand in each round; where it does not pay, no alpha of one k is asked for."""
    paying, slow = ([[output(i, s) for i in range(10)]] for s in (0.5, 1.5))
    arm = Arm("a", MODEL, AUTO)
    found = candidates(Cell(arm, "s", 0.0, CHOOSE, paying, lossless=True))
    assert (found[0].mean_k, arm.fixed_k, arm.most) == (3.0, None, 8)
    said = verdict(found, found, [0.0])
    assert (said["k"], said["reason"][:60]) == ("auto", "a at k = auto (3.0 in the mean) is 2.00 times as fast as the")
    refused = verdict(candidates(Cell(arm, "s", 0.0, CHOOSE, slow, lossless=True)), [], [0.0])
    assert "because no k pays that was tried: a round brings 3.00 tokens" in refused["reason"]
    assert "with 3.0 tokens proposed in the mean: the best, a at k = auto, measured 0.67x" in refused["reason"]


def test_a_drafter_that_is_never_wrong_is_named() -> None:
    runs = [[output(i, 0.9, 3, 3, 4) for i in range(10)]]
    found = candidates(Cell(Arm("twin", MODEL, 3), "s", 0.0, CHOOSE, runs, lossless=True))
    assert "twin at k = 3: all 120 examined tokens were accepted" in verdict(found, found, [0.0])["reason"]


@pytest.mark.parametrize(("cost", "k"), [(1.3, 2), (2.0, 4), (4.9, 4)])
def test_break_even_solves_its_equation(cost: float, k: int) -> None:
    alpha = break_even_alpha(cost, k)
    assert alpha is not None
    assert expected_tokens(alpha, k) == pytest.approx(cost)


def test_break_even_has_ends() -> None:
    assert break_even_alpha(5.1, 4) is None
    assert break_even_alpha(0.9, 4) == pytest.approx(0.0, abs=1e-9)
