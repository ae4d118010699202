from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from factory.tensors.divergences import DIVERGENCES, Term, overlap, term
from factory.tensors.fused import FusedLoss, fused_loss
from factory.tensors.predictions import FullPredictions, Predictions, TopPredictions

POSITIONS, CHANNELS, TOKENS = 7, 5, 11
MIX = (term("forward_kl", 0.7), term("jsd", 0.4, beta=0.3), term("tv", 0.2), term("cross_entropy", 0.5))
SMOOTH = ["forward_kl", "reverse_kl", "jsd", "tv", "negative_log_acceptance", "cross_entropy"]


@dataclass
class Case:
    hidden: Tensor
    weight: Tensor
    bias: Tensor
    teacher_hidden: Tensor
    teacher: torch.nn.Linear
    labels: Tensor
    position_weights: Tensor

    def full(self, temperature: float = 1.0) -> FullPredictions:
        return FullPredictions(self.teacher_hidden, self.teacher, temperature)

    def top(self, kept: int, temperature: float = 1.0) -> TopPredictions:
        log_p = self.full(temperature).outcomes(0, len(self.hidden)).log_p
        top = log_p.topk(kept, -1)
        return TopPredictions(top.indices, top.values, 1 - top.values.exp().sum(-1), temperature)

    def loss(self, predictions: Predictions | None, terms: Sequence[Term], **settings: object) -> FusedLoss:
        given: dict[str, object] = {"labels": self.labels, "position_weights": self.position_weights, **settings}
        return fused_loss(self.hidden, self.weight, self.bias, predictions, terms=terms, **given)  # type: ignore[arg-type]

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, [self.hidden, self.weight, self.bias]))


