from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from factory.decoding.rejection import Draft, accept, no_draft
from factory.decoding.sampling import PointMasses, draw

ALMOST_ONE = 1 - 2.0**-52  # the largest number that is drawn


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def one_row(
    guesses: list[int], q: list[list[float]] | None, p: list[list[float]], u: list[float], last: float = 0.5
) -> list[int]:
    draft = Draft(torch.tensor([guesses]), [len(guesses)], None if q is None else torch.tensor([q]))
    tokens, count = accept(draft, torch.tensor([p]), numbers(*u), numbers(last))
    assert tokens.shape == (1, len(guesses) + 1)
    return tokens[0, : count[0]].tolist()


def test_u_of_zero_does_not_accept_a_token_of_probability_zero() -> None:
    assert one_row([2], [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0.0]) == [0]
    assert one_row([2], None, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0.0]) == [0]


def test_acceptance_is_strict() -> None:
    # u * q == p exactly: falls, and what is left of p is token 1
    assert one_row([0], [[1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], [0.5]) == [1]
    below = 0.5 - 2.0**-53
    assert one_row([0], [[1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], [below]) == [0, 2]


def test_where_the_target_likes_it_better_the_guess_always_stands() -> None:
    assert one_row([0], [[0.4, 0.6, 0.0]], [[0.4, 0.3, 0.3], [0.0, 0.0, 1.0]], [ALMOST_ONE]) == [0, 2]


@pytest.mark.parametrize("last", [0.0, 0.3, 0.9, ALMOST_ONE])
def test_the_correction_comes_from_what_the_target_has_more_of(last: float) -> None:
    # token 1 has p = q, so it cannot be the correction; 0 is what fell
    assert one_row([0], [[0.5, 0.3, 0.2]], [[0.1, 0.3, 0.6], [1.0, 0.0, 0.0]], [0.9], last) == [2]


def test_the_correction_of_a_certain_guess_is_anything_else() -> None:
    p = [[0.6, 0.3, 0.1], [1.0, 0.0, 0.0]]
    assert one_row([0], None, p, [0.7], 0.0) == [1]
    assert one_row([0], None, p, [0.7], 0.74) == [1]
    assert one_row([0], None, p, [0.7], 0.76) == [2]
    assert one_row([0], None, p, [0.5], 0.76) == [0, 0]


def test_an_empty_residual_means_p() -> None:
    p = [[0.5, 0.4999999, 0.0], [0.0, 0.0, 1.0]]
    q = [[0.5, 0.5, 0.0]]
    assert one_row([1], q, p, [ALMOST_ONE], 0.4) == [0]
    assert one_row([1], q, p, [ALMOST_ONE], 0.6) == [1]


def test_nothing_behind_the_first_fallen_guess_stands() -> None:
    p = [[0.0, 1.0, 0.0]] * 4
    assert one_row([1, 0, 1], [[1 / 3] * 3] * 3, p, [0.0, 0.0, 0.0]) == [1, 1]


@pytest.mark.parametrize("u", [0.0, 0.3, ALMOST_ONE])
def test_greedy_emits_the_target_s_argmaxes_whatever_the_dice(u: float) -> None:
    # With softmax probabilities in place of one-hot ones this emits [.4, .6, 0] where [1, 0, 0] is right.
    p = torch.eye(3)[[0, 2, 1]].tolist()
    assert one_row([0, 2], None, p, [u, u]) == [0, 2, 1]
    assert one_row([0, 1], None, p, [u, u]) == [0, 2]
    assert one_row([1, 2], None, p, [u, u]) == [0]


@pytest.mark.parametrize("certain_q", [True, False])
def test_point_masses_are_judged_as_the_one_hot_probabilities_they_stand_for(certain_q: bool) -> None:
    """Without a number, what the rule gives with any number: 2,000 rows of guesses, lengths, numbers and q."""
    generator = torch.Generator().manual_seed(0)
    rows, guesses, size = 2_000, 3, 4
    certain = PointMasses(torch.randint(size, (rows, guesses + 1), generator=generator), size)
    tokens = torch.randint(size, (rows, guesses), generator=generator)
    q = torch.rand(rows, guesses, size, generator=generator).pow(6)
    q = q / q.sum(-1, keepdim=True)
    q[::5] = torch.nn.functional.one_hot(tokens[::5], size).float()
    length = torch.randint(guesses + 1, (rows,), generator=generator).tolist()
    u = torch.rand(rows, guesses, generator=generator, dtype=torch.float64)
    last = torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    u[::3], u[1::3], last[::2] = 0.0, ALMOST_ONE, ALMOST_ONE
    draft = Draft(tokens, length, None if certain_q else q)
    slow, slow_count = accept(draft, certain.dense(), u, last)
    fast, fast_count = accept(draft, certain, None, None)
    assert fast_count.tolist() == slow_count.tolist()
    assert set(fast_count.tolist()) == {1, 2, 3, 4}
    for row, count in enumerate(slow_count.tolist()):
        assert fast[row, :count].tolist() == slow[row, :count].tolist()


def test_only_point_masses_need_no_numbers() -> None:
    p = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]])
    with pytest.raises(ValueError, match="point masses only"):
        accept(Draft(torch.tensor([[1]]), [1], None), p, None, numbers(0.5))
    with pytest.raises(ValueError, match="point masses only"):
        draw(p[:, 0], None)


