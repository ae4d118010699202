"""A text ends with the first token at which its decoded output contains a stop string: found by brute force here."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedModel

from factory.decoding.decoder import Limits, autoregressive, speculative
from factory.decoding.drafters import Drafter, ModelDrafter, PromptLookup
from factory.decoding.eager import EagerReader
from factory.decoding.sampling import Noise, Sampling
from factory.decoding.stops import Decode, Stops

GREEDY = Sampling()
PROMPT = [7, 8, 9, 10]


@pytest.fixture(params=["gpt2", "llama"])
def tiny(request: pytest.FixtureRequest, families: dict[str, Callable[..., PreTrainedModel]]) -> Any:
    """What is tested here is the loop's, not a family's: two kinds of positions are enough."""
    return families[request.param]


def byte_level() -> tuple[Tokenizer, int]:
    """Tokens of one byte, as GPT-2 writes them, and some of several, whole and broken characters among them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges: list[tuple[str, str]] = []
    for text in ("END", " the", "é", "€", "𝄞"):
        symbols = split.pre_tokenize_str(text)[0][0]
        made = symbols[0]
        for symbol in symbols[1:]:
            merges.append((made, symbol))
            made += symbol
    vocabulary = {token: number for number, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    return tokenizer, len(vocabulary)


def byte_fallback() -> tuple[Tokenizer, int]:
    """SentencePiece's way, as Llama has it: words with blanks before them, bytes only for what is in no word."""
    words = ["▁a", "▁END", "▁", "E", "ND", "▁the", "b"]
    vocabulary = {token: number for number, token in enumerate([*(f"<0x{byte:02X}>" for byte in range(256)), *words])}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer, len(vocabulary)


def first_end(decode: Decode, tokens: Sequence[int], strings: Sequence[str]) -> tuple[int, str] | None:
    """Number of tokens, and the string that begins first in their text; all tokens decoded anew each time."""
    for count in range(1, len(tokens) + 1):
        text = decode(tokens[:count])
        found = [(text.find(string), string) for string in strings if string in text]
        if found:
            return count, min(found)[1]
    return None


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_tokens_one_by_one_end_where_all_at_once_would(make: Callable[[], tuple[Tokenizer, int]]) -> None:
    """Characters of several tokens, broken ones, bytes that are none, blanks at the beginning; 3,000 random texts."""
    tokenizer, size = make()
    dice, stopped, late = random.Random(0), 0, 0
    characters = [tokenizer.encode(text).ids for text in ("é", "€", "𝄞", "END", "E", "N", "D", " a", "the")]
    if make is byte_fallback:
        characters += [list(text.encode()) for text in ("é", "€", "𝄞")]
    for _ in range(3_000):
        tokens: list[int] = []
        while len(tokens) < 40:
            kind = dice.random()
            if kind < 0.6:
                tokens += dice.choice(characters)
            elif kind < 0.9:
                tokens += dice.choice(characters)[: dice.randint(1, 3)]
            else:
                tokens.append(dice.randrange(size))
        strings = tuple(dice.sample(["END", "€", "é", "€E", "D €", "𝄞é", "the", " a a", "NDEND", "qq"], 2))
        watch = Stops(strings, tokenizer.decode).watch()
        seen = next(((at, found) for at, token in enumerate(tokens, 1) if (found := watch.push(token))), None)
        assert seen == first_end(tokenizer.decode, tokens, strings)
        stopped += seen is not None
        late += seen is not None and seen[0] > 10
    assert stopped > 1_000
    assert late > 200


def test_garbage_is_not_held_back_for_ever() -> None:
    """Bytes that never make a character: what is decoded for each stays short, and what follows is still found."""
    tokenizer, _ = byte_level()
    lengths: list[int] = []

    def decode(tokens: Sequence[int]) -> str:
        lengths.append(len(tokens))
        return str(tokenizer.decode(list(tokens)))

    broken, euro = tokenizer.token_to_id("â"), tokenizer.encode("€").ids
    assert euro == [tokenizer.token_to_id("âĤ¬")]
    bytes_of_it = [tokenizer.token_to_id(symbol) for symbol in "âĤ¬"]
    watch = Stops(("€!",), decode).watch()
    for _ in range(500):
        assert watch.push(broken) is None
    assert max(lengths) <= 80
    tail = [*bytes_of_it, tokenizer.token_to_id("!")]
    assert [watch.push(token) for token in tail] == [None, None, None, "€!"]


@pytest.mark.parametrize("string", ["", "a\ufffdb"])
def test_strings_that_cannot_be_looked_for_are_refused(string: str) -> None:
    with pytest.raises(ValueError, match="stop string"):
        Stops(("x", string), str)


@pytest.fixture
def decode() -> Decode:
    """300 tokens of two letters each, one a number below ten: no two neighbours are ambiguous."""
    words = {f"{chr(97 + number // 10)}{number % 10}": number for number in range(300)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="a0"))
    tokenizer.decoder = decoders.Fuse()
    return lambda tokens: str(tokenizer.decode(list(tokens)))