def case(dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    teacher = torch.nn.Linear(4, TOKENS, dtype=dtype)
    teacher.load_state_dict({"weight": drawn(TOKENS, 4), "bias": drawn(TOKENS)})
    return Case(
        hidden=drawn(POSITIONS, CHANNELS).requires_grad_(),
        weight=drawn(TOKENS, CHANNELS).requires_grad_(),
        bias=drawn(TOKENS).requires_grad_(),
        teacher_hidden=drawn(POSITIONS, 4),
        teacher=teacher,
        labels=torch.randint(TOKENS, (POSITIONS,), generator=generator),
        position_weights=torch.rand(POSITIONS, generator=generator, dtype=torch.float64).to(dtype),
    )


def plain_value(name: str, p: Tensor, q: Tensor, labels: Tensor, beta: float) -> Tensor:
    """[N] in a graph, written with probabilities."""
    if name == "cross_entropy":
        return -q.gather(1, labels[:, None]).squeeze(1).log()
    mixed = beta * p + (1 - beta) * q
    return {
        "forward_kl": (p * (p / q).log()).sum(-1),
        "reverse_kl": (q * (q / p).log()).sum(-1),
        "jsd": (beta * p * (p / mixed).log() + (1 - beta) * q * (q / mixed).log()).sum(-1),
        "tv": 1 - torch.minimum(p, q).sum(-1),
        "negative_log_acceptance": -torch.minimum(p, q).sum(-1).log(),
    }[name]


def plain_loss(case: Case, terms: Sequence[Term], temperature: float, beta: float = 0.5) -> Tensor:
    """The whole [N, V] at once, in autograd's hands."""
    logits = case.hidden @ case.weight.t() + case.bias
    p = (case.teacher(case.teacher_hidden).detach() / temperature).softmax(-1)
    total = torch.zeros((), dtype=logits.dtype)
    for each in terms:
        softened, factor = (1.0, 1.0) if each.divergence is None else (temperature, temperature**2)
        value = plain_value(each.name, p, (logits / softened).softmax(-1), case.labels, beta)
        total = total + each.weight * factor * (case.position_weights * value).sum()
    return total


def assert_close(left: Sequence[Tensor], right: Sequence[Tensor], atol: float = 1e-11) -> None:
    for one, other in zip(left, right, strict=True):
        assert torch.allclose(one, other, atol=atol), (one - other).abs().max()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_one_term_is_what_autograd_makes_of_the_whole(name: str, temperature: float) -> None:
    given, terms = case(), [term(name, 0.8)]
    expected = plain_loss(given, terms, temperature)
    found = given.loss(given.full(temperature), terms, chunk_bytes=3 * TOKENS * 8)
    assert torch.allclose(found.loss, expected)
    assert_close(given.gradients(found.loss), given.gradients(expected))
    factor = 1.0 if name == "cross_entropy" else temperature**2
    assert found.values == {name: pytest.approx(expected.item() / factor / 0.8)}
    assert found.overlap is None


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_mix_is_what_autograd_makes_of_the_whole_in_any_chunks(temperature: float) -> None:
    given = case(seed=1)
    expected = plain_loss(given, MIX, temperature, beta=0.3)
    gradients = given.gradients(expected)
    for rows in (1, 2, 3, POSITIONS, 100):
        found = given.loss(given.full(temperature), MIX, chunk_bytes=rows * TOKENS * 8)
        assert torch.allclose(found.loss, expected)
        assert_close(given.gradients(found.loss), gradients)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_against_finite_differences(name: str, cached: bool) -> None:
    given, temperature, step = case(seed=2), 1.5, 1e-6
    predictions = given.top(4, temperature) if cached else given.full(temperature)
    gradients = given.gradients(given.loss(predictions, [term(name)]).loss)
    for parameter, gradient in zip((given.hidden, given.weight, given.bias), gradients, strict=True):
        entries = parameter.detach().view(-1)
        for place in range(entries.numel()):
            kept, at = entries[place].item(), []
            for sign in (1, -1):
                entries[place] = kept + sign * step
                with torch.no_grad():
                    at.append(given.loss(predictions, [term(name)]).loss.item())
            entries[place] = kept
            assert gradient.view(-1)[place].item() == pytest.approx((at[0] - at[1]) / (2 * step), abs=1e-7)


def test_forgetting_the_square_of_the_temperature_would_show() -> None:
    given, terms = case(), [term("forward_kl")]
    expected = plain_loss(given, terms, 2.0)
    found = given.loss(given.full(2.0), terms).loss
    assert not torch.allclose(found / 4, expected)
    assert not torch.allclose(given.gradients(found)[0] / 4, given.gradients(expected)[0], atol=1e-3)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", ["tvd_plus_plus", "lk_hybrid"])
def test_detached_factors_against_their_surrogates(name: str, cached: bool) -> None:
    given, kept = case(seed=3), 4
    predictions = given.top(kept) if cached else given.full()
    log_p, ids, _ = predictions.outcomes(0, POSITIONS)
    p = log_p.exp()
    q = (given.hidden @ given.weight.t() + given.bias).softmax(-1)
    if ids is not None:
        kept_q = q.gather(1, ids)
        q = torch.cat((kept_q, 1 - kept_q.sum(-1, keepdim=True)), -1)
    still, w = q.detach(), given.position_weights
    if name == "lk_hybrid":
        mean = (w * torch.minimum(p, still).sum(-1)).sum() / w.sum()
        share = torch.exp(-3 * mean)
        value = share * (p * (p / q).log()).sum(-1) + (1 - share) * (1 - torch.minimum(p, q).sum(-1))
    else:
        reward = (p > still).double()
        mean = (still * reward).sum(-1, keepdim=True)
        deviation = (still * (reward - mean) ** 2).sum(-1, keepdim=True).sqrt()
        value = -(still * (reward - mean) / deviation * q.log()).sum(-1)
    expected = given.gradients((w * value).sum())
    found = given.loss(predictions, [term(name)], chunk_bytes=2 * TOKENS * 8)
    assert_close(given.gradients(found.loss), expected)


def test_an_unpooled_hybrid_goes_by_each_position() -> None:
    given = case(seed=3)
    pooled, own = (given.loss(given.full(), [term("lk_hybrid", pooled=pooled)]).loss for pooled in (True, False))
    assert not torch.allclose(pooled, own, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kept", [TOKENS - 1, TOKENS])
@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_a_cache_of_all_or_all_but_one_token_is_the_whole(name: str, kept: int, temperature: float) -> None:
    given, terms = case(seed=4), [term(name, 0.6), term("cross_entropy", 0.4)]
    whole = given.loss(given.full(temperature), terms, with_overlap=True)
    cached = given.loss(given.top(kept, temperature), terms, with_overlap=True, chunk_bytes=2 * TOKENS * 8)
    assert torch.allclose(whole.loss, cached.loss)
    assert whole.overlap == pytest.approx(cached.overlap)
    assert_close(given.gradients(whole.loss), given.gradients(cached.loss))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), kept=st.integers(1, TOKENS), scale=st.floats(0.1, 2))
def test_the_overlap_with_a_cache_bounds_the_true_one(seed: int, kept: int, scale: float) -> None:
    given = case(seed=seed, scale=scale)
    given.position_weights.fill_(1)
    true, coarse = (given.loss(each, [], with_overlap=True).overlap for each in (given.full(), given.top(kept)))
    assert true is not None
    assert coarse is not None
    q = (given.hidden @ given.weight.t() + given.bias).softmax(-1)
    rest = 1 - q.gather(1, given.top(kept).ids).sum(-1)
    most = torch.minimum(given.top(kept).tail, rest).clamp(min=0).sum().item()
    assert true - 1e-9 <= coarse <= true + most + 1e-9


