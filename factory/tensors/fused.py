"""A student's head fused with its loss: loss and gradients come chunk by chunk over positions, in closed form.

    loss = sum_n w_n (sum over divergences: weight T^2 value_n  +  cross-entropy's weight * -log q(label_n))

with q and p softened by T in divergences and q as it is in cross-entropy; T^2 keeps the gradient's size independent of
T (Hinton et al., arXiv 1503.02531, section 2). The logits of one chunk exist at a time: about four buffers of
`chunk_bytes`, whatever N is. The forward pass leaves the gradients of hidden states, weight and bias, the backward pass
scales them: one node of the graph, so hooks on the head's parameters (DDP, FSDP) fire once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from factory.tensors.divergences import Term, overlap
from factory.tensors.predictions import Predictions

CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class FusedLoss:
    """What `fused_loss` returns. The sums count every position by its weight, but no term's weight, nor T^2."""

    loss: Tensor  # scalar, with a graph; its backward pass can run once
    names: tuple[str, ...]  # of the terms
    sums: Tensor  # [terms + 1], on the device; the last one is the overlap's
    with_overlap: bool

    @cached_property
    def _read(self) -> list[float]:
        """Asked for once, and only where they are wanted: it waits until the device has done all that is queued."""
        found: list[float] = self.sums.tolist()
        return found

    @property
    def values(self) -> dict[str, float]:
        """sum_n w_n value_n of each term: nats, probabilities for the variations."""
        return dict(zip(self.names, self._read, strict=False))

    @property
    def overlap(self) -> float | None:
        """sum_n w_n sum_v min(p, q) at T; None where it was not asked for."""
        return self._read[-1] if self.with_overlap else None


def fused_loss(
    hidden: Tensor,  # [N, D] student's last hidden states, with their graph
    weight: Tensor,  # [V, D] of the student's head
    bias: Tensor | None,  # [V]
    predictions: Predictions | None,  # the teacher's, at the same N positions; None for cross-entropy alone
    *,
    terms: Sequence[Term],
    labels: Tensor | None = None,  # [N] int64: the tokens that follow
    position_weights: Tensor | None = None,  # [N]; ones where None. The caller puts 1 / tokens in
    with_overlap: bool = False,  # one more pass over each chunk
    chunk_bytes: int = CHUNK_BYTES,  # of one chunk's logits in the precision that sums are made in
) -> FusedLoss:
    """The weighted sum of `terms` over N positions, and where gradients are wanted its graph.

    Under autocast to bfloat16 the products run in bfloat16, with the weight cast once; softmax, values and the head's
    gradients are float32 all the same. Float64 stays float64. Autocast to float16 is not followed: gradients of single
    logits would fall under its range. A pooled term's acceptance is the mean by `position_weights` over this call's
    positions, at the predictions' temperature. Raises ValueError where lengths or vocabularies differ, or where a term
    lacks what it needs.
    """
    _check(hidden, weight, predictions, terms, labels, position_weights, with_overlap)
    device, precise = hidden.device, torch.promote_types(hidden.dtype, torch.float32)
    kind = device.type
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    if position_weights is None:
        position_weights = torch.ones(len(hidden), device=device)
    loss_of = _Loss(
        head=weight.detach().to(torch.bfloat16 if half else weight.dtype),
        bias=None if bias is None else bias.detach().to(precise),
        predictions=predictions,
        labels=labels,
        position_weights=position_weights.detach().to(device, precise).unsqueeze(1),
        terms=tuple(terms),
        with_overlap=with_overlap,
        precise=precise,
        rows=max(1, chunk_bytes // (len(weight) * precise.itemsize)),
        wanted=tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (hidden, weight, bias)),
    )
    loss, sums = _Fused.apply(hidden, weight, bias, loss_of)  # type: ignore[no-untyped-call]
    return FusedLoss(loss, tuple(each.name for each in terms), sums.detach(), with_overlap)


def _check(
    hidden: Tensor,
    weight: Tensor,
    predictions: Predictions | None,
    terms: Sequence[Term],
    labels: Tensor | None,
    position_weights: Tensor | None,
    with_overlap: bool,
) -> None:
    if len({each.name for each in terms}) < len(terms):
        raise ValueError("two terms have the same name")
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden states have {hidden.shape[1]} channels, the head has {weight.shape[1]}")
    if predictions is None and (with_overlap or any(each.divergence for each in terms)):
        raise ValueError("divergences and the overlap need the teacher's predictions")
    if labels is None and any(each.divergence is None for each in terms):
        raise ValueError("cross-entropy needs labels")
    for what, held in (("predictions", predictions), ("labels", labels), ("position weights", position_weights)):
        if held is not None and len(held) != len(hidden):
            raise ValueError(f"there are {len(held)} {what} for {len(hidden)} positions")


