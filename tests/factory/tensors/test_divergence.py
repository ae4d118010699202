import math

import torch

from factory.tensors.divergence import backward_in_chunks, forward_kl, overlap
from factory.tensors.saliency import block_influence


def test_forward_kl_and_overlap_by_hand() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25]]).log()
    q = torch.tensor([[0.25, 0.25, 0.5]]).log()
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert abs(forward_kl(p, q).item() - expected) < 1e-6
    assert abs(overlap(p, q).item() - 0.75) < 1e-6


def test_forward_kl_is_directed_and_scaled_by_temperature_squared() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(5, 11, generator=generator), torch.randn(5, 11, generator=generator)
    softened = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p.double() / 3), torch.distributions.Categorical(logits=q.double() / 3)
    )
    assert torch.allclose(forward_kl(p, q, 3.0).double(), 9 * softened, atol=1e-5)
    assert not torch.allclose(forward_kl(p, q), forward_kl(q, p), atol=1e-2)


def test_chunked_backward_gives_the_plain_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(13, 6, generator=generator)
    body, head = torch.nn.Linear(6, 6), torch.nn.Linear(6, 9, bias=False)
    teacher_hidden, teacher_head = torch.randn(13, 4, generator=generator), torch.nn.Linear(4, 9)
    plain = forward_kl(teacher_head(teacher_hidden).detach(), head(body(inputs)), 2.0).mean()
    (plain * 0.25).backward()
    parameters = [*body.parameters(), *head.parameters()]
    expected = [p.grad.clone() for p in parameters if p.grad is not None]
    for parameter in parameters:
        parameter.grad = None
    value = backward_in_chunks(body(inputs), head, teacher_hidden, teacher_head, temperature=2.0, scale=0.25, chunk=5)
    assert abs(value - plain.item()) < 1e-6
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-7)


def test_block_influence_by_hand_ignores_padding() -> None:
    before = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [5.0, 5.0]]])
    after = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [0.0, 1.0]]])
    mask = torch.tensor([[True, True, False]])
    assert abs(block_influence(before, after, mask).item() - 1.0) < 1e-9  # 0 for the parallel, 1 for the orthogonal