def test_the_overlap_is_weighed_and_softened() -> None:
    given = case()
    found = given.loss(given.full(2.0), MIX, with_overlap=True).overlap
    p = (given.teacher(given.teacher_hidden) / 2).log_softmax(-1)
    q = ((given.hidden @ given.weight.t() + given.bias) / 2).log_softmax(-1)
    assert found == pytest.approx((given.position_weights * overlap(p.detach(), q.detach())).sum().item())


@pytest.mark.parametrize("name", list(DIVERGENCES))
@pytest.mark.parametrize("cached", [False, True])
def test_what_is_impossible_breaks_nothing(name: str, cached: bool) -> None:
    given = case(torch.float32)
    with torch.no_grad():
        given.teacher.bias[:6] = float("-inf")
        given.bias[6:] = -500.0  # what the teacher allows is nothing to the student
    predictions = given.top(3) if cached else given.full()
    found = given.loss(predictions, [term(name, 100.0)])
    assert torch.isfinite(found.loss)
    for gradient in given.gradients(found.loss):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_a_tail_without_mass_on_either_side_breaks_nothing(name: str) -> None:
    given = case(torch.float32)
    with torch.no_grad():
        given.bias[2:] = -500.0
    ids = torch.tensor([[0, 1]]).expand(POSITIONS, 2)
    for tail in (0.0, -1e-7, 1e-3, 0.9):
        kept = torch.full((POSITIONS, 2), (1 - max(tail, 0)) / 2).log().half()
        predictions = TopPredictions(ids, kept, torch.full((POSITIONS,), tail))
        found = given.loss(predictions, [term(name, 100.0)])
        assert torch.isfinite(found.loss)
        for gradient in given.gradients(found.loss):
            assert torch.isfinite(gradient).all()


def test_measured_terms_and_frozen_parameters_cost_no_gradient() -> None:
    given = case()
    measured = given.loss(given.full(), [term("forward_kl"), term("tv", 0.0)])
    alone = given.loss(given.full(), [term("forward_kl")])
    assert measured.values["tv"] > 0
    assert_close(given.gradients(measured.loss), given.gradients(alone.loss))
    given.weight.requires_grad_(False)
    given.bias.requires_grad_(False)
    again = given.loss(given.full(), [term("forward_kl")]).loss
    again.backward()
    assert given.weight.grad is None
    assert given.bias.grad is None
    assert given.hidden.grad is not None
    with torch.no_grad():
        assert not given.loss(given.full(), MIX).loss.requires_grad


def test_the_backward_pass_scales_accumulates_and_runs_once() -> None:
    given = case()
    plain_loss(given, MIX, 1.0, beta=0.3).mul(0.25).backward()
    expected = [each.grad.clone() for each in (given.hidden, given.weight, given.bias) if each.grad is not None]
    loss = given.loss(given.full(), MIX).loss
    (loss * 0.25).backward(retain_graph=True)
    found = [each.grad for each in (given.hidden, given.weight, given.bias) if each.grad is not None]
    assert_close(found, [2 * each for each in expected])
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


def test_hooks_on_the_head_fire_once_however_many_chunks() -> None:
    given, fired = case(), []
    given.weight.register_post_accumulate_grad_hook(lambda parameter: fired.append(parameter.shape))
    given.loss(given.full(), MIX, chunk_bytes=1).loss.backward()
    assert fired == [given.weight.shape]


