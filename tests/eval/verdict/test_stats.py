import math

import numpy as np
import pytest

from eval.verdict.stats import expanded_tail, repeated_share, speedup


def test_a_ratio_of_totals_by_hand() -> None:
    # Alone: 3 s for 30 tokens, 0.1 s each. Drafted: 2 s for 40 tokens, 0.05 s each. Mean of ratios would be 2.25.
    found = speedup([(1.0, 10, 1.0, 20), (2.0, 20, 1.0, 20)])
    assert found.value == pytest.approx(2.0)
    assert found.low is not None and found.high is not None
    assert found.low <= found.value <= found.high


def test_one_prompt_has_no_interval_and_equal_prompts_a_narrow_one() -> None:
    alone = speedup([(2.0, 10, 1.0, 10)])
    assert (alone.value, alone.low, alone.high) == (2.0, None, None)
    same = speedup([(2.0, 10, 1.0, 10)] * 5)
    assert same.low == pytest.approx(2.0) and same.high == pytest.approx(2.0)


def test_no_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        speedup([])


def test_the_interval_is_the_same_each_time_and_pairs_the_arms() -> None:
    # Prompts differ tenfold in length, yet each is exactly twice as fast: unpaired, this interval would be wide.
    totals = [(2.0 * size, 10, 1.0 * size, 10) for size in (1, 3, 10, 2, 7)]
    found = speedup(totals, seed=3)
    assert found == speedup(totals, seed=3)
    assert found.low == pytest.approx(2.0) and found.high == pytest.approx(2.0)


@pytest.mark.parametrize("prompts", [6, 16])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(prompts: int) -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        base = rng.normal(1.0, 0.1, prompts)
        arm = base * rng.normal(0.5, 0.08, prompts)  # the truth is 2: E[base] / E[arm]
        found = speedup([(b, 10, a, 10) for b, a in zip(base, arm, strict=True)], seed=trial, resamples=1000)
        assert found.low is not None and found.high is not None
        covered += found.low <= 2.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_few_prompts_move_the_ends_outward() -> None:
    tails = [expanded_tail(count) for count in (4, 8, 30, 10_000)]
    assert tails == sorted(tails)
    assert tails[-1] == pytest.approx(0.025, abs=1e-4)
    # n = 8: sqrt(8 / 7) * t(7, 97.5 %) = 1.0690 * 2.3646 = 2.5279, whose normal tail is 0.00574
    assert tails[1] == pytest.approx(0.00574, rel=0.01)


def test_repetition_by_hand() -> None:
    assert repeated_share([[1, 2, 3, 4, 5]]) == 0
    # (1,1,1,1) three times in six tokens: two of three repeat
    assert repeated_share([[1] * 6]) == pytest.approx(2 / 3)
    assert repeated_share([[1] * 6, [1, 2, 3, 4]]) == pytest.approx(2 / 4)
    assert repeated_share([[1, 2, 3]]) is None


def test_a_speedup_is_finite_where_one_output_is_a_single_token() -> None:
    assert math.isfinite(speedup([(0.1, 1, 0.1, 1), (1.0, 40, 0.5, 40)]).value)
