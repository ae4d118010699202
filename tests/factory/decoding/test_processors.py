"""What looks back, against transformers' own processors on uncached passes; the two that it lacks, by hand."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
)

from factory.decoding import sampler as sampler_module
from factory.decoding.decoder import Limits, autoregressive, speculative
from factory.decoding.drafters import Drafter, ModelDrafter, PromptLookup
from factory.decoding.eager import EagerReader
from factory.decoding.processors import History
from factory.decoding.sampling import Noise, Sampling

CPU = torch.device("cpu")
EOS = frozenset({2, 7})
COUNT = 40
OTHERS = ["gpt_neox", "mistral", "opt", "qwen2", "qwen3"]

LOOKING_BACK = {
    "repetition": Sampling(repetition_penalty=1.7),
    "rewarded repetition": Sampling(repetition_penalty=0.6),
    "frequency": Sampling(frequency_penalty=1.5),
    "presence": Sampling(presence_penalty=2.5),
    "no repeated token": Sampling(no_repeat_ngram_size=1),
    "no repeated pair": Sampling(no_repeat_ngram_size=2),
    "no repeated triple": Sampling(no_repeat_ngram_size=3, repetition_penalty=0.6),  # rewarded, else none returns
    "least length": Sampling(min_new_tokens=25),
    "all": Sampling(0.0, 0, 1.0, 0.0, 1.2, 0.7, -0.9, 2, 12),
}


@pytest.fixture(params=["gpt2", "llama"])
def tiny(request: pytest.FixtureRequest, families: dict[str, Callable[..., PreTrainedModel]]) -> Any:
    """What is tested here is the loop's, not a family's: two kinds of positions are enough."""
    return families[request.param]


class CountPenalty:
    """OpenAI's frequency and presence penalty, token by token."""

    def __init__(self, sampling: Sampling, prompt: int) -> None:
        self._sampling, self._prompt = sampling, prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for row, text in zip(scores, input_ids.tolist(), strict=True):
            for token, times in Counter(text[self._prompt :]).items():
                row[token] -= times * self._sampling.frequency_penalty + self._sampling.presence_penalty
        return scores


def of_transformers(sampling: Sampling, prompt: int, eos: Sequence[int]) -> LogitsProcessorList:
    """In the order of `GenerationMixin._get_logits_processor`, the two that it lacks behind the repetition penalty."""
    made = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        made.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.frequency_penalty != 0 or sampling.presence_penalty != 0:
        made.append(CountPenalty(sampling, prompt))
    if sampling.no_repeat_ngram_size:
        made.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram_size))
    if sampling.min_new_tokens and eos:
        made.append(MinNewTokensLengthLogitsProcessor(prompt, sampling.min_new_tokens, list(eos)))
    return made