@pytest.mark.parametrize("cached", [False, True])
def test_autocast_to_bfloat16_is_close(cached: bool) -> None:
    given = case(torch.float32, scale=0.5)
    given.position_weights.fill_(1)
    predictions = given.top(5, 2.0) if cached else given.full(2.0)
    exact = given.loss(predictions, MIX)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = given.loss(predictions, MIX, chunk_bytes=2 * TOKENS * 4)
    assert rounded.loss.dtype == torch.float32
    assert rounded.loss.item() == pytest.approx(exact.loss.item(), rel=2e-2)
    assert rounded.loss.item() != exact.loss.item()
    for one, other in zip(given.gradients(rounded.loss), given.gradients(exact.loss), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 2e-2 * other.norm()


def test_weights_in_bfloat16_get_gradients_in_bfloat16() -> None:
    exact, given = case(torch.float32, scale=0.5), case(torch.float32, scale=0.5)
    given.weight = given.weight.detach().bfloat16().requires_grad_()
    given.hidden = given.hidden.detach().bfloat16().requires_grad_()
    found = given.gradients(given.loss(exact.full(), MIX).loss)
    assert [each.dtype for each in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for one, other in zip(found, exact.gradients(exact.loss(exact.full(), MIX).loss), strict=True):
        assert (one.float() - other).norm() < 3e-2 * other.norm()


def test_what_does_not_fit_is_said() -> None:
    given = case()
    for settings_, words in (
        ({"predictions": None}, "teacher's predictions"),
        ({"labels": None}, "labels"),
        ({"labels": given.labels[1:]}, "6 labels for 7 positions"),
        ({"terms": [MIX[0], MIX[0]]}, "same name"),
        ({"predictions": FullPredictions(given.teacher_hidden, torch.nn.Linear(4, 12, dtype=torch.float64))}, "12"),
    ):
        with pytest.raises(ValueError, match=words):
            given.loss(**{"predictions": given.full(), "terms": MIX, **settings_})  # type: ignore[arg-type]
    assert given.loss(None, [term("cross_entropy")]).loss.requires_grad


def drawing(case: Case, top: int, drawn: int, seed: int, temperature: float = 1.0) -> TopPredictions:
    """The likeliest tokens, and others drawn from what is left of p."""
    log_p = case.full(temperature).outcomes(0, len(case.hidden)).log_p
    best = log_p.topk(top, -1)
    others = log_p.exp().scatter(1, best.indices, 0.0)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(others, drawn, replacement=True, generator=generator)
    ids = torch.cat((best.indices, chosen), -1)
    return TopPredictions(ids, log_p.gather(1, ids), others.sum(-1), temperature, drawn)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "tv"])
def test_drawn_tokens_stand_for_all_others(name: str, temperature: float) -> None:
    """Value, overlap and every gradient are those of the whole vocabulary in the mean, and nearly so for many draws."""
    one = case(scale=0.5)  # where p is tiny and q is not, draws are rare and heavy
    whole = one.loss(one.full(temperature), [term(name)], with_overlap=True)
    exact = one.gradients(whole.loss)
    many = one.loss(drawing(one, 3, 400_000, 0, temperature), [term(name)], with_overlap=True)
    assert many.values[name] == pytest.approx(whole.values[name], rel=0.02)
    assert many.overlap == pytest.approx(whole.overlap, rel=0.01)
    for found, expected in zip(one.gradients(many.loss), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.03 * float(expected.abs().max()))
    few = [one.loss(drawing(one, 3, 2, seed, temperature), [term(name)], with_overlap=True) for seed in range(600)]
    mean = sum(each.values[name] for each in few) / len(few)
    spread = (sum((each.values[name] - mean) ** 2 for each in few) / len(few)) ** 0.5
    assert abs(mean - whole.values[name]) < 4 * spread / len(few) ** 0.5 + 1e-9
    # the tail as one outcome is off by more than chance
    coarse = one.loss(one.top(3, temperature), [term(name)], with_overlap=True)
    assert coarse.overlap is not None and whole.overlap is not None
    assert many.overlap is not None and coarse.overlap > whole.overlap + 5 * abs(many.overlap - whole.overlap)


@pytest.mark.parametrize("name", SMOOTH[:-1])
def test_the_gradient_of_drawn_tokens_is_that_of_their_value(name: str) -> None:
    one = case()
    predictions = drawing(one, 3, 4, 1)
    log_p, ids, shift = predictions.outcomes(0, POSITIONS)
    assert ids is not None and shift is not None
    log_q = (one.hidden @ one.weight.t() + one.bias).log_softmax(-1).gather(1, ids) + shift
    p, q = log_p.exp(), log_q.exp()
    loss = (one.position_weights * plain_value(name, p, q, one.labels, 0.5)).sum()
    if name == "tv":  # of sums that are not 1
        loss = (one.position_weights * (p - q).clamp(min=0).sum(-1)).sum()
    expected = one.gradients(loss)
    found = one.gradients(one.loss(predictions, [term(name)]).loss)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_where_nothing_is_left_over_draws_weigh_nothing() -> None:
    one = case(torch.float32)
    log_p = one.full().outcomes(0, POSITIONS).log_p
    ids = torch.cat((log_p.sort(-1, descending=True).indices, torch.zeros(POSITIONS, 2, dtype=torch.long)), -1)
    predictions = TopPredictions(ids, log_p.gather(1, ids), torch.zeros(POSITIONS), 1.0, 2)
    found, whole = one.loss(predictions, MIX), one.loss(one.full(), MIX)
    assert found.loss.item() == pytest.approx(whole.loss.item(), rel=1e-5)
    for left, right in zip(one.gradients(found.loss), one.gradients(whole.loss), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
