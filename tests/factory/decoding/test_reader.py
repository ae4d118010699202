from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from factory.decoding.eager import EagerReader
from factory.decoding.reader import right_padded
from factory.errors import UnsupportedModel

CPU = torch.device("cpu")


def uncached(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return logits[0]


def assert_same(cached: torch.Tensor, whole: torch.Tensor) -> None:
    """Equal but for rounding: Llama computes its norms in float32 even in a float64 model."""
    torch.testing.assert_close(cached, whole, rtol=1e-5, atol=1e-5)
    assert cached.argmax(-1).tolist() == whole.argmax(-1).tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cached_equals_uncached_through_a_random_history(tiny: Callable[..., PreTrainedModel], attention: str) -> None:
    """Feeds of all widths, ragged counts, rewinds, rows that leave or change places, and growth of the storage."""
    model = tiny(layers=2, seed=3)
    model.set_attn_implementation(attention)
    reader = EagerReader(model)
    dice = random.Random(0)
    reader.start(4, capacity=8)  # grows on the way
    texts: list[list[int]] = [[] for _ in range(4)]
    ragged = equal = 0
    for step in range(60):
        width = dice.choice([1, 1, 2, 5])
        even = dice.random() < 0.3
        count = [width if even else dice.randint(0, width) for _ in texts]
        block = torch.tensor([[dice.randrange(96) for _ in range(width)] for _ in texts])
        if len(set(reader.lengths)) == 1:
            equal += 1
        else:
            ragged += 1
        last_only = dice.random() < 0.5
        logits = (reader.feed_last if last_only else reader.feed)(block, count)
        for row, text in enumerate(texts):
            text += block[row, : count[row]].tolist()
            if count[row]:
                whole = uncached(model, text)
                cached = logits[row] if last_only else logits[row, count[row] - 1]
                assert_same(cached, whole[-1])
                if not last_only:
                    assert_same(logits[row, : count[row]], whole[-count[row] :])
        assert reader.lengths == [len(text) for text in texts]
        if dice.random() < 0.5:
            short = min(len(text) for text in texts)
            lengths = [short if even else dice.randint(max(0, len(text) - 4), len(text)) for text in texts]
            reader.rewind(lengths)
            texts = [text[:length] for text, length in zip(texts, lengths, strict=True)]
        if step == 20:
            reader.select([3, 0, 2])
            texts = [texts[3], texts[0], texts[2]]
        if step == 40:
            reader.select([0, 2])
            texts = [texts[0], texts[2]]
    assert ragged >= 10
    assert equal >= 10


def test_a_ragged_prefill_gives_each_row_its_last_logits(target: PreTrainedModel) -> None:
    prompts = [[0], [5, 6, 7, 8, 9], [1, 2, 3], [4, 4, 4]]
    reader = EagerReader(target)
    reader.start(4, 16)
    last = reader.feed_last(*right_padded(prompts, CPU))
    assert last.shape == (4, 300)
    for row, prompt in enumerate(prompts):
        assert_same(last[row], uncached(target, prompt)[-1])
    assert reader.lengths == [1, 5, 3, 3]
    after = reader.feed(torch.tensor([[9]] * 4))
    for row, prompt in enumerate(prompts):
        assert_same(after[row, 0], uncached(target, [*prompt, 9])[-1])


def test_padding_behind_the_context_touches_nothing(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny(layers=2, context=12)
    full, short = list(range(20, 32)), [40, 41]
    reader = EagerReader(model)
    reader.start(2, 13)
    reader.feed(*right_padded([full[:11], short], CPU))
    logits = reader.feed(torch.tensor([[full[11], 0, 0], [42, 43, 44]]), [1, 3])
    assert_same(logits[0, 0], uncached(model, full)[-1])
    logits = reader.feed(torch.tensor([[0], [45]]), [0, 1])
    assert_same(logits[1, 0], uncached(model, [*short, 42, 43, 44, 45])[-1])
    reader.rewind([11, 6])
    logits = reader.feed(torch.tensor([[full[11]], [46]]))
    assert_same(logits[0, 0], uncached(model, full)[-1])
    with pytest.raises(ValueError, match="context of 12"):
        reader.feed(torch.tensor([[1], [1]]))


def test_only_a_shorter_text_can_be_rewound_to(target: PreTrainedModel) -> None:
    reader = EagerReader(target)
    reader.start(2, 16)
    reader.feed(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    reader.rewind([3, 1])
    for lengths in ([3, 2], [3], [4, 1]):
        with pytest.raises(ValueError, match="only lower"):
            reader.rewind(lengths)


def test_starting_again_forgets_the_last_batch(target: PreTrainedModel) -> None:
    reader = EagerReader(target)
    reader.start(3, 8)
    reader.feed(torch.tensor([[1, 2], [3, 4], [5, 6]]))
    reader.start(1, 8)
    assert_same(reader.feed(torch.tensor([[7, 8]]))[0], uncached(target, [7, 8]))


def small(kind: type, **more: object) -> object:
    return kind(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, **more)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1)), "recurrent state"),
        (
            lambda: T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=16, d_ff=16, num_layers=1, num_heads=2)),
            "encoder",
        ),
        (lambda: BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2)), "no position ids"),
        (
            lambda: LlamaForCausalLM(small(LlamaConfig, layer_types=["chunked_attention"])),
            "layers of chunked_attention",
        ),
        (
            lambda: LlamaForCausalLM(
                small(LlamaConfig, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
            ),
            "rope_type dynamic",
        ),
    ],
)
def test_models_that_cannot_be_rewound_are_refused_with_the_reason(
    make: Callable[[], PreTrainedModel], reason: str
) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        EagerReader(make().eval())


def test_a_model_with_dropout_on_is_refused(target: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="training mode"):
        EagerReader(target.train())
