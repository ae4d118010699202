from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from factory.anatomy.families import ANATOMIES
from factory.decoding.decoder import Generation, Limits, autoregressive, speculative
from factory.decoding.drafters import Drafter, ModelDrafter, PromptLookup
from factory.decoding.eager import EagerReader
from factory.decoding.sampler import Sampler
from factory.decoding.sampling import Noise, Sampling
from factory.models.loading import context_length, first_token_id, load_model
from factory.models.located import read_config

CPU = torch.device("cpu")
GREEDY = Sampling()
COUNT = 48
LIMITS = Limits(max_new_tokens=COUNT, eos=frozenset(), context=160)
PROMPTS = [[5], [7, 8, 9, 10], [0, 20, 31, 20, 31, 20], list(range(40, 65)), [11, 12, 13]]


def self_drafter(model: PreTrainedModel) -> Drafter:
    return ModelDrafter(EagerReader(model), name="self")


def check_counts(made: Generation) -> None:
    assert made.target_passes == 1 + len(made.accepted) == 1 + len(made.proposed)
    assert all(0 <= good <= all_ for good, all_ in zip(made.accepted, made.proposed, strict=True))
    assert len(made.tokens) == 1 + sum(made.accepted) + len(made.accepted)


def test_plain_greedy_is_the_uncached_argmax_and_what_transformers_generates(
    target: PreTrainedModel, reference: Callable[..., list[int]]
) -> None:
    for prompt in PROMPTS[:3]:
        expected = reference(target, prompt, COUNT)
        assert len(set(expected)) >= 20
        (made,) = autoregressive(EagerReader(target), [prompt], GREEDY, LIMITS, Noise(0, [0]))
        assert made.tokens == expected
        assert made.prompt == prompt
        assert made.target_passes == COUNT
    ids = torch.tensor([PROMPTS[1]])
    generated = target.generate(ids, max_new_tokens=COUNT, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generated[0, 4:].tolist() == reference(target, PROMPTS[1], COUNT)


@pytest.mark.parametrize("kind", ["noisy", "other", "self", "prompt-lookup"])
def test_speculative_greedy_is_plain_greedy(
    target: PreTrainedModel,
    tiny: Callable[..., PreTrainedModel],
    noisy: Callable[..., PreTrainedModel],
    reference: Callable[..., list[int]],
    kind: str,
) -> None:
    prompt = PROMPTS[2]
    expected = reference(target, prompt, COUNT)
    assert len(set(expected)) >= 20
    drafter: Drafter = {
        "noisy": lambda: self_drafter(noisy(target)),
        "other": lambda: self_drafter(tiny(layers=1, vocabulary=300, seed=9)),
        "self": lambda: self_drafter(target),
        "prompt-lookup": lambda: PromptLookup(vocabulary=300),
    }[kind]()
    reader = EagerReader(target)
    for k in range(1, 9):
        (made,) = speculative(reader, drafter, [prompt], k, GREEDY, LIMITS, Noise(0, [0]))
        assert made.tokens == expected, k
        check_counts(made)
        rejected = sum(good < all_ for good, all_ in zip(made.accepted, made.proposed, strict=True))
        if kind == "self":
            assert made.accepted == made.proposed
            assert sum(made.proposed) > 0
            assert made.target_passes == 1 + -(-(COUNT - 1) // (k + 1))
        elif kind == "noisy":  # right often enough to be accepted, wrong often enough to be caught
            assert sum(made.accepted) >= 5
            assert rejected >= 5
        elif kind == "other":
            assert rejected >= 20
        else:
            assert rejected >= 1


def test_rows_that_differ_in_everything_are_each_what_they_are_alone(
    target: PreTrainedModel, noisy: Callable[..., PreTrainedModel], reference: Callable[..., list[int]]
) -> None:
    """Lengths, acceptance and ends differ: rows leave the batch at different times and others move up."""
    texts = [reference(target, prompt, COUNT) for prompt in PROMPTS]
    assert all(len(set(text)) >= 20 for text in texts)
    eos = frozenset({texts[0][9], texts[2][21]})
    limits = Limits(max_new_tokens=COUNT, eos=eos, context=64)
    expected = []
    for prompt, text in zip(PROMPTS, texts, strict=True):
        room = min(COUNT, 64 - len(prompt))
        end = next((at for at, token in enumerate(text[:room], 1) if token in eos), room)
        expected.append(text[:end])
    assert len({len(text) for text in expected}) >= 3
    noise = Noise(0, range(5))
    plain = autoregressive(EagerReader(target), PROMPTS, GREEDY, limits, noise)
    assert [made.tokens for made in plain] == expected
    for drafter in (self_drafter(noisy(target)), self_drafter(target), PromptLookup(vocabulary=300)):
        for k in (1, 5):
            together = speculative(EagerReader(target), drafter, PROMPTS, k, GREEDY, limits, noise)
            assert [made.tokens for made in together] == expected
            for number, prompt in enumerate(PROMPTS):
                (alone,) = speculative(EagerReader(target), drafter, [prompt], k, GREEDY, limits, Noise(0, [number]))
                assert together[number] == alone  # passes and counts too


def test_sampled_rows_are_each_what_they_are_alone(
    target: PreTrainedModel, noisy: Callable[..., PreTrainedModel]
) -> None:
    sampling = Sampling(temperature=1.5, top_k=40, top_p=0.95)
    limits = Limits(max_new_tokens=COUNT, eos=frozenset(range(3, 300, 15)), context=64)
    prompts = [PROMPTS[number % 5] for number in range(12)]
    requests = [100 + number for number in range(12)]
    plain = autoregressive(EagerReader(target), prompts, sampling, limits, Noise(1, requests))
    drafter = self_drafter(noisy(target))
    fast = speculative(EagerReader(target), drafter, prompts, 4, sampling, limits, Noise(1, requests))
    assert len({len(made.tokens) for made in plain}) >= 4
    assert len({tuple(made.tokens) for made in plain}) == 12  # equal prompts, different requests
    assert 0 < sum(map(sum, (made.accepted for made in fast))) < sum(map(sum, (made.proposed for made in fast)))
    for number, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
        noise = Noise(1, [request])
        assert autoregressive(EagerReader(target), [prompt], sampling, limits, noise) == [plain[number]]
        assert speculative(EagerReader(target), drafter, [prompt], 4, sampling, limits, noise) == [fast[number]]
        assert plain[number].tokens[0] == fast[number].tokens[0]  # the prefill is the same in both arms


def test_a_model_is_its_own_drafter_in_sampling_too(target: PreTrainedModel) -> None:
    made = speculative(
        EagerReader(target), self_drafter(target), PROMPTS, 5, Sampling(temperature=1.0), LIMITS, Noise(4, range(5))
    )
    for row in made:
        check_counts(row)
        assert row.accepted == row.proposed
        assert sum(row.proposed) > 0


def test_prompt_lookup_copies_the_latest_longest_match_and_runs_on() -> None:
    drafter = PromptLookup(max_ngram=3, min_ngram=2, vocabulary=100)
    texts = [[1, 2, 3, 4, 1, 2, 3, 5, 2, 3], [9, 8, 7], [6, 6, 6]]
    drafter.start(texts, 64, Sampler(GREEDY, Noise(0, range(3)), texts, capacity=64, vocabulary=100, device=CPU))
    draft = drafter.propose(5)
    assert draft.q is None
    assert draft.length == [5, 0, 5]
    assert draft.tokens[0].tolist() == [5, 2, 3, 5, 2]  # [2, 3] was last followed by 5, and so on in a loop
    assert draft.tokens[2].tolist() == [6] * 5
    drafter.commit([[4], [9, 8], [1]])
    drafter.select([1, 0])
    draft = drafter.propose(2)
    assert draft.tokens.tolist() == [[7, 9], [1, 2]]  # the first row began to repeat; [2, 3, 4] was followed by 1, 2
    drafter.commit([[7], [8]])
    assert drafter.propose(2).length == [2, 0]


def test_real_models_write_what_transformers_generates(
    extra_models: Path, noisy: Callable[..., PreTrainedModel]
) -> None:
    folders = [file.parent for file in sorted(extra_models.glob("*/config.json"))]
    readable = [folder for folder in folders if read_config(folder)["model_type"] in ANATOMIES]
    assert readable
    for folder in readable:
        model = load_model(folder, dtype=torch.float64)
        prompt = [first_token_id(model)]
        limits = Limits(max_new_tokens=60, eos=frozenset(), context=context_length(model))
        generated = model.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False, eos_token_id=-1)
        for drafter in (self_drafter(noisy(model, scale=0.01)), PromptLookup(vocabulary=model.config.vocab_size)):
            (made,) = speculative(EagerReader(model), drafter, [prompt], 4, GREEDY, limits, Noise(0, [0]))
            assert made.tokens == generated[0, 1:].tolist()
            assert sum(made.accepted) > 0
            check_counts(made)
