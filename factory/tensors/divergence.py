"""Divergences between a teacher's and a student's predictions, chunked over positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

Head = Callable[[torch.Tensor], torch.Tensor]  # hidden states [C, D] -> logits [C, V]


def forward_kl(
    teacher_logits: torch.Tensor,  # [C, V]
    student_logits: torch.Tensor,  # [C, V]
    temperature: float = 1.0,
) -> torch.Tensor:  # [C] nats
    """T^2 * KL(p_T || q_T) per position, in float32.

    The factor T^2 keeps the gradient's size independent of T (Hinton et al., arXiv 1503.02531, §2).
    """
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def overlap(teacher_logits: torch.Tensor, student_logits: torch.Tensor) -> torch.Tensor:  # [C, V] twice -> [C]
    """sum_v min(p, q) per position: the probability that a guess is accepted (Leviathan et al., cor. 3.6)."""
    p = teacher_logits.float().softmax(-1)
    q = student_logits.float().softmax(-1)
    return torch.minimum(p, q).sum(-1)


def backward_in_chunks(
    student_hidden: torch.Tensor,  # [N, D] with a graph behind it
    student_head: Head,
    teacher_hidden: torch.Tensor,  # [N, D'] without one
    teacher_head: Head,
    *,
    temperature: float,
    scale: float,
    chunk: int,
) -> float:
    """Mean forward KL over N positions; adds `scale` times its gradient to every parameter behind it.

    The logits of at most `chunk` positions exist at once: each chunk's graph ends at a detached
    copy of its hidden states and is freed at once; the hidden states' gradient then enters the
    student's body in one backward pass. Peak memory is chunk * V instead of N * V, several times.
    """
    count = student_hidden.shape[0]
    cut = student_hidden.detach().requires_grad_()
    total = 0.0
    for start in range(0, count, chunk):
        with torch.no_grad():
            teacher_logits = teacher_head(teacher_hidden[start : start + chunk])
        loss = forward_kl(teacher_logits, student_head(cut[start : start + chunk]), temperature).sum()
        torch.autograd.backward(loss * (scale / count))
        total += loss.item()
    torch.autograd.backward(student_hidden, cut.grad)
    return total / count
