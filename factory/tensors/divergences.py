"""Divergences of a student's predictions q from a teacher's p, each with its slope in closed form.

Every divergence is `(log_p, log_q) -> (value [C], slope [C, K])`: log-probabilities over K outcomes at C positions go
in, and out come nats (or a probability) and slope_i = d value / d log q_i, the log q_i taken for free variables. A
slope goes through the softmax in `factory/tensors/fused.py`: d value / d logit_i = slope_i - q_i * sum(slope).

K is the vocabulary, or where a teacher kept its k likeliest tokens k + 1, all others being one, or k + m, m of them
being drawn to stand for the others (`factory/tensors/predictions.py`). Merging outcomes hides what differs among them:
f-divergences (KL both ways, JSD, TV) are then lower bounds of the true ones (data processing), and the overlap is an
upper bound.

log_p may be -inf (0 log 0 = 0); log_q must be finite. Where log_p itself counts, a probability under the dtype's
smallest normal number counts as that number: a student that is certain of what the teacher excludes costs 87 nats in
float32 by reverse KL, not infinity. No graph is built: buffers are overwritten, so inputs come without one. Results
have the dtype of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Divergence = Callable[..., tuple[Tensor, Tensor]]  # (log_p [C, K], log_q [C, K], settings) -> ([C], [C, K])
CROSS_ENTROPY = "cross_entropy"


def overlap(log_p: Tensor, log_q: Tensor) -> Tensor:  # [C, K] twice -> [C]
    """sum_i min(p_i, q_i): the probability that a guess is accepted (Leviathan et al., arXiv 2211.17192, cor. 3.6)."""
    return torch.minimum(log_p, log_q).exp_().sum(-1)


def forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) = sum_i p_i (log p_i - log q_i), in nats: covers whatever the teacher may say."""
    p = log_p.exp()
    value = _floored(log_p).sub_(log_q).mul_(p).sum(-1)
    return value, p.neg_()


def reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p) = sum_i q_i (log q_i - log p_i), in nats: keeps to what the teacher finds likely."""
    q = log_q.exp()
    parts = _floored(log_p).neg_().add_(log_q).mul_(q)
    value = parts.sum(-1)
    return value, parts.add_(q)


def jensen_shannon(log_p: Tensor, log_q: Tensor, *, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, in nats, for 0 < beta < 1.

    The generalised JSD of GKD (Agarwal et al., arXiv 2306.13649, section 2). As beta goes to 0 it is beta * KL(p || q),
    as beta goes to 1 it is (1 - beta) * KL(q || p): near an end a term needs a larger weight.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta}, and must lie between 0 and 1")
    log_m = log_p + math.log(beta)
    torch.logaddexp(log_m, log_q + math.log1p(-beta), out=log_m)
    value = _floored(log_p).sub_(log_m).mul_(log_p.exp()).sum(-1).mul_(beta)
    slope = torch.sub(log_q, log_m, out=log_m).mul_(log_q.exp()).mul_(1 - beta)  # what m adds cancels
    return value.add_(slope.sum(-1)), slope


def total_variation(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """1 - sum_i min(p_i, q_i), computed as sum_i max(p_i - q_i, 0): the probability that a guess is rejected."""
    q = log_q.exp()
    missing = log_p.exp().sub_(q).clamp_(min=0)
    return missing.sum(-1), q.mul_(missing.sign_()).neg_()


def total_variation_plus_plus(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """TVD++ (Goel et al., arXiv 2403.00858): TV's policy gradient with normalised rewards.

    TV's gradient is -E_{i ~ q}[r_i grad log q_i], with the reward r_i = 1 where p_i > q_i and 0 elsewhere; TVD++ puts
    (r_i - mu) / sigma in the reward's place, mean and standard deviation of the rewards, both without gradient. Our
    reading: mu and sigma^2 are taken at each position on its own, over the outcomes, exactly under the student's q
    (mu = sum of q where p > q, sigma^2 = mu (1 - mu)); normalised over the rewards of a whole batch, positions would
    keep their proportions. Subtracting mu then changes nothing, since E_q[grad log q] = 0, and TVD++ is TV's gradient
    divided by sigma: its L1 norm is 2 sqrt(mu (1 - mu)), where TV's is 2 mu (1 - mu). It vanishes where sigma does, at
    p = q for one, but not close by.

    It is defined by its gradient alone, so the value is TV's, for a curve to read; the slope is not its derivative.
    """
    q = log_q.exp()
    missing = log_p.exp().sub_(q).clamp_(min=0)
    value = missing.sum(-1)
    rewarded = missing.sign_().mul_(q)  # q_i r_i
    mean = rewarded.sum(-1, keepdim=True)
    others = q.sub_(rewarded)
    rest = others.sum(-1, keepdim=True)  # 1 - mean, without cancellation
    deviation = (mean * rest).clamp_(min=torch.finfo(q.dtype).tiny).sqrt_()
    return value, rewarded.mul_(-rest / deviation).addcmul_(others, mean / deviation)


def negative_log_acceptance(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """-log sum_i min(p_i, q_i), in nats: LK-alpha of Samarin et al., arXiv 2602.23881, at each position on its own.

    The authors' code (SpecForge, `compute_lk_loss`) takes the logarithm of the batch's mean acceptance instead, which
    hardly agreeing positions weigh less in. The gradient is TV's over the acceptance, so it does not fade where p and
    q hardly overlap; it is computed from logarithms, and so does not underflow there either. With a one-hot p it is
    cross-entropy.
    """
    low = torch.minimum(log_p, log_q)
    log_acceptance = low.logsumexp(-1, keepdim=True)
    slope = low.sub_(log_acceptance).exp_().mul_(log_q < log_p).neg_()
    return log_acceptance.squeeze(-1).neg_(), slope


def lk_hybrid(
    log_p: Tensor, log_q: Tensor, *, eta: float = 3.0, acceptance: Tensor | float | None = None
) -> tuple[Tensor, Tensor]:
    """lambda KL(p || q) + (1 - lambda) TV with lambda = exp(-eta * acceptance), which has no gradient.

    LK-lambda of Samarin et al., arXiv 2602.23881, whose best eta is 3. Their code takes one acceptance for a whole
    batch, the mean overlap of its positions (SpecForge, `compute_acceptance_rate`): hand it over as `acceptance`, as
    `fused_loss` does for a pooled term. None takes each position's own, as vLLM's speculators do: then positions that
    agree turn to TV before others.
    """
    missing, slope = total_variation(log_p, log_q)
    divergence, toward = forward_kl(log_p, log_q)
    if acceptance is None:
        acceptance = 1 - missing
    share = torch.as_tensor(acceptance, dtype=log_q.dtype, device=log_q.device).mul(-eta).exp_()  # [C] or []
    return torch.lerp(missing, divergence, share), slope.lerp_(toward, share.unsqueeze(-1))


def _floored(log_p: Tensor) -> Tensor:
    """A new tensor without -inf: below the logarithm of the smallest normal number nothing counts."""
    return log_p.clamp(min=math.log(torch.finfo(log_p.dtype).tiny))


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jensen_shannon,
    "tv": total_variation,
    "tvd_plus_plus": total_variation_plus_plus,
    "negative_log_acceptance": negative_log_acceptance,
    "lk_hybrid": lk_hybrid,
}


@dataclass(frozen=True)
class Term:
    """One summand: a divergence, or cross-entropy on labels where there is none. With weight 0 it is only measured."""

    name: str  # under which its sum is reported
    weight: float
    divergence: Divergence | None
    pooled: bool = False  # it takes `acceptance=`, the mean overlap of all positions: one more pass before the others


def term(name: str, weight: float = 1.0, *, pooled: bool | None = None, **settings: float) -> Term:
    """A term by its name in recipes, cross_entropy or one of `DIVERGENCES`, with settings such as beta or eta.

    lk_hybrid is pooled unless told otherwise. Raises KeyError where no divergence has that name.
    """
    if name == CROSS_ENTROPY:
        return Term(name, weight, None)
    divergence = partial(DIVERGENCES[name], **settings) if settings else DIVERGENCES[name]
    return Term(name, weight, divergence, pooled=name == "lk_hybrid" if pooled is None else pooled)
