"""Answers of a session without a terminal: text, origins, figures, turns, commands."""

from __future__ import annotations

import copy
import io
import random
import time
from collections.abc import Callable, Sequence

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from factory.chat import commands
from factory.chat.answer import Answer, Ending, Origin, Piece, Speed
from factory.chat.conversation import Conversation
from factory.chat.figures import compared, status
from factory.chat.screen import Screen
from factory.chat.session import Comparison, Session, Stopped
from factory.chat.settings import LOOKUP, MODEL, OFF, Settings
from factory.chat.stream import TextStream, decoded
from factory.chat.talk import Talk
from factory.decoding.decoder import Generation, Limits, Round, speculative
from factory.decoding.drafters import ModelDrafter, PromptLookup
from factory.decoding.readers import open_reader
from factory.decoding.sampling import Noise, Sampling
from factory.errors import DataError

CHAT = (
    "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHAT


def characters(template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a character, ids 3 to 127; <s> is added by nobody."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{chr(code): code - 6 for code in range(9, 134)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.chat_template = template
    return made


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


def test_a_talk_says_what_happens_once(session: Callable[..., Session]) -> None:
    out, notes = io.StringIO(), io.StringIO()
    chatting = Talk(session(k=None, most=30, template=CHAT), Screen(out, notes, styled=False), interactive=False)
    lines = [f"line {number}, and what is in it" for number in range(6)]
    chatting.run(iter([*lines, "/clear", *lines, "x" * 200, "// text", "/usr/bin is text", " ", "/quit", "/never"]))
    said = notes.getvalue()
    assert said.count("the context is full: from here on the oldest turns are left out") == 2, (
        "once, and anew after /clear"
    )
    assert said.count("measuring what rounds of this drafter cost, once") == 1
    assert said.count("measuring the target alone, once") == 1
    assert said.count("first token after") == 14
    assert said.count("which leaves no room in a context of 160: shorten it") == chatting.refused == 1
    assert "no chat template" not in said
    assert "/never" not in said


def test_a_line_that_fills_the_context_is_refused_and_nothing_is_kept(session: Callable[..., Session]) -> None:
    talk = session(most=20)
    talk.answer("abc")
    with pytest.raises(DataError, match=r"a prompt of 161 tokens.*context of 160: shorten it"):
        talk.answer("x" * 160)
    answer, left = talk.answer("x" * 157)  # with the line's beginning 158
    assert (left, len(answer.tokens), answer.ending) == (1, 2, Ending.CONTEXT)
    with pytest.raises(DataError, match="the context of 160 tokens is full"):
        talk.go_on()


def test_what_cannot_be_asked_is_said(session: Callable[..., Session]) -> None:
    with pytest.raises(DataError, match="no chat template, so a system message has no place"):
        session(system="be brief")
    with pytest.raises(DataError, match=r"refuses this conversation: no system here \(it may take no system"):
        session(system="be brief", template=NO_SYSTEM)
    assert session(template=NO_SYSTEM).answer("a")[0].tokens
    with pytest.raises(DataError, match="nothing has been written yet that could go on"):
        session().go_on()
    with pytest.raises(DataError, match="nothing has been written yet that could be compared"):
        session().compare()
    alone = session(OFF)
    alone.answer("abc")
    with pytest.raises(DataError, match="nothing drafts"):
        alone.compare()


def test_a_comparison_writes_the_same_answer_both_ways(session: Callable[..., Session]) -> None:
    talk = session(most=30)
    talk.warm_up()
    assert talk.alone is None
    answer, _ = talk.answer("def f(")
    comparison = talk.compare()
    assert comparison is not None
    assert comparison.first_difference is None
    assert comparison.alone.tokens == comparison.drafted.tokens == answer.tokens
    assert (comparison.alone.drafter, comparison.drafted.drafter) == (None, MODEL)
    assert comparison.alone.generation.target_passes == 30 > comparison.drafted.generation.target_passes
    assert comparison.drafted.generation == answer.generation
    assert talk.alone == comparison.alone.speed
    assert len(talk.conversation.turns) == 1, "and is not said again"
    lines = compared(comparison, greedy=True)
    assert lines[0].startswith("the target alone: ")
    assert lines[1].startswith("drafted by model: ")
    assert lines[-1] == "the same tokens"


def test_the_target_is_measured_alone_on_the_beginning_of_the_answer(session: Callable[..., Session]) -> None:
    talk = session(most=50)
    answer, _ = talk.answer("def f(")
    assert "the target alone: not measured yet" in status(answer, talk.alone)
    talk.measure_alone()
    assert talk.alone is not None
    assert talk.alone.tokens == 31
    assert talk.last is answer
    assert f"x the target alone, {talk.alone.tok_per_s:.1f} tokens/s over 31" in status(answer, talk.alone)


def test_where_two_answers_differ() -> None:
    def between(one: list[int], other: list[int]) -> int | None:
        return Comparison(
            Answer(Generation([1], one), None, 2), Answer(Generation([1], other), "x", 2)
        ).first_difference

    assert between([1, 2, 3], [1, 2, 3]) is None
    assert between([1, 2, 3], [1, 5, 3]) == 1
    assert between([1, 2, 3], [1, 2]) == 2
    assert between([1, 2], [1, 2, 3]) == 2


def test_display_is_not_counted_as_writing(session: Callable[..., Session]) -> None:
    clock = iter(float(second) for second in range(10_000))
    talk = session(most=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("factory.chat.session.time.perf_counter", lambda: next(clock))
        answer, _ = talk.answer("abc", lambda *_: [next(clock) for _ in range(100)] and None)
    # a second from the prompt to the first round, and one a round: the clock is read once before and once after telling
    assert answer.total_s == answer.generation.target_passes
    assert answer.first_s == 1


def test_the_status_line_has_every_figure(session: Callable[..., Session]) -> None:
    answer, _ = session().answer("def f(")
    answer.first_s, answer.total_s = 1.0, 14.0
    line = status(answer, Speed(30, 15.0))
    assert line.startswith(
        f"3.0 tokens/s · tau {answer.tau:.2f} · alpha {answer.alpha:.2f} · 1.50x the target alone, 2.0 "
    )
    counts = [f"{answer.count(origin)} {origin.value}" for origin in Origin]
    assert f"40 tokens: {', '.join(counts)} · k 4 · first token after 1.00 s · max-new-tokens reached" in line
    plain, _ = session(OFF, most=1).answer("def f(")
    assert status(plain, None).startswith("no speed yet · without a drafter · 1 token · first token after ")


def test_commands_change_the_settings(session: Callable[..., Session]) -> None:
    talk = session()
    for line in ("/k 7", "/temp 0.5", "/drafter off"):
        commands.change(talk.settings, *commands.split(line), has_model=True)
    assert talk.settings == Settings(OFF, 7, 0.5, 40)
    assert talk.settings.words == "nothing drafts; temperature 0.5"
    for line in ("/k  auto ", "/temp 0", "/lookup"):
        commands.change(talk.settings, *commands.split(line), has_model=True)
    assert talk.settings == Settings(LOOKUP, None, 0.0, 40)
    assert talk.settings.words == "prompt lookup drafts, k auto; greedy"
    commands.change(talk.settings, *commands.split("/drafter on"), has_model=True)
    assert talk.settings.drafter == MODEL


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/k 0", "/k: must be a whole number from 1 to 64, or auto, not '0'"),
        ("/k 65", "/k: must be a whole number from 1 to 64"),
        ("/k -1", "/k: must be a whole number"),
        ("/k ²", "/k: must be a whole number"),
        ("/k 2 3", "/k: must be a whole number"),
        ("/k", "/k: write /k N, or auto"),
        ("/temp warm", r"/temp: must be a number from 0 \(greedy\) to 10, not 'warm'"),
        ("/temp nan", "/temp: must be a number"),
        ("/temp -0.1", "/temp: must be a number"),
        ("/temp inf", "/temp: must be a number"),
        ("/drafter yes", "/drafter: must be on, lookup or off, not 'yes'"),
        ("/drafter on", "/drafter: there is no model that could draft; start with an ARTIFACT"),
        ("/clear all", "/clear: takes no 'all'"),
        ("/drafer off", r"/drafer: no such command; did you mean /drafter\?"),
        ("/xyzzy", "/xyzzy: no such command; /help lists them"),
    ],
)
def test_a_wrong_command_is_said_and_changes_nothing(line: str, message: str) -> None:
    current = Settings(LOOKUP, 4, 0.0, 40)
    with pytest.raises(DataError, match=message):
        commands.change(current, *commands.split(line), has_model=False)
    assert current == Settings(LOOKUP, 4, 0.0, 40)


def test_help_names_every_command() -> None:
    for name in ("/k", "/temp", "/drafter", "/lookup", "/more", "/compare", "/clear", "/quit"):
        assert name in commands.HELP
        assert commands.split(f"{name} x" if name in ("/k", "/temp", "/drafter") else name)[0] == name
