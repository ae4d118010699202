"""A session: what is streamed is what the decoder wrote, from what origin, within which context."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest
from talking import CHAT, characters
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from factory.chat.answer import Answer, Ending, Origin, Piece
from factory.chat.conversation import Conversation
from factory.chat.figures import status
from factory.chat.session import Session, Stopped
from factory.chat.settings import LOOKUP, MODEL, OFF
from factory.chat.stream import decoded
from factory.decoding.decoder import Generation, Limits, Round, speculative
from factory.decoding.sampling import Noise, Sampling


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


class Heard:
    """Keeps what a session tells."""

    def __init__(self, then: Callable[[Answer], None] | None = None) -> None:
        self.pieces: list[Piece] = []
        self.counts: list[int] = []
        self._then = then

    def __call__(self, answer: Answer, pieces: Sequence[Piece]) -> None:
        self.pieces += pieces
        self.counts.append(len(answer.tokens))
        if self._then is not None:
            self._then(answer)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("k", [1, 4])
def test_what_is_streamed_is_what_the_decoder_wrote(
    session: Callable[..., Session], k: int, temperature: float
) -> None:
    talk, heard = session(k=k, temperature=temperature, seed=3), Heard()
    answer, left_out = talk.answer("def f(", heard)
    prompt = ids_of(talk.conversation.tokenizer, "def f(")
    (written,) = speculative(
        talk.target,
        talk.drafters[MODEL],
        [prompt],
        k,
        Sampling(temperature),
        Limits(40, frozenset(), talk.target.context),
        Noise(3, [1]),
    )
    assert answer.generation == written
    assert (left_out, answer.ending) == (0, Ending.LENGTH)
    text = talk.conversation.tokenizer.decode(written.tokens, skip_special_tokens=True)
    assert "".join(piece.text for piece in heard.pieces) == answer.text == text
    rounds = list(zip(written.accepted, written.proposed, strict=True))
    assert answer.count(Origin.ACCEPTED) == sum(written.accepted) > 0
    assert answer.count(Origin.CORRECTED) == sum(accepted < proposed for accepted, proposed in rounds) > 0
    assert answer.count(Origin.BONUS) == sum(accepted == proposed > 0 for accepted, proposed in rounds) > 0
    assert answer.count(Origin.PLAIN) == 1 + sum(proposed == 0 for _, proposed in rounds)
    assert len(answer.origins) == len(answer.tokens) == 40
    assert answer.tau == 40 / written.target_passes
    assert answer.alpha == answer.count(Origin.ACCEPTED) / (
        answer.count(Origin.ACCEPTED) + answer.count(Origin.CORRECTED)
    )
    assert heard.counts == sorted(set(heard.counts)), "once a round"


def test_every_origin_is_told_from_its_round() -> None:
    answer = Answer(Generation([1]), "x", 3)
    rounds = [([9], 0, 0), ([5, 6, 7, 8], 3, 3), ([5, 4], 1, 3), ([3], 0, 0), ([5, 2], 2, 2)]  # the last: accepted EOS
    for new, accepted, proposed in rounds:
        answer.hear(Round([0], [new], [accepted], [proposed]), 1.0)
    letters = "".join(origin.name[0] for origin in answer.origins)
    assert letters == "P" + "AAAB" + "AC" + "P" + "AA"
    assert (answer.generation.accepted, answer.generation.proposed) == ([3, 1, 0, 2], [3, 3, 0, 2])
    assert (answer.tau, answer.alpha) == (10 / 5, 6 / 7)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2", "qwen3"])
def test_drafting_does_not_change_a_greedy_answer(session: Callable[..., Session], family: str) -> None:
    texts = set()
    for drafter in (OFF, LOOKUP, MODEL):
        talk = session(drafter, family=family)
        texts.add("|".join(talk.answer(line)[0].text for line in ("def f(", "class A")))
        assert (talk.alone is not None) == (drafter == OFF)
    assert len(texts) == 1


@pytest.mark.parametrize("drafter", [MODEL, LOOKUP])
def test_k_may_be_chosen_as_it_goes(session: Callable[..., Session], drafter: str) -> None:
    plain, talk = session(OFF), session(drafter, k=None)
    assert talk.needs_costs
    for line in ("def f(", "class A", "x" * 150):
        answer, _ = talk.answer(line)
        assert answer.tokens == plain.answer(line)[0].tokens
        assert not talk.needs_costs, "measured once"
        assert answer.k is None
        assert answer.proposed == sum(answer.generation.proposed) / (answer.generation.target_passes - 1)
        assert f" · k auto, {answer.proposed:.1f} on average · " in status(answer, None)
    talk.settings.temperature = 1.0
    assert talk.needs_costs, "a draw has its own costs"
    talk.settings.k = 3
    assert not talk.needs_costs


def test_measuring_costs_stops_at_once(session: Callable[..., Session]) -> None:
    talk, now_s = session(k=None), time.perf_counter

    def asked() -> float:
        talk.stop()
        return now_s()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("factory.chat.session.time.perf_counter", asked)
        talk.answer("abc")
    assert talk.needs_costs
    assert talk.conversation.turns == []
    assert talk.answer("abc")[0].tokens == session(OFF).answer("abc")[0].tokens


def test_a_stopped_answer_keeps_what_was_written(session: Callable[..., Session]) -> None:
    talk = session(most=60)
    whole, _ = session(most=60).answer("abc")
    answer, _ = talk.answer("abc", Heard(lambda so_far: talk.stop() if len(so_far.tokens) >= 12 else None))
    assert answer.ending is Ending.STOPPED
    assert 12 <= len(answer.tokens) <= 12 + 4
    assert answer.tokens == whole.tokens[: len(answer.tokens)]
    assert answer.text == decoded(talk.conversation.tokenizer, answer.tokens)
    assert talk.conversation.turns[-1].answer_ids == answer.tokens
    rest = talk.go_on()
    assert [*answer.tokens, *rest.tokens][:60] == whole.tokens, "it goes on as it would have"
    assert talk.conversation.turns[-1].answer_ids == [*answer.tokens, *rest.tokens]


def test_asked_twice_an_answer_stops_at_once_but_never_while_a_round_is_told(session: Callable[..., Session]) -> None:
    talk = session()
    talk.stop()
    with pytest.raises(Stopped):
        talk.stop()

    def twice(_answer: Answer) -> None:
        talk.stop()
        talk.stop()

    answer, _ = talk.answer("abc", Heard(twice))
    assert (len(answer.tokens), answer.ending) == (1, Ending.STOPPED)


def test_an_answer_ends_with_the_text_or_the_context(session: Callable[..., Session]) -> None:
    third = session().answer("abc")[0].tokens[3]
    ended, _ = session(eos=frozenset([third])).answer("abc")
    assert (ended.ending, ended.tokens[-1]) == (Ending.EOS, third)
    full, _ = session(most=500).answer("abc")
    assert (full.ending, len(full.tokens)) == (Ending.CONTEXT, 160 - 3)


def test_turns_of_a_plain_text_stand_one_after_another(session: Callable[..., Session]) -> None:
    talk = session(most=5)
    ids = lambda text: ids_of(talk.conversation.tokenizer, text)  # noqa: E731
    first, _ = talk.answer("one")
    second, _ = talk.answer("two")
    assert second.generation.prompt == [*ids("one"), *first.tokens, *ids("\ntwo")]
    more = talk.go_on()
    assert more.generation.prompt == [*second.generation.prompt, *second.tokens]
    third, _ = talk.answer("three")
    assert third.generation.prompt == [*more.generation.prompt, *more.tokens, *ids("\nthree")]
    talk.clear()
    assert talk.answer("one")[0].tokens == first.tokens


@pytest.mark.parametrize("begins", [[], [1]])
def test_a_text_begins_as_its_tokenizer_begins_it(begins: list[int]) -> None:
    tokenizer = characters()
    if begins:
        processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        tokenizer.backend_tokenizer.post_processor = processor
    conversation, ids = Conversation(tokenizer, 30), lambda text: ids_of(tokenizer, text)
    first = conversation.ask("ab", 10)
    assert first.prompt == [*begins, *ids("ab")]
    conversation.keep(first, [*ids("c"), 2])
    second = conversation.ask("d", 10)
    assert second.prompt == [*first.prompt, *ids("c"), 2, *begins, *ids("d")], "after an end of text a new one begins"
    conversation.keep(second, ids("e\n"))
    third = conversation.ask("f", 10)
    assert third.prompt == [*second.prompt, *ids("e\nf")]
    conversation.keep(third, ids("g"))
    last = conversation.ask("h", 25)
    assert (last.prompt, last.first) == ([*begins, *ids("fg\nh")], 2), "also where its beginning was left out"


def test_turns_stand_in_the_chat_template(session: Callable[..., Session]) -> None:
    talk = session(most=5, template=CHAT, system="be brief")
    said = lambda answer: decoded(talk.conversation.tokenizer, answer.generation.prompt)  # noqa: E731
    first, _ = talk.answer("one")
    assert said(first) == "[s]be brief\n[u]one\n[a]"
    second, _ = talk.answer("two")
    assert said(second) == f"[s]be brief\n[u]one\n[a]{first.text}\n[u]two\n[a]"
    more = talk.go_on()
    assert said(more) == said(second) + second.text
    third, _ = talk.answer("three")
    assert said(third) == f"{said(more)}{more.text}\n[u]three\n[a]"


@pytest.mark.parametrize("template", [None, CHAT])
def test_the_oldest_turns_are_left_out_of_a_full_context(session: Callable[..., Session], template: str | None) -> None:
    talk = session(most=30, template=template)
    left_out = []
    for number in range(8):
        answer, left = talk.answer(f"line {number}, and what is in it")
        left_out.append(left)
        text = decoded(talk.conversation.tokenizer, answer.generation.prompt)
        assert len(answer.tokens) == 30, "room is made for a whole answer"
        assert f"line {number}" in text
        assert f"line {number - 3}" not in text or number < 3
    assert left_out[0] == 0
    assert set(left_out[3:]) == {1}
    assert len(talk.conversation.turns) == 1 + (8 - sum(left_out) - 1)
