"""Heads padded to different sizes, both ways, and vocabularies that are really different."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from factory.decoding.decoder import Limits, speculative
from factory.decoding.drafters import ModelDrafter
from factory.decoding.eager import EagerReader
from factory.decoding.sampling import Noise, Sampling
from factory.decoding.vocabulary import fitted, require_one_vocabulary
from factory.errors import UnsupportedModel

PROMPTS = [[7, 8, 9, 10], [5], [0, 20, 31, 20, 31, 20]]


@pytest.fixture(params=["gpt2", "llama"])
def tiny(request: pytest.FixtureRequest, families: dict[str, Callable[..., PreTrainedModel]]) -> Any:
    """What is tested here is the loop's, not a family's: two kinds of positions are enough."""
    return families[request.param]


def resized(model: PreTrainedModel, rows: int) -> PreTrainedModel:
    """A copy with that many rows of embedding and head; new ones are random, and as likely as any other."""
    generator = torch.Generator().manual_seed(7)
    config = model.config.to_dict() | {"vocab_size": rows}
    made = type(model)(type(model.config).from_dict(config)).to(model.dtype).eval()
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in made.named_parameters():
            old = weights[name]
            if old.shape == weight.shape:
                weight.copy_(old)
            else:
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * old.std())
                weight[: len(old)] = old[:rows]
    return made


@pytest.mark.parametrize("rows", [280, 320])
def test_greedy_text_stays_the_target_s(
    target: PreTrainedModel,
    noisy: Callable[..., PreTrainedModel],
    reference: Callable[..., list[int]],
    rows: int,
) -> None:
    """280: the target writes ids that the drafter has no row for; 320: the drafter likes ids that do not exist."""
    expected = [reference(target, prompt, 40) for prompt in PROMPTS]
    assert max(map(max, expected)) >= 280
    limits, noise = Limits(40, frozenset(), 160), Noise(0, range(3))
    padded = resized(noisy(target), rows)
    assert EagerReader(padded).vocabulary == rows
    drafter = ModelDrafter(EagerReader(padded), "padded", vocabulary=300)
    for k in (1, 4):
        made = speculative(EagerReader(target), drafter, PROMPTS, k, Sampling(), limits, noise)
        assert [row.tokens for row in made] == expected
        assert 5 < sum(sum(row.accepted) for row in made) < sum(sum(row.proposed) for row in made)
    with pytest.raises(UnsupportedModel, match=f"padded has a vocabulary of {rows}, the target one of 300"):
        unfitted = ModelDrafter(EagerReader(padded), "padded")
        speculative(EagerReader(target), unfitted, PROMPTS, 2, Sampling(), limits, noise)


@pytest.mark.parametrize("rows", [7, 12])
@pytest.mark.parametrize("looking_back", [{}, {"repetition_penalty": 1.5, "no_repeat_ngram_size": 3}])
def test_sampled_text_keeps_the_law_of_the_target(
    tiny: Callable[..., PreTrainedModel],
    noisy: Callable[..., PreTrainedModel],
    rows: int,
    looking_back: dict[str, float],
) -> None:
    """The joint law of two tokens, counted over plain and speculative texts alike, against exact enumeration."""
    size, prompt, draws = 9, [3, 1, 4, 1], 3_000
    model = tiny(layers=1, vocabulary=size, context=64, seed=2, dtype=torch.float32)
    sampling = Sampling(temperature=1.5, **looking_back)  # type: ignore[arg-type]
    ids = torch.tensor([[*prompt, first] for first in range(size)])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[:, -2:].double()

    def step(scores: torch.Tensor, seen: list[int]) -> np.ndarray:
        for token in set(seen):
            penalty = sampling.repetition_penalty
            scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
        for at in range(2, len(seen)):
            if sampling.no_repeat_ngram_size == 3 and seen[at - 2 : at] == seen[-2:]:
                scores[seen[at]] = -torch.inf
        return np.asarray((scores / sampling.temperature).softmax(-1))

    first = step(logits[0, 0].clone(), prompt)
    second = np.stack([step(logits[token, 1].clone(), [*prompt, token]) for token in range(size)])
    law = (first[:, None] * second).ravel()
    drafter = ModelDrafter(EagerReader(resized(noisy(model, scale=0.05), rows)), vocabulary=size)
    made = speculative(
        EagerReader(model), drafter, [prompt] * draws, 2, sampling, Limits(4, frozenset(), 64), Noise(3, range(draws))
    )
    accepted, proposed = (sum(sum(getattr(row, what)) for row in made) for what in ("accepted", "proposed"))
    assert 0.2 < accepted / proposed < 0.95
    seen = np.bincount([row.tokens[0] * size + row.tokens[1] for row in made], minlength=size * size)
    assert not seen[law == 0].any()
    rare = law * draws < 5
    counts, expected = np.append(seen[~rare], seen[rare].sum()), np.append(law[~rare], law[rare].sum()) * draws
    usable = expected > 0
    assert chisquare(counts[usable], expected[usable] * counts.sum() / expected.sum()).pvalue > 1e-3


def test_cutting_and_padding_come_before_the_softmax() -> None:
    logits = torch.tensor([[1.0, 2.0, 50.0]])
    assert fitted(logits, 2).softmax(-1).tolist() == torch.tensor([[1.0, 2.0]]).softmax(-1).tolist()
    assert fitted(logits, 3) is not None
    assert fitted(logits, 5).softmax(-1)[0, 3:].tolist() == [0.0, 0.0]
    assert torch.equal(fitted(logits, 5)[:, :3], logits)


def tokenizer(*tokens: str, more: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    words = {token: number for number, token in enumerate(tokens)}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token=tokens[0])), unk_token=tokens[0]
    )
    made.add_tokens(list(more))
    return made


def test_padding_may_differ_and_nothing_else() -> None:
    words = ("<unk>", "a", "b")
    beyond_the_head = (3, 3)  # a token that the tokenizer adds, and no row for it in either model
    for target_rows, drafter_rows in (*product((4, 5, 64), repeat=2), beyond_the_head):
        require_one_vocabulary(
            tokenizer(*words, more=("<x>",)),
            tokenizer(*words, more=("<x>",)),
            target_rows=target_rows,
            drafter_rows=drafter_rows,
            name="half",
        )


@pytest.mark.parametrize(
    ("target", "drafter", "rows", "said"),
    [
        (("<unk>", "a", "b"), ("<unk>", "b", "a"), (64, 64), r"3 tokens and 64 rows against the target's 3 and 64.*'a' \(its id is 1 in the target's tokenizer, 2 in the drafter's"),  # noqa: E501
        (("<unk>", "a", "b"), ("<unk>", "a"), (64, 64), r"'b' \(its id is 2 in the target's tokenizer, none in"),
        (("<unk>", "a"), ("<unk>", "a", "b"), (64, 48), r"3 tokens and 48 rows.*'b' \(its id is none in the target's"),
        (("<unk>", "a", "b"), ("<unk>", "a", "b"), (64, 2), r"drafter's head is smaller.*3 rows, 'b' \(id 2\)"),
        (("<unk>", "a", "b"), ("<unk>", "a", "b"), (2, 1), r"drafter's head is smaller.*2 rows, 'a' \(id 1\)"),
    ],
)  # fmt: skip
def test_really_different_vocabularies_are_refused_by_name(
    target: tuple[str, ...], drafter: tuple[str, ...], rows: tuple[int, int], said: str
) -> None:
    with pytest.raises(UnsupportedModel, match=said) as refused:
        require_one_vocabulary(
            tokenizer(*target), tokenizer(*drafter), target_rows=rows[0], drafter_rows=rows[1], name="half"
        )
    assert "half" in str(refused.value)
    assert "use a drafter made from this target" in str(refused.value)
