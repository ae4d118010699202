import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from factory.tensors import divergences as d


def drawn(positions: int = 6, outcomes: int = 9, seed: int = 0, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p, q = (spread * torch.randn(positions, outcomes, generator=generator, dtype=torch.float64) for _ in range(2))
    return p.log_softmax(-1), q.log_softmax(-1)


def kl_of(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def jsd_of(beta: float, p: list[float], q: list[float]) -> float:
    mixed = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    return beta * kl_of(p, mixed) + (1 - beta) * kl_of(q, mixed)


def shared(p: list[float], q: list[float]) -> float:
    return sum(min(a, b) for a, b in zip(p, q, strict=True))


def hybrid_of(eta: float, p: list[float], q: list[float]) -> float:
    share = math.exp(-eta * shared(p, q))
    return share * kl_of(p, q) + (1 - share) * (1 - shared(p, q))


Formula = Callable[[list[float], list[float]], float]
FORMULAS: dict[str, tuple[d.Divergence, Formula]] = {
    "forward_kl": (d.forward_kl, kl_of),
    "reverse_kl": (d.reverse_kl, lambda p, q: kl_of(q, p)),
    "jsd": (d.jensen_shannon, partial(jsd_of, 0.5)),
    "jsd .1": (partial(d.jensen_shannon, beta=0.1), partial(jsd_of, 0.1)),
    "tv": (d.total_variation, lambda p, q: 0.5 * sum(abs(a - b) for a, b in zip(p, q, strict=True))),
    "tvd_plus_plus": (d.total_variation_plus_plus, lambda p, q: 1 - shared(p, q)),
    "negative_log_acceptance": (d.negative_log_acceptance, lambda p, q: -math.log(shared(p, q))),
    "lk_hybrid": (d.lk_hybrid, partial(hybrid_of, 3.0)),
    "lk_hybrid 1": (partial(d.lk_hybrid, eta=1.0), partial(hybrid_of, 1.0)),
}
SMOOTH = [name for name in FORMULAS if not name.startswith(("tvd", "lk"))]


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a function [C, K] -> [C] whose rows do not mix."""
    slope = torch.empty_like(at)
    for column in range(at.shape[1]):
        move = torch.zeros_like(at)
        move[:, column] = step
        slope[:, column] = (function(at + move) - function(at - move)) / (2 * step)
    return slope


def test_every_name_of_a_recipe_has_a_formula_here() -> None:
    assert set(d.DIVERGENCES) == {name.split()[0] for name in FORMULAS}


@pytest.mark.parametrize("name", FORMULAS)
def test_values_against_the_formula(name: str) -> None:
    divergence, formula = FORMULAS[name]
    log_p, log_q = drawn()
    value, slope = divergence(log_p.clone(), log_q.clone())
    rows = zip(log_p.exp().tolist(), log_q.exp().tolist(), strict=True)
    assert value.tolist() == pytest.approx([formula(p, q) for p, q in rows], rel=1e-12, abs=1e-13)
    assert slope.shape == log_q.shape
    assert slope.dtype == value.dtype == torch.float64


@pytest.mark.parametrize("name", FORMULAS)
def test_inputs_stay_as_they_are_and_float32_stays_float32(name: str) -> None:
    log_p, log_q = (each.float() for each in drawn())
    before = log_p.clone(), log_q.clone()
    value, slope = FORMULAS[name][0](log_p, log_q)
    assert torch.equal(log_p, before[0])
    assert torch.equal(log_q, before[1])
    assert value.dtype == slope.dtype == torch.float32


@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_against_finite_differences(name: str) -> None:
    divergence, _ = FORMULAS[name]
    log_p, log_q = drawn(seed=1)
    _, slope = divergence(log_p, log_q)
    assert torch.allclose(slope, differences(lambda at: divergence(log_p, at)[0], log_q), atol=1e-8)


def test_the_hybrid_slope_holds_lambda_fixed() -> None:
    log_p, log_q = drawn(seed=2)
    p = log_p.exp()
    share = torch.exp(-3 * torch.minimum(p, log_q.exp()).sum(-1))  # detached: of the unmoved student

    def surrogate(at: Tensor) -> Tensor:
        kl = (p * (log_p - at)).sum(-1)
        return share * kl + (1 - share) * (1 - torch.minimum(p, at.exp()).sum(-1))

    _, slope = d.lk_hybrid(log_p, log_q)
    assert torch.allclose(slope, differences(surrogate, log_q), atol=1e-8)
    moving = differences(lambda at: d.lk_hybrid(log_p, at)[0], log_q)
    assert not torch.allclose(slope, moving, atol=1e-3)  # with lambda's own gradient it would be another


def test_the_hybrid_takes_one_acceptance_for_all_positions() -> None:
    log_p, log_q = drawn(seed=3)
    mean = d.overlap(log_p, log_q).mean()
    value, slope = d.lk_hybrid(log_p, log_q, acceptance=mean)
    share = math.exp(-3 * mean.item())
    kl, toward = d.forward_kl(log_p, log_q)
    tv, away = d.total_variation(log_p, log_q)
    assert torch.allclose(value, share * kl + (1 - share) * tv)
    assert torch.allclose(slope, share * toward + (1 - share) * away)
    for eta, expected in ((0.0, kl), (1e9, tv)):
        assert torch.allclose(d.lk_hybrid(log_p, log_q, eta=eta)[0], expected)


def test_tvd_plus_plus_is_the_policy_gradient_of_normalised_rewards() -> None:
    log_p, log_q = drawn(seed=4)
    q = log_q.exp()
    reward = (log_p > log_q).double()
    mean = (q * reward).sum(-1, keepdim=True)
    deviation = (q * (reward - mean) ** 2).sum(-1, keepdim=True).sqrt()
    advantage = (reward - mean) / deviation
    assert torch.allclose((q * advantage).sum(-1), torch.zeros(6, dtype=torch.float64), atol=1e-12)
    assert torch.allclose((q * advantage**2).sum(-1), torch.ones(6, dtype=torch.float64))

    def surrogate(at: Tensor) -> Tensor:  # -E_q[A log q], q and A detached
        return -(q * advantage * at).sum(-1)

    _, slope = d.total_variation_plus_plus(log_p, log_q)
    assert torch.allclose(slope, differences(surrogate, log_q), atol=1e-8)
    _, plain = d.total_variation(log_p, log_q)
    projected = plain - q * plain.sum(-1, keepdim=True)
    assert torch.allclose(slope, projected / deviation, atol=1e-12)  # TV's gradient of another length


def test_a_mixture_near_an_end_is_a_kl() -> None:
    log_p, log_q = drawn(seed=5, spread=0.5)
    for beta, scale, expected in ((1e-5, 1e-5, d.forward_kl), (1 - 1e-5, 1e-5, d.reverse_kl)):
        value, _ = d.jensen_shannon(log_p, log_q, beta=beta)
        assert torch.allclose(value / scale, expected(log_p, log_q)[0], rtol=1e-3)
    for beta in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            d.jensen_shannon(log_p, log_q, beta=beta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FORMULAS)
def test_what_the_teacher_excludes(name: str, dtype: torch.dtype) -> None:
    log_p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], dtype=dtype).log()
    log_q = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.7, 0.1, 0.1, 0.1]], dtype=dtype).log()
    value, slope = FORMULAS[name][0](log_p, log_q)
    assert torch.isfinite(value).all()
    assert torch.isfinite(slope).all()
    if "reverse" not in name:  # that one would be infinite
        rows = zip(log_p.exp().tolist(), log_q.exp().tolist(), strict=True)
        assert value.tolist() == pytest.approx([FORMULAS[name][1](p, q) for p, q in rows], rel=1e-5)


def test_reverse_kl_floors_what_the_teacher_excludes() -> None:
    log_p, log_q = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-200.0, 0.0]])
    assert d.reverse_kl(log_p, log_q)[0].item() == pytest.approx(-math.log(torch.finfo(torch.float32).tiny))


@pytest.mark.parametrize("name", FORMULAS)
def test_equal_predictions_leave_nothing_to_learn(name: str) -> None:
    log_p, _ = drawn(seed=6)
    value, slope = FORMULAS[name][0](log_p, log_p)
    gradient = slope - log_p.exp() * slope.sum(-1, keepdim=True)
    assert torch.allclose(value, torch.zeros_like(value), atol=1e-12)
    assert torch.allclose(gradient, torch.zeros_like(gradient), atol=1e-12)


def test_a_certain_teacher_makes_the_acceptance_cross_entropy_however_unlikely() -> None:
    log_p = torch.tensor([[0.0, -math.inf, -math.inf]])
    log_q = torch.tensor([[-300.0, 0.0, -50.0]])
    value, slope = d.negative_log_acceptance(log_p, log_q)
    assert value.item() == pytest.approx(300)
    assert slope.tolist() == [[-1.0, 0.0, 0.0]]  # TV has none: q underflows
    assert not d.total_variation(log_p, log_q)[1].any()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), kept=st.integers(1, 8), spread=st.floats(0.1, 6))
def test_merged_outcomes_bound_what_they_hide(seed: int, kept: int, spread: float) -> None:
    log_p, log_q = drawn(seed=seed, spread=spread)
    ids = log_p.topk(kept, -1).indices
    rest = torch.ones_like(log_p, dtype=torch.bool).scatter_(1, ids, False)
    merged = [
        torch.cat((each.gather(1, ids), each.masked_fill(~rest, -math.inf).logsumexp(-1, keepdim=True)), -1)
        for each in (log_p, log_q)
    ]
    true, coarse = d.overlap(log_p, log_q), d.overlap(*merged)
    hidden = torch.minimum(merged[0][:, -1], merged[1][:, -1]).exp()  # the tail's share is at most its smaller mass
    assert (coarse >= true - 1e-12).all()
    assert (coarse <= true + hidden + 1e-12).all()
    for name in ("forward_kl", "reverse_kl", "jsd", "jsd .1", "tv"):
        divergence, _ = FORMULAS[name]
        assert (divergence(*merged)[0] <= divergence(log_p, log_q)[0] + 1e-12).all()


def test_terms_by_their_names() -> None:
    log_p, log_q = drawn()
    term = d.term("jsd", 0.3, beta=0.2)
    assert term.divergence is not None
    assert torch.equal(term.divergence(log_p, log_q)[0], d.jensen_shannon(log_p, log_q, beta=0.2)[0])
    assert not term.pooled
    assert d.term("lk_hybrid").pooled
    assert not d.term("lk_hybrid", pooled=False, eta=2.0).pooled
    assert d.term("cross_entropy", 0.5) == d.Term("cross_entropy", 0.5, None)
    with pytest.raises(KeyError):
        d.term("hinge")
