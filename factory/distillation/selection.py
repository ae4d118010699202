"""The reference of AdaSPEC: a copy of the drafter, distilled first, whose losses say what such a drafter can learn."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from factory.data.blocks import TextBlocks
from factory.distillation.rows import lay
from factory.distillation.student import answer_states
from factory.limits import READ_ROWS
from factory.teaching.teacher import Teacher
from factory.tensors.divergences import forward_kl
from factory.tensors.positions import divergence_at


def reference_losses(
    drafter: PreTrainedModel,
    text: TextBlocks,
    teacher: Teacher,
    train: Callable[[PreTrainedModel], None],
    progress: Callable[[int, int, str], None],
) -> torch.Tensor:  # [answer tokens of the text] nats
    """Forward KL of a copy of the drafter, after `train` has trained it, at every answer position, row after row."""
    reference = copy.deepcopy(drafter)
    train(reference)
    head = reference.get_output_embeddings()
    found = []
    progress(0, len(text), "the reference reads")
    with torch.no_grad():
        for start in range(0, len(text), READ_ROWS):
            rows = range(start, min(start + READ_ROWS, len(text)))
            laid = lay(text.rows(rows)).to(reference.device)
            hidden = answer_states(reference, laid)
            bias = getattr(head, "bias", None)
            found.append(divergence_at(forward_kl, hidden, head.weight, bias, teacher.predictions(rows)).cpu())
            progress(rows.stop, len(text), "the reference reads")
    return torch.cat(found)