def test_rows_have_their_own_lengths() -> None:
    p = torch.eye(4)[[1, 2, 3]].repeat(4, 1, 1)  # each row wants 1, 2, 3
    draft = Draft(torch.tensor([[1, 2], [1, 2], [1, 2], [0, 2]]), [2, 1, 0, 2], None)
    certain = PointMasses(torch.tensor([[1, 2, 3]]).repeat(4, 1), 4)
    for law in (p, certain):
        tokens, count = accept(draft, law, torch.zeros(4, 2), torch.zeros(4, 1))
        emitted = [row[:n] for row, n in zip(tokens.tolist(), count.tolist(), strict=True)]
        assert emitted == [[1, 2, 3], [1, 2], [1], [1]]


def test_a_round_without_guesses_is_a_plain_draw() -> None:
    draft = no_draft(2, torch.device("cpu"))
    p = torch.tensor([[[0.2, 0.8]], [[1.0, 0.0]]])
    tokens, count = accept(draft, p, torch.zeros(2, 0), torch.tensor([[0.5], [0.5]]))
    assert tokens.tolist() == [[1], [0]]
    assert count.tolist() == [1, 1]
    tokens, count = accept(draft, PointMasses(torch.tensor([[1], [0]]), 2), None, None)
    assert tokens.tolist() == [[1], [0]]
    assert count.tolist() == [1, 1]


def test_a_certain_guess_is_a_one_hot_q() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, guesses, size = 500, 3, 6
    p = torch.rand(rows, guesses + 1, size, generator=generator).pow(4)
    p /= p.sum(-1, keepdim=True)
    tokens = torch.randint(size, (rows, guesses), generator=generator)
    length = torch.randint(guesses + 1, (rows,), generator=generator).tolist()
    u = torch.rand(rows, guesses, generator=generator) / 3
    last = torch.rand(rows, 1, generator=generator)
    certain = accept(Draft(tokens, length, None), p, u, last)
    one_hot = accept(Draft(tokens, length, torch.nn.functional.one_hot(tokens, size).float()), p, u, last)
    for row in range(rows):
        n = int(certain[1][row])
        assert n == one_hot[1][row]
        assert certain[0][row, :n].tolist() == one_hot[0][row, :n].tolist()
    assert set(certain[1].tolist()) == {1, 2, 3, 4}


def test_a_draft_can_be_cut_row_by_row() -> None:
    q = torch.rand(3, 4, 5)
    draft = Draft(torch.arange(12).view(3, 4), [4, 2, 3], q)
    cut = draft.cut([1, 3, 2])
    assert cut.length == [1, 2, 2]
    assert cut.tokens.tolist() == [[0, 1], [4, 5], [8, 9]]
    assert cut.q is not None
    assert torch.equal(cut.q, q[:, :2])
    assert draft.cut([0, 0, 0]).tokens.shape == (3, 0)
    assert draft.cut([4, 2, 9]) is draft


def test_two_guesses_and_what_follows_have_the_law_of_the_target() -> None:
    """accept() alone, with one p for all contexts: the first emitted token is p's, the second given the first too."""
    rows, size = 200_000, 5
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([[0.05, 0.4, 0.25, 0.3, 0.0], [0.2, 0.2, 0.5, 0.05, 0.05], [0.1, 0.2, 0.3, 0.1, 0.3]])
    q = torch.tensor([[0.3, 0.3, 0.0, 0.3, 0.1], [0.1, 0.6, 0.1, 0.1, 0.1]])
    guesses = torch.stack([torch.multinomial(law, rows, replacement=True, generator=generator) for law in q], dim=1)
    tokens, count = accept(
        Draft(guesses, [2] * rows, q.expand(rows, 2, size)),
        p.expand(rows, 3, size),
        torch.rand(rows, 2, generator=generator, dtype=torch.float64),
        torch.rand(rows, 1, generator=generator, dtype=torch.float64),
    )
    assert set(count.tolist()) == {1, 2, 3}
    for place in range(3):
        there = tokens[count > place, place]
        seen = torch.bincount(there, minlength=size)
        possible = p[place] > 0
        assert seen[~possible].sum() == 0
        expected = p[place][possible].double() * len(there)
        fit = chisquare(seen[possible].numpy(), (expected * len(there) / expected.sum()).numpy())
        assert fit.pvalue > 1e-3
