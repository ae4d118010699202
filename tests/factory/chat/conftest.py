"""A session between a random target, a model that drafts for it, and prompt lookup."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from talking import characters
from transformers import PreTrainedModel

from factory.chat.conversation import Conversation
from factory.chat.session import Session
from factory.chat.settings import LOOKUP, MODEL, Settings
from factory.decoding.drafters import ModelDrafter, PromptLookup
from factory.decoding.readers import open_reader


def nudged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that guesses right only sometimes."""
    made = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.015 * torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
    return made


@pytest.fixture
def session(families: dict[str, Callable[..., PreTrainedModel]]) -> Callable[..., Session]:
    """`session(drafter, k=..., temperature=..., most=...)`: a random target, a model that drafts for it, and lookup."""

    def make(
        drafter: str = MODEL,
        k: int | None = 4,
        temperature: float = 0.0,
        most: int = 40,
        template: str | None = None,
        system: str | None = None,
        eos: frozenset[int] = frozenset(),
        seed: int = 0,
        family: str = "llama",
    ) -> Session:
        model = families[family](layers=2, vocabulary=128, seed=1)
        target = open_reader(model, "eager")
        drafters = {
            MODEL: ModelDrafter(open_reader(nudged(model), "eager"), "nudged"),
            LOOKUP: PromptLookup(vocabulary=128),
        }
        conversation = Conversation(characters(template), target.context, system)
        return Session(target, drafters, conversation, Settings(drafter, k, temperature, most), eos, seed)

    return make
