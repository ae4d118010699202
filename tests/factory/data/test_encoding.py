from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from factory.data.blocks import text_blocks
from factory.data.encoding import Encoder
from factory.data.prompts import Entry
from factory.errors import DataError
from factory.models.loading import load_tokenizer

EOS = 2
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'][0] + ':' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>a:' }}{% endif %}"
)
# Writes what was thought only into the last answer, as several families do.
FORGETFUL = TEMPLATE.replace("m['content']", "('T' if loop.last and m['role'] == 'assistant' else '') + m['content']")
STRICT = "{{ raise_exception('roles must alternate') }}"


@pytest.fixture
def tokenizer(tiny_folder: Path) -> PreTrainedTokenizerFast:
    found = load_tokenizer(tiny_folder)
    found.chat_template = TEMPLATE
    return found


@pytest.fixture
def encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tokenizer, vocabulary=128, eos=EOS)


def chat(*said: str, place: str = "c.jsonl:1") -> Entry:
    """`u:` and what the user says, `a:` and what the assistant does."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return Entry(place, messages=tuple({"role": roles[text[0]], "content": text[2:]} for text in said))


def text_of(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(ids))


def answers(tokenizer: PreTrainedTokenizerFast, encoder: Encoder, entry: Entry) -> list[str]:
    """What is learned of an entry, answer by answer."""
    ((ids, spans),) = encoder.rows([entry], 160).rows
    block = text_blocks([(ids, spans)])
    assert not isinstance(spans, int)
    assert block.answer.sum() == sum(end - start for start, end in spans)
    return [text_of(tokenizer, list(ids[start:end])) for start, end in spans]


def test_all_that_the_assistant_says_is_learned_with_the_end_of_its_turn(
    tokenizer: PreTrainedTokenizerFast, encoder: Encoder
) -> None:
    entry = chat("s:x", "u:ab", "a:cd", "u:e", "a:fgh")
    assert answers(tokenizer, encoder, entry) == ["cd</s>", "fgh</s>"]
    ((ids, _),) = encoder.rows([entry], 160).rows
    assert text_of(tokenizer, list(ids)) == "<s>s:x</s>\n<s>u:ab</s>\n<s>a:cd</s>\n<s>u:e</s>\n<s>a:fgh</s>\n"
    assert answers(tokenizer, encoder, chat("a:hello", "u:ab", "a:cd")) == ["cd</s>"]  # an opening answers nothing
    assert answers(tokenizer, encoder, chat("u:ab")) == []


def test_the_target_is_given_a_conversation_up_to_the_last_question(
    tokenizer: PreTrainedTokenizerFast, encoder: Encoder
) -> None:
    open_ended, answered = chat("u:ab", "a:cd", "u:e"), chat("u:ab", "a:cd", "u:e", "a:f")
    made = encoder.prompts([open_ended, Entry("p", "xyz"), answered], 160)
    assert [text_of(tokenizer, ids) for ids in made.ids] == ["<s>u:ab</s>\n<s>a:cd</s>\n<s>u:e</s>\n<s>a:", "xyz"]
    assert made.facts == {"prompts": 2, "duplicate_prompts": 1, "left_out": 0}
    with pytest.raises(DataError, match=r"^c\.jsonl:1: the user says nothing"):
        encoder.prompts([chat("s:x", "a:b")], 160)


def test_a_template_that_tells_the_date_tells_the_same_every_day(
    tokenizer: PreTrainedTokenizerFast, encoder: Encoder
) -> None:
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }}" + TEMPLATE
    )
    (ids,) = encoder.prompts([chat("u:ab")], 160).ids
    assert text_of(tokenizer, ids) == "26 Jul 2024<s>u:ab</s>\n<s>a:"


def test_columns_of_prompt_and_answer(tokenizer: PreTrainedTokenizerFast, encoder: Encoder) -> None:
    entries = [Entry("p", "ab", "cd"), Entry("p", "xyz"), Entry("p", "ab", "e"), chat("u:a", "a:b")]
    made = encoder.rows(entries, 160)
    assert [text_of(tokenizer, list(ids)) for ids, _ in made.rows[:3]] == ["abcd</s>", "xyz", "abe</s>"]
    assert [where for _, where in made.rows[:3]] == [2, 1, 2]
    assert made.prompt == [0, 1, 0, 2]  # two answers to one prompt are one prompt
    assert made.facts == {"prompts": 3, "left_out": 0}
    ((ids, where),) = Encoder(tokenizer, vocabulary=128).rows([Entry("p", "ab", "cd")], 160).rows
    assert (text_of(tokenizer, list(ids)), where) == ("abcd", 2)  # a target without EOS


def test_conversations_that_begin_alike_are_one_prompt(encoder: Encoder) -> None:
    made = encoder.rows([chat("u:a", "a:b"), chat("u:a", "a:c", "u:d", "a:e"), chat("u:b", "a:b")], 160)
    assert made.prompt == [0, 0, 1]


def test_what_is_too_long_is_left_out_and_counted(encoder: Encoder) -> None:
    made = encoder.prompts([Entry("p", "abc"), Entry("p", "a" * 50)], 10)
    assert (len(made.ids), made.facts["left_out"]) == (1, 1)
    rows = encoder.rows([Entry("p", "abc"), Entry("p", "a" * 50), Entry("p", "a" * 9, "b")], 10)
    assert (len(rows.rows), rows.facts["left_out"]) == (1, 2)


def test_many_entries_keep_their_order(encoder: Encoder, tokenizer: PreTrainedTokenizerFast) -> None:
    entries = [chat(f"u:{n}", "a:b") if n % 3 else Entry("p", f"{n}text") for n in range(600)]
    texts = [text_of(tokenizer, list(ids)) for ids, _ in encoder.rows(entries, 160).rows]
    assert texts == [f"<s>u:{n}</s>\n<s>a:b</s>\n" if n % 3 else f"{n}text" for n in range(600)]


def test_what_the_target_cannot_read_is_told_with_its_place(
    encoder: Encoder, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(DataError, match=r"^p\.txt:7: 1 token for the target, where at least 2 are needed"):
        encoder.rows([Entry("p.txt:7", "a")], 160)
    with pytest.raises(DataError, match=r"^p\.txt:7: its tokenizer gives token 9\d, and the target has 90; "):
        Encoder(tokenizer, vocabulary=90).prompts([Entry("p.txt:7", "abc")], 160)
    tokenizer.chat_template = FORGETFUL
    assert answers(tokenizer, encoder, chat("u:a", "a:b")) == ["Tb</s>"]
    with pytest.raises(
        DataError, match=r"^c\.jsonl:1: the target's chat template writes message 2 otherwise at the end"
    ):
        encoder.rows([chat("u:a", "a:b", "u:c", "a:d")], 160)
    tokenizer.chat_template = STRICT
    with pytest.raises(DataError, match=r"refuses the conversation \(user, user\): roles must alternate; leave it out"):
        encoder.prompts([chat("u:a", "u:b")], 160)
    tokenizer.chat_template = None
    for read in (encoder.rows, encoder.prompts):
        with pytest.raises(DataError, match=r"^c\.jsonl:1: a conversation, and the target has no chat template"):
            read([chat("u:a", "a:b")], 160)
