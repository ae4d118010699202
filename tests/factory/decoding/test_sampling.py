from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from factory.decoding.sampling import Noise, PointMasses, Sampling, distribution, draw, most_likely

WEIGHTS = torch.tensor([0.5, 0.3, 0.15, 0.05])


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    made = distribution(logits, sampling)
    assert isinstance(made, PointMasses) == sampling.greedy
    return made.dense() if isinstance(made, PointMasses) else made


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
        (Sampling(temperature=1.0, min_p=0.5), [0.625, 0.375, 0.0, 0.0]),
        (Sampling(temperature=1.0, min_p=0.7), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(temperature=1.0, min_p=1.0), [1.0, 0.0, 0.0, 0.0]),
        # min-p comes after the temperature, under which the second token is .36 times as likely as the first
        (Sampling(temperature=0.5, min_p=0.5), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(temperature=1.0, top_k=3, top_p=0.9, min_p=0.2), [50 / 95, 30 / 95, 15 / 95, 0.0]),
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


def test_a_nucleus_is_that_of_a_sorted_vocabulary() -> None:
    """Vocabularies beyond the first look, from peaked to flat, with many equal probabilities at the edge."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3_000, generator=generator)
    logits = torch.stack(
        [logits[0] * 5, logits[1], logits[2] / 9, logits[3].round(), (logits[4] * 3).round(), logits[5] * 0]
    )
    for top_p in (0.05, 0.5, 0.9, 0.999, 1 - 2.0**-24):
        made = probabilities(logits, Sampling(temperature=1.0, top_p=top_p))
        weights = logits.softmax(-1)
        ordered, index = weights.sort(dim=-1, descending=True, stable=True)
        before = torch.cat([torch.zeros(6, 1), ordered.cumsum(-1)[:, :-1]], dim=1)
        kept = torch.zeros_like(weights, dtype=torch.bool).scatter(1, index, before < top_p)
        kept &= weights > 0
        assert ((made > 0) == kept).all()
        torch.testing.assert_close(made, weights * kept / (weights * kept).sum(-1, keepdim=True))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"frequency_penalty": float("nan")},
        {"presence_penalty": float("inf")},
        {"no_repeat_ngram_size": -1},
        {"min_new_tokens": -1},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Sampling(**values)  # type: ignore[arg-type]


def test_the_running_sum_passes_the_number_at_the_token_drawn() -> None:
    weights = torch.tensor([[0.0, 2.0, 0.0, 1.0, 1.0, 0.0]])
    for number, token in [
        (0.0, 1),
        (0.25, 1),
        (0.5 - 2.0**-52, 1),
        (0.5, 3),
        (0.7499, 3),
        (0.75, 4),
        (1 - 2.0**-52, 4),
    ]:
        assert draw(weights, torch.tensor([[number]], dtype=torch.float64)).tolist() == [token]
    assert draw(PointMasses(torch.tensor([3, 1]), 6), None).tolist() == [3, 1]


def test_a_weight_of_zero_is_never_drawn_whatever_the_size() -> None:
    """The largest number there is, against sums that do not end at 1 in float32."""
    generator = torch.Generator().manual_seed(0)
    for size in (7, 1_000, 150_000):
        weights = torch.randn(20, size, generator=generator).mul(3).softmax(-1)
        weights[:, : size // 3] = 0.0
        weights[:, -(size // 3) :] = 0.0
        for number in (0.0, 1 - 2.0**-52):
            drawn = draw(weights, torch.full((20, 1), number, dtype=torch.float64))
            assert (weights.gather(1, drawn.unsqueeze(1)) > 0).all()


def test_draws_have_the_law_of_their_weights() -> None:
    rows = 20_000
    weights = torch.tensor([3.0, 0.0, 1.0, 0.5, 0.0, 0.01])  # not normalised
    numbers = Noise(3, range(rows)).uniform("target", [4] * rows)
    counts = torch.bincount(draw(weights.expand(rows, 6), numbers), minlength=6)
    assert counts[[1, 4]].sum() == 0
    drawn = weights > 0
    expected = weights[drawn].double() / weights.sum() * rows
    assert chisquare(counts[drawn].numpy(), (expected * rows / expected.sum()).numpy()).pvalue > 1e-3


def test_numbers_are_even_down_to_rare_ones_and_know_nothing_of_their_neighbours() -> None:
    numbers = Noise(0, range(1_000)).uniform("target", [0] * 1_000, 1_000)  # [requests, positions]
    assert numbers.dtype == torch.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert torch.equal(numbers * 2.0**52, (numbers * 2.0**52).floor())
    counts = torch.histc(numbers, 1_000, 0, 1)
    assert chisquare(counts.numpy()).pvalue > 1e-3
    for below in (1e-4, 1e-3):  # with the 24 bits of float32 a token of probability 1e-7 would be drawn too often
        assert (numbers < below).sum().item() == pytest.approx(1e6 * below, abs=4 * (1e6 * below) ** 0.5)
    assert len(numbers[numbers < 1e-4].unique()) == (numbers < 1e-4).sum()
    others = {
        "next position": (numbers[:, :-1], numbers[:, 1:]),
        "next request": (numbers[:-1], numbers[1:]),
        "other role": (numbers, Noise(0, range(1_000)).uniform("draft", [0] * 1_000, 1_000)),
        "next seed": (numbers, Noise(1, range(1_000)).uniform("target", [0] * 1_000, 1_000)),
    }
    for name, (one, other) in others.items():
        cells = torch.histc((one * 16).floor() * 16 + (other * 16).floor(), 256, 0, 256)
        assert chisquare(cells.numpy()).pvalue > 1e-4, name


def test_a_row_keeps_its_numbers_in_any_batch() -> None:
    together = Noise(7, [5, 9, 2])
    alone = Noise(7, [9])
    assert torch.equal(together.uniform("draft", [3, 8, 1], 40)[1:2], alone.uniform("draft", [8], 40))
    assert torch.equal(together.uniform("accept", [3, 3, 3], 5)[1:2], alone.uniform("accept", [3], 5))
    copied = together.copy()
    together.select([2, 1])
    assert torch.equal(together.uniform("draft", [1, 8], 40)[1:], alone.uniform("draft", [8], 40))
    assert torch.equal(together.uniform("draft", [1, 500])[1:], alone.uniform("draft", [500]))
    assert copied.requests == [5, 9, 2]


def test_numbers_do_not_depend_on_how_many_are_asked_for_or_when() -> None:
    noise = Noise(7, [1, 2])
    first = noise.uniform("accept", [0, 6], 3)
    noise.uniform("draft", [0, 6], 11)
    for count in (1, 2, 8, 40, 64, 127, 128, 129, 600):
        assert torch.equal(noise.uniform("accept", [0, 6], count)[:, :3], first[:, :count])
        assert noise.uniform("accept", [0, 6], count).shape == (2, count)
    late = noise.uniform("accept", [5_000, 5_000], 2)
    assert torch.equal(
        Noise(7, [1, 2]).uniform("accept", [4_999, 5_001], 2),
        torch.stack([noise.uniform("accept", [4_999, 0], 2)[0], noise.uniform("accept", [0, 5_001], 2)[1]]),
    )
    assert torch.equal(late[:, 1:], noise.uniform("accept", [5_001, 5_001]))


def test_every_part_of_the_key_matters() -> None:
    def number(seed: int, request: int, role: str, position: int) -> float:
        return Noise(seed, [request]).uniform(role, [position]).item()

    seen = {
        number(seed, request, role, position)
        for seed in (0, 1, -1)
        for request in (0, 1, 2)
        for role in ("draft", "target")
        for position in (0, 1, 2, 3)
    }
    assert len(seen) == 3 * 3 * 2 * 4
