"""Pieces of an answer as they come: joined they are the text at once, whatever the tokenizer."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from talking import characters
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from factory.chat.stream import TextStream, decoded


def of_bytes() -> PreTrainedTokenizerFast:
    """One token a byte, as GPT-2's without its merges."""
    vocabulary = {piece: index for index, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE({**vocabulary, "</s>": 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def of_words() -> PreTrainedTokenizerFast:
    """As Llama 2's: blanks belong to words, the first one is dropped, what is in no word is bytes."""
    words = ["<s>", "</s>", *(f"<0x{code:02X}>" for code in range(256)), "▁", "▁on", "▁two", "ce", "▁▁", "é", "\n"]
    tokenizer = Tokenizer(BPE({word: index for index, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("make", [of_bytes, of_words, characters])
def test_pieces_joined_are_the_text_at_once(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer, rng = make(), random.Random(1)
    whole = "naïve 日本語 ▁▁two ones, 🙂 once\n\n é".encode()
    for _ in range(200):
        tokens = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 12))]
        if make is of_words:  # random bytes within words are the exception that TextStream names
            tokens = [token for token in tokens if not 2 <= token < 258]
            tokens += [byte + 2 for byte in whole[:20]] + [262, 258, 258, 261]
        stream = TextStream(tokenizer)
        pieces = [stream.push(token) for token in tokens]
        assert "".join(pieces) + stream.flush() == decoded(tokenizer, tokens)
        assert stream.flush() == ""


def test_a_character_of_several_tokens_comes_whole() -> None:
    tokenizer = of_bytes()
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in ids_of(tokenizer, "aé🙂")] == ["a", "", "é", "", "", "", "🙂"]
    half = TextStream(tokenizer)
    assert [half.push(token) for token in ids_of(tokenizer, "é")[:1]] == [""]
    assert half.flush() == "\ufffd"


def test_a_text_that_goes_on_keeps_its_first_blank() -> None:
    tokenizer = of_words()
    on, two = tokenizer.convert_tokens_to_ids(["▁on", "▁two"])
    assert TextStream(tokenizer).push(two) == "two"
    assert TextStream(tokenizer, [on] * 20).push(two) == " two"
