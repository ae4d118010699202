"""Text that the drafter itself writes while it learns (on-policy), after beginnings of the text it learns from."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from factory.data.blocks import TextBlocks, text_blocks
from factory.decoding.decoder import Limits, autoregressive
from factory.decoding.eager import EagerReader
from factory.decoding.sampling import Noise, Sampling
from factory.distillation.settings import OnPolicy
from factory.models.loading import context_length, eos_token_ids


def how_many(share: float, rows: int, index: int) -> int:
    """Of pass `index`'s rows, how many the drafter writes: shares that are no whole number add up over passes."""
    return int(share * rows * (index + 1) + 1e-9) - int(share * rows * index + 1e-9)


def roll_out(drafter: PreTrainedModel, rows: TextBlocks, settings: OnPolicy, seed: int, index: int) -> TextBlocks:
    """The drafter's continuations of those rows' beginnings, by this project's decoder, as rows to learn from.

    A function of (weights, rows, seed, index): what a resumed training rolls out is the same.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
    beginnings = []
    for row in range(len(rows)):
        answers = rows.answer[row].nonzero().flatten()
        if not len(answers):  # nothing to predict: any beginning will do
            beginnings.append(rows.ids[row, : max(1, int(rows.length[row]) - 1)].tolist())
            continue
        place = 0 if settings.begin == "prompt" else int(torch.randint(len(answers), (1,), generator=generator))
        beginnings.append(rows.ids[row, : max(1, int(answers[place]))].tolist())
    context = context_length(drafter)
    beginnings = [ids[-(context - 1) :] for ids in beginnings]
    limits = Limits(max_new_tokens=settings.new_tokens, eos=eos_token_ids(drafter), context=context)
    requests = [(index << 32) + row for row in range(len(beginnings))]  # no two passes share one
    noise = Noise(seed + 1, requests, device=str(drafter.device))  # not that of the target's own writing
    written = autoregressive(
        EagerReader(drafter), beginnings, Sampling(temperature=settings.temperature), limits, noise
    )
    return text_blocks([([*one.prompt, *one.tokens], len(one.prompt)) for one in written])


def decays(rows: TextBlocks, decay: float) -> torch.Tensor:  # [N]
    """Weight of each answer position: `decay` to the power of its place behind the beginning."""
    places = (rows.answer.cumsum(-1) - 1)[rows.answer].double()
    weights: torch.Tensor = (decay**places).float()
    return weights