@dataclass(frozen=True)
class _Loss:
    """What one call computes, its tensors without graphs."""

    head: Tensor  # [V, D] in the dtype that products run in
    bias: Tensor | None  # [V], precise
    predictions: Predictions | None
    labels: Tensor | None  # [N]
    position_weights: Tensor  # [N, 1], precise
    terms: tuple[Term, ...]
    with_overlap: bool
    precise: torch.dtype  # of softmax, values and sums
    rows: int  # positions in a chunk
    wanted: tuple[bool, ...]  # gradients of hidden states, weight, bias

    def chunks(self) -> list[slice]:
        """Positions, `rows` at a time."""
        count = len(self.position_weights)
        return [slice(start, min(start + self.rows, count)) for start in range(0, count, self.rows)]

    def pooled(self, hidden: Tensor) -> _Loss:
        """The same with every pooled term's acceptance filled in, measured on hidden states [N, D]."""
        if self.predictions is None or not any(each.pooled for each in self.terms):
            return self
        total = self.position_weights.sum(dtype=torch.float64)
        acceptance = torch.zeros_like(total)
        for at in self.chunks():
            log_q = self._logits(hidden[at]).div_(self.predictions.temperature).log_softmax(-1)
            log_p, log_q, _, _ = self._outcomes(log_q, at)
            acceptance += (self.position_weights[at, 0] * overlap(log_p, log_q)).sum(dtype=torch.float64)
        acceptance /= torch.where(total == 0, 1.0, total)
        terms = (
            replace(each, divergence=partial(each.divergence, acceptance=acceptance))
            if each.pooled and each.divergence
            else each
            for each in self.terms
        )
        return replace(self, terms=tuple(terms))

    def chunk(self, hidden: Tensor, at: slice, sums: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss [] of one chunk, and d loss / d logits [C, V] where it is wanted; adds to sums [terms + 1]."""
        weights, wanted = self.position_weights[at], any(self.wanted)
        divergences = [(place, each) for place, each in enumerate(self.terms) if each.divergence]
        entropy = next(((place, each.weight) for place, each in enumerate(self.terms) if not each.divergence), None)
        taught = bool(divergences) or self.with_overlap
        temperature = self.predictions.temperature if self.predictions and taught else 1.0
        logits = self._logits(hidden[at])
        loss, sharp, pull = torch.zeros((), dtype=torch.float64, device=hidden.device), None, 0.0
        if entropy and (temperature != 1 or not taught):  # a softmax of its own
            log_q = logits.log_softmax(-1)
            loss += self._entropy(log_q, at, sums, *entropy)
            if wanted:
                sharp = self._toward_labels(log_q.exp_().mul_(entropy[1]), at, entropy[1]).mul_(weights)
            del log_q
            if not taught:
                return loss, sharp
        log_q = (logits if temperature == 1 else logits.div_(temperature)).log_softmax(-1)
        del logits
        if entropy and temperature == 1:
            pull = entropy[1]
            loss += self._entropy(log_q, at, sums, *entropy)
        log_p, log_q, tail, ids = self._outcomes(log_q, at)
        slope = None
        for place, each in divergences:
            assert each.divergence is not None
            value, direction = each.divergence(log_p, log_q)
            value = (weights[:, 0] * value).sum(dtype=torch.float64)
            sums[place] += value
            if each.weight:
                loss += value * (each.weight * temperature**2)
                direction.mul_(each.weight)
                slope = direction if slope is None else slope.add_(direction)
            del direction
        if self.with_overlap:
            sums[-1] += (weights[:, 0] * overlap(log_p, log_q)).sum(dtype=torch.float64)
        if not wanted:
            return loss, None
        gradient = _projected(torch.zeros_like(log_q) if slope is None else slope, log_q, tail, ids, pull)
        if pull:
            self._toward_labels(gradient, at, pull)
        gradient.mul_(weights * temperature)  # T^2 / T
        return loss, gradient if sharp is None else gradient.add_(sharp)

    def _logits(self, hidden: Tensor) -> Tensor:
        """[C, D] -> [C, V], precise, in a buffer of their own."""
        logits = (hidden @ self.head.t()).to(self.precise)
        return logits if self.bias is None else logits.add_(self.bias)

    def _outcomes(self, log_q: Tensor, at: slice) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """(log_p, log_q) [C, K] of [C, V]; of a cache also its ids, and in log_q's buffer q [C, V] of all other tokens.

        Where tokens are drawn for the others, it is q of all tokens.
        """
        assert self.predictions is not None
        log_p, ids, shift = self.predictions.outcomes(at.start, at.stop)
        log_p = log_p.to(log_q.dtype)
        if ids is None:
            if log_p.shape != log_q.shape:
                raise ValueError(f"the teacher has {log_p.shape[1]} tokens, the student {log_q.shape[1]}")
            return log_p, log_q, None, None
        kept = log_q.gather(1, ids)
        if shift is not None:
            return log_p, kept.add_(shift), log_q.exp_(), ids
        tail = log_q.exp_().scatter_(1, ids, 0.0)
        limits = torch.finfo(tail.dtype)
        rest = tail.sum(-1, keepdim=True).clamp_(
            min=limits.tiny / limits.eps
        )  # no cancellation, as 1 - kept would have
        return log_p, torch.cat((kept, rest.log_()), -1), tail, ids

    def _entropy(self, log_q: Tensor, at: slice, sums: Tensor, place: int, weight: float) -> Tensor:
        """Cross-entropy's share [] of the loss, from log_q [C, V] at T = 1."""
        assert self.labels is not None
        picked = log_q.gather(1, self.labels[at, None])
        value = -(self.position_weights[at] * picked).sum(dtype=torch.float64)
        sums[place] += value
        return value * weight

    def _toward_labels(self, gradient: Tensor, at: slice, weight: float) -> Tensor:
        """Takes `weight` from the label's entry of every row of [C, V], in place."""
        assert self.labels is not None
        labels = self.labels[at, None]
        return gradient.scatter_add_(1, labels, gradient.new_full(labels.shape, -weight))


def _projected(slope: Tensor, log_q: Tensor, tail: Tensor | None, ids: Tensor | None, pull: float) -> Tensor:
    """Slopes [C, K] through the softmax: slope + q (pull - sum(slope)), [C, V]; `pull` is cross-entropy's share of q.

    What "all others" get is shared out by q among the tokens of the tail. Where their mass is under 1e-31 (float32) it
    counts as that, in the value too, so that nothing overflows: their gradient then fades with their mass.
    """
    toward_q = pull - slope.sum(-1, keepdim=True)
    if tail is None or ids is None:
        return slope.addcmul_(log_q.exp_(), toward_q)
    if slope.shape[1] == ids.shape[1]:  # no outcome for all others: `tail` is q of every token
        return tail.mul_(toward_q).scatter_add_(1, ids, slope)
    q = log_q.exp_()
    tail.mul_(slope[:, -1:] / q[:, -1:] + toward_q)
    return tail.scatter_(1, ids, slope[:, :-1].addcmul(q[:, :-1], toward_q))


class _Fused(torch.autograd.Function):
    """Loss [] and sums [terms + 1]; the gradients are made with them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, loss_of: _Loss) -> tuple[Tensor, Tensor]:
        """Chunk by chunk."""
        device, precise = hidden.device, loss_of.precise
        of_hidden, of_weight, of_bias = (
            torch.zeros(shape, dtype=dtype, device=device) if wanted and shape is not None else None
            for wanted, shape, dtype in zip(
                loss_of.wanted,
                (hidden.shape, weight.shape, None if bias is None else bias.shape),
                (hidden.dtype, precise, precise),
                strict=True,
            )
        )
        loss = torch.zeros((), dtype=torch.float64, device=device)
        sums = torch.zeros(len(loss_of.terms) + 1, dtype=torch.float64, device=device)
        with torch.autocast(device.type, enabled=False):
            inputs = hidden.to(loss_of.head.dtype)
            loss_of = loss_of.pooled(inputs)
            for at in loss_of.chunks():
                part, gradient = loss_of.chunk(inputs, at, sums)
                loss += part
                if gradient is None:
                    continue
                if of_bias is not None:
                    of_bias += gradient.sum(0)
                gradient = gradient.to(inputs.dtype)
                if of_hidden is not None:
                    of_hidden[at] = gradient @ loss_of.head
                if of_weight is not None:
                    _add_product(of_weight, gradient, inputs[at])
                del gradient
        ctx.gradients = [
            None if held is None else held.to(parameter.dtype)
            for held, parameter in (
                (of_hidden, hidden),
                (of_weight, weight),
                (of_bias, weight if bias is None else bias),
            )
        ]
        ctx.mark_non_differentiable(sums)
        return loss.to(precise), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scales in place what the forward pass left, once."""
        held, ctx.gradients = ctx.gradients, None
        if held is None:
            raise RuntimeError("a fused loss keeps its gradients for one backward pass")
        return (*(None if gradient is None else gradient.mul_(scale) for gradient in held), None)


def _add_product(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """Adds gradient^T @ hidden, [C, V] and [C, D], to total [V, D]; of a product in half precision a piece exists."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.t(), hidden)
        return
    rows = max(1, CHUNK_BYTES // (total.shape[1] * total.itemsize))
    for start in range(0, len(total), rows):
        total[start : start + rows] += gradient[:, start : start + rows].t() @ hidden
