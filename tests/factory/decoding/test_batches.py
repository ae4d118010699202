"""A row of a ragged batch is what it is alone: tokens, passes and counts, at any size of the batch."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from factory.decoding.decoder import Generation, Limits, autoregressive, speculative
from factory.decoding.drafters import Drafter, ModelDrafter, PromptLookup
from factory.decoding.eager import EagerReader
from factory.decoding.sampling import Noise, Sampling

COUNT = 11
DICE = random.Random(0)
# short ones often, so that they differ in everything; some repeat themselves, for prompt lookup
PROMPTS = [
    [DICE.randrange(300) for _ in range(DICE.choice([1, 2, 3, 9, 30]))] * DICE.choice([1, 1, 3]) for _ in range(64)
]
REQUESTS = [1_000 - number for number in range(64)]


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(Sampling(), id="greedy"),
        pytest.param(Sampling(temperature=1.2, top_k=40, top_p=0.95, repetition_penalty=1.1), id="sampled"),
    ],
)
def test_a_row_is_what_it_is_alone_in_batches_of_1_to_64(
    target: PreTrainedModel, noisy: Callable[..., PreTrainedModel], sampling: Sampling
) -> None:
    reader = EagerReader(target)
    free = autoregressive(reader, PROMPTS[:4], sampling, Limits(COUNT, frozenset(), 160), Noise(0, REQUESTS[:4]))
    # ends that occur, a context that some prompts nearly fill, and room for the others
    eos = frozenset({free[0].tokens[3], free[1].tokens[6], free[3].tokens[8]})
    limits = Limits(COUNT, eos, max(map(len, PROMPTS)) + 6)
    model, lookup = ModelDrafter(EagerReader(noisy(target))), PromptLookup(vocabulary=300)

    def decode(drafter: Drafter | None, rows: slice) -> list[Generation]:
        noise = Noise(5, REQUESTS[rows])
        if drafter is None:
            return autoregressive(reader, PROMPTS[rows], sampling, limits, noise)
        return speculative(reader, drafter, PROMPTS[rows], 3, sampling, limits, noise)

    for drafter in (None, model, lookup) if sampling.greedy else (None, model):
        alone = [made for number in range(64) for made in decode(drafter, slice(number, number + 1))]
        assert len({len(made.tokens) for made in alone}) >= 4
        assert len({tuple(made.tokens) for made in alone}) >= 50
        if drafter is model:
            right, examined = (sum(sum(getattr(made, what)) for made in alone) for what in ("accepted", "proposed"))
            assert 10 < right < examined
        for rows in (slice(64), slice(5, 21), slice(40, 43), slice(9, 10)):
            assert decode(drafter, rows) == alone[rows]
