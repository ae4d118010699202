from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from factory.decoding.sampling import Noise, Sampling, Stillness, draw, most_likely, probabilities

WEIGHTS = torch.tensor([0.5, 0.3, 0.15, 0.05])


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (Sampling(temperature=1.0, top_k=2), [0.625, 0.375, 0.0, 0.0]),
        (Sampling(temperature=1.0, top_k=9), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=1.0, top_p=0.6), [0.625, 0.375, 0.0, 0.0]),
        (Sampling(temperature=1.0, top_p=0.4), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(temperature=1.0, top_p=1e-9), [1.0, 0.0, 0.0, 0.0]),
        # after top-k the second token's share is .375, so .6 of the mass is the first alone
        (Sampling(temperature=1.0, top_k=2, top_p=0.6), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(temperature=0.0), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(temperature=0.0, top_k=3, top_p=0.9), [1.0, 0.0, 0.0, 0.0]),
    ],
)
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_processors_by_hand(sampling: Sampling, expected: list[float], order: list[int]) -> None:
    made = probabilities((WEIGHTS.double().log() + 7)[order].repeat(2, 3, 1), sampling)
    assert made.dtype == torch.float32
    assert made.shape == (2, 3, 4)
    torch.testing.assert_close(made, torch.tensor(expected)[order].repeat(2, 3, 1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_lowest_index_wins_a_greedy_tie(dtype: torch.dtype) -> None:
    logits = torch.zeros(5, 3001, dtype=dtype)
    for row, winners in enumerate([(0, 2999), (1, 2), (700, 701, 3000), (17, 1024, 2048), range(3001)]):
        logits[row, list(winners)] = 5.0
    assert most_likely(logits).tolist() == [0, 1, 700, 17, 0]
    one_hot = probabilities(logits, Sampling())
    assert one_hot.sum(-1).tolist() == [1.0] * 5
    assert one_hot.argmax(-1).tolist() == [0, 1, 700, 17, 0]


def test_greedy_looks_at_the_logits_in_their_own_dtype() -> None:
    logits = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)  # equal in float32
    assert probabilities(logits, Sampling()).tolist() == [[0.0, 1.0]]


def test_ties_at_the_edge_do_not_depend_on_the_batch() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])
    top_k = probabilities(logits.repeat(7, 1), Sampling(temperature=1.0, top_k=2))
    assert (top_k > 0).tolist() == [[True, True, True, True, False]] * 7
    top_p = probabilities(logits.repeat(7, 1), Sampling(temperature=1.0, top_p=0.55))
    assert (top_p > 0).tolist() == [[True, True, False, False, False]] * 7


@pytest.mark.parametrize(
    "values", [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Sampling(**values)  # type: ignore[arg-type]


def test_a_weight_of_zero_never_wins() -> None:
    race = torch.tensor([[2.0**-54, 1e30]])
    assert draw(torch.tensor([[0.0, 1e-38]]), race).tolist() == [1]
    # an infinite wait is not worse than a weight of zero
    assert draw(torch.tensor([[0.0, 0.5]]), torch.tensor([[1.0, torch.inf]])).tolist() == [1]


def test_draws_have_the_law_of_their_weights() -> None:
    rows = 20_000
    weights = torch.tensor([3.0, 0.0, 1.0, 0.5, 0.0, 0.01])  # not normalised
    race = Noise(3, range(rows)).race("target", [4] * rows, 6)
    counts = torch.bincount(draw(weights.expand(rows, 6), race), minlength=6)
    assert counts[[1, 4]].sum() == 0
    drawn = weights > 0
    expected = weights[drawn].double() / weights.sum() * rows
    assert chisquare(counts[drawn].numpy(), (expected * rows / expected.sum()).numpy()).pvalue > 1e-3


def test_waiting_times_are_exponential_down_to_rare_tokens() -> None:
    times = Noise(0, range(4)).race("target", [0] * 4, 500_000)
    assert times.dtype == torch.float32
    assert times.min() > 0
    assert times.isfinite().all()
    assert times.mean() == pytest.approx(1, abs=0.005)
    for wait in (1e-4, 1e-2, 1.0, 8.0):
        expected = 2e6 * -torch.expm1(torch.tensor(-wait)).item()
        assert (times < wait).sum().item() == pytest.approx(expected, abs=4 * expected**0.5)
    # float32 uniforms would come in steps of 2^-24, which is coarse where a token of probability 1e-7 wins
    steps = times[times < 1e-5].double() * 2**24
    assert len(steps) > 5
    assert ((steps - steps.round()).abs() > 0.05).double().mean() > 0.5


def test_a_row_keeps_its_numbers_in_any_batch() -> None:
    together = Noise(7, [5, 9, 2])
    alone = Noise(7, [9])
    assert torch.equal(together.race("draft", [3, 8, 1], 40)[1:2], alone.race("draft", [8], 40))
    assert torch.equal(together.uniform("accept", [3, 8, 1], 5)[1:2], alone.uniform("accept", [8], 5))
    copied = together.copy()
    together.select([2, 1])
    assert torch.equal(together.race("draft", [1, 8], 40)[1:], alone.race("draft", [8], 40))
    assert copied.requests == [5, 9, 2]


def test_numbers_do_not_depend_on_how_many_are_asked_for_or_when() -> None:
    noise = Noise(7, [1, 2])
    first = noise.uniform("accept", [0, 6], 3)
    noise.race("draft", [0, 6], 11)
    for count in (1, 2, 8, 40, 64):
        assert torch.equal(noise.uniform("accept", [0, 6], count)[:, :3], first[:, :count])
    assert noise.uniform("accept", [0, 6], 100).shape == (2, 100)
    assert first.min() >= 0
    assert first.max() < 1


def test_every_part_of_the_key_matters() -> None:
    def numbers(seed: int, request: int, role: str, position: int) -> tuple[float, ...]:
        return tuple(Noise(seed, [request]).race(role, [position], 3)[0].tolist())

    seen = {
        numbers(seed, request, role, position)
        for seed in (0, 1, -1)
        for request in (0, 1, 2)
        for role in ("draft", "target")
        for position in (0, 1, 2, 3)
    }
    assert len(seen) == 3 * 3 * 2 * 4


def test_stillness_changes_no_point_mass() -> None:
    still = Stillness(0, [0, 1])
    weights = probabilities(torch.randn(2, 50, generator=torch.Generator().manual_seed(1)), Sampling())
    assert torch.equal(draw(weights, still.race("target", [0, 0], 50)), weights.argmax(-1))
    assert still.uniform("accept", [0, 0], 4).tolist() == [[0.0]]