@pytest.mark.parametrize("span", [1, 2, 3])
def test_a_string_ends_the_text_where_plain_decoding_stops(
    target: PreTrainedModel,
    reference: Callable[..., list[int]],
    script: type,
    decode: Decode,
    ending: tuple[int, list[int], list[int], list[int]],
    span: int,
) -> None:
    """The string begins within a token and reaches over `span` of them; nothing behind it is counted."""
    place, wrong, accepted, proposed = ending
    text = reference(target, PROMPT, 20)
    assert len(set(text[:9])) == 9
    span = min(span, place + 1)
    string = decode(text[place - span + 1 : place + 1])[1 if span > 1 else 0 :]
    limits = Limits(20, frozenset(), 160, Stops(("never", string), decode))
    (plain,) = autoregressive(EagerReader(target), [PROMPT], GREEDY, limits, Noise(0, [0]))
    (fast,) = speculative(EagerReader(target), script([text], wrong, 300), [PROMPT], 4, GREEDY, limits, Noise(0, [0]))
    assert plain.tokens == fast.tokens == text[: place + 1]
    assert plain.stop == fast.stop == string
    assert plain.target_passes == place + 1
    assert (fast.accepted, fast.proposed) == (accepted, proposed)


def test_what_ends_first_ends_the_text(
    target: PreTrainedModel, reference: Callable[..., list[int]], decode: Decode
) -> None:
    text = reference(target, PROMPT, 20)
    stops = Stops((decode(text[4:5]),), decode)
    drafter = ModelDrafter(EagerReader(target))
    for eos, most, length, stop in [
        ({text[3]}, 20, 4, None),
        ({text[4]}, 20, 5, None),  # an end token is none of the text
        ({text[6]}, 20, 5, stops.strings[0]),
        (set(), 4, 4, None),
        (set(), 5, 5, stops.strings[0]),
    ]:
        limits = Limits(most, frozenset(eos), 160, stops)
        for made in (
            autoregressive(EagerReader(target), [PROMPT], GREEDY, limits, Noise(0, [0])),
            speculative(EagerReader(target), drafter, [PROMPT], 6, GREEDY, limits, Noise(0, [0])),
        ):
            assert made[0].tokens == text[:length]
            assert made[0].stop == stop


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, top_k=50)])
def test_rows_of_a_batch_stop_each_by_itself(
    target: PreTrainedModel, noisy: Callable[..., PreTrainedModel], decode: Decode, sampling: Sampling
) -> None:
    prompts = [[5], PROMPT, [0, 20, 31, 20, 31, 20], list(range(40, 65)), [11, 12, 13]]
    free = Limits(40, frozenset(), 160)
    texts = [row.tokens for row in autoregressive(EagerReader(target), prompts, sampling, free, Noise(0, range(5)))]
    strings = (decode(texts[0][6:8])[1:], decode(texts[2][13:16])[1:4], decode(texts[3][30:32]))
    limits = Limits(40, frozenset(), 160, Stops(strings, decode))
    plain = autoregressive(EagerReader(target), prompts, sampling, limits, Noise(0, range(5)))
    for row, text in zip(plain, texts, strict=True):
        end = first_end(decode, text, strings)
        assert row.tokens == (text if end is None else text[: end[0]])
        assert row.stop == (None if end is None else end[1])
    assert len({len(row.tokens) for row in plain}) >= 3
    drafters: list[Drafter] = [ModelDrafter(EagerReader(noisy(target))), PromptLookup(vocabulary=300)]
    for drafter in drafters:
        together = speculative(EagerReader(target), drafter, prompts, 5, sampling, limits, Noise(0, range(5)))
        for number, (prompt, row) in enumerate(zip(prompts, together, strict=True)):
            end = first_end(decode, row.tokens, strings)
            assert end is None or end == (len(row.tokens), row.stop)
            alone = speculative(EagerReader(target), drafter, [prompt], 5, sampling, limits, Noise(0, [number]))
            assert alone == [row]
        if sampling.greedy:
            assert [row.tokens for row in together] == [row.tokens for row in plain]