def written_by(model: PreTrainedModel, prompt: Sequence[int], sampling: Sampling, eos: frozenset[int]) -> list[int]:
    """Greedy text of whole forward passes and transformers' processors, up to COUNT tokens."""
    ids, processors = list(prompt), of_transformers(sampling, len(prompt), sorted(eos))
    with torch.no_grad():
        while len(ids) < len(prompt) + COUNT and (len(ids) == len(prompt) or ids[-1] not in eos):
            text = torch.tensor([ids])
            scores = processors(text, model(input_ids=text, use_cache=False).logits[:, -1])
            ids.append(int(scores[0].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", LOOKING_BACK)
def test_every_position_is_as_transformers_has_it_for_the_text_before_it(name: str) -> None:
    """Random texts of few tokens, so that much returns; verifications, single steps, and rows that change places."""
    sampling, dice = LOOKING_BACK[name], random.Random(0)
    generator = torch.Generator().manual_seed(0)
    changed = 0
    for size in (5, 40):
        prompts = [[dice.randrange(size) for _ in range(length)] for length in (1, 2, 9, 4)]
        history = History(prompts, 80, sampling, frozenset({1, 3}), size, CPU)
        rows = [(prompt, list[int]()) for prompt in prompts]
        for turn in range(12):
            runs = [[dice.randrange(size) for _ in range(dice.randint(1, 3))] for _ in rows]
            history.extend(runs)
            for (_, output), run in zip(rows, runs, strict=True):
                output += run
            if turn in (4, 8):
                kept = [2, 1, 0] if turn == 4 else [0, 2]
                history.select(kept)
                rows = [rows[row] for row in kept]
            drafted = torch.tensor([[dice.randrange(size) for _ in range(dice.randint(0, 4))]] * len(rows))
            drafted = drafted.long().view(len(rows), -1)
            whole = drafted.shape[1] + 1
            for positions in {1, whole}:
                logits = torch.randn(len(rows), positions, size, generator=generator, dtype=torch.float64)
                before = logits.clone()
                made = history.apply(logits, drafted)
                assert torch.equal(logits, before)
                for row, (prompt, output) in enumerate(rows):
                    for place in range(positions):
                        seen = drafted[row, : whole - positions + place].tolist()
                        text = torch.tensor([[*prompt, *output, *seen]])
                        wanted = of_transformers(sampling, len(prompt), [1, 3])(text, logits[row, place, None])[0]
                        if (wanted == -torch.inf).all():
                            continue  # seen to below
                        torch.testing.assert_close(made[row, place], wanted, rtol=1e-12, atol=1e-12)
                        changed += not torch.equal(wanted, logits[row, place])
    assert changed > 20


def test_half_precision_is_processed_in_float32() -> None:
    history = History([[1, 2]], 8, Sampling(repetition_penalty=1.3), frozenset(), 4, CPU)
    made = history.apply(torch.tensor([[[1.0, 2.0, -3.0, 4.0]]], dtype=torch.bfloat16), None)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, torch.tensor([[[1.0, 2.0 / 1.3, -3.0 * 1.3, 4.0]]]))


@pytest.mark.parametrize("least", [0, 20])
def test_where_no_token_would_be_left_n_grams_may_return(least: int) -> None:
    """All four tokens have been: each is likely again. But it is still too early for an end."""
    history = History([[0, 1, 2], [0, 1, 2]], 8, Sampling(no_repeat_ngram_size=1, min_new_tokens=least), EOS, 4, CPU)
    logits = torch.tensor([[[1.0, 2.0, 3.0, 4.0]] * 2] * 2)
    made = history.apply(logits, torch.tensor([[3], [1]]))
    end = -torch.inf if least else 3.0
    assert made[0].tolist() == [[-torch.inf] * 3 + [4.0], [1.0, 2.0, end, 4.0]]
    assert made[1].tolist() == [[-torch.inf] * 3 + [4.0]] * 2


@pytest.mark.parametrize(
    ("family", "name"), [*itertools.product(["gpt2", "llama"], LOOKING_BACK), *((family, "all") for family in OTHERS)]
)
def test_greedy_text_is_that_of_transformers_processors_on_uncached_passes(
    families: dict[str, Callable[..., PreTrainedModel]],
    noisy: Callable[..., PreTrainedModel],
    family: str,
    name: str,
) -> None:
    """Plain and speculative, alone and in a ragged batch, with drafters that are right sometimes."""
    target, sampling = families[family](layers=2, vocabulary=300, seed=1), LOOKING_BACK[name]
    prompts = [[7, 8, 9, 10, 8, 9], [5], [20, 31, 20, 31, 20, 31, 20]]
    free = [written_by(target, prompt, Sampling(), frozenset()) for prompt in prompts]
    # these ids end a text that looks back at nothing early, so that a least length has something to prevent
    eos = frozenset({free[0][5], free[2][11]}) if sampling.min_new_tokens else frozenset({free[1][-1]})
    expected = [written_by(target, prompt, sampling, eos) for prompt in prompts]
    without = replace(sampling, no_repeat_ngram_size=0) if name.startswith("no repeated") else Sampling()
    assert expected != [written_by(target, prompt, without, eos) for prompt in prompts]
    limits, noise = Limits(COUNT, eos, 160), Noise(0, range(3))
    plain = autoregressive(EagerReader(target), prompts, sampling, limits, noise)
    assert [made.tokens for made in plain] == expected
    drafters: list[tuple[Drafter, Sequence[int]]] = [
        (ModelDrafter(EagerReader(noisy(target))), (1, 3, 6)),
        (PromptLookup(vocabulary=300), (4,)),
    ]
    right = wrong = 0
    for drafter, ks in drafters:
        for k in ks:
            made = speculative(EagerReader(target), drafter, prompts, k, sampling, limits, noise)
            assert [row.tokens for row in made] == expected, k
            alone = speculative(EagerReader(target), drafter, prompts[:1], k, sampling, limits, Noise(0, [0]))
            assert alone == made[:1]
            right += sum(sum(row.accepted) for row in made)
            wrong += sum(a < b for row in made for a, b in zip(row.accepted, row.proposed, strict=True))
    assert right >= 20
    assert wrong >= 20


def test_a_drafter_that_is_the_target_is_never_wrong(target: PreTrainedModel) -> None:
    """With one processor or history less on one side it would be."""
    limits = Limits(COUNT, frozenset(), 160)
    for greedy in LOOKING_BACK.values():
        for temperature in (0.0, 1.3):
            sampling = Sampling(**{**vars(greedy), "temperature": temperature, "min_p": 0.02})
            made = speculative(
                EagerReader(target),
                ModelDrafter(EagerReader(target)),
                [[7, 8, 9, 10, 8, 9], [5]],
                4,
                sampling,
                limits,
                Noise(0, range(2)),
            )
            for row in made:
                assert row.accepted == row.proposed
                assert sum(row.proposed) > 0


def test_where_nothing_looks_back_no_history_is_kept(
    target: PreTrainedModel, noisy: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a history was made")

    monkeypatch.setattr(sampler_module, "History", refuse)
    limits, drafter = Limits(8, EOS, 160), ModelDrafter(EagerReader(noisy(target)))
    for sampling in (Sampling(), Sampling(1.0, 40, 0.9, 0.01)):
        speculative(EagerReader(target), drafter, [[5, 6]], 2, sampling, limits, Noise(0, [0]))
        autoregressive(EagerReader(target), [[5, 6]], sampling, limits, Noise(0, [0]))
    with pytest.raises(AssertionError, match="a history was made"):
        autoregressive(EagerReader(target), [[5, 6]], Sampling(min_new_tokens=1), limits, Noise(0, [0]))
