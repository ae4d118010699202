"""A talk: what is said and shown, the comparison with the target alone, commands."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from talking import CHAT

from factory.chat import commands
from factory.chat.answer import Answer, Ending, Origin, Speed
from factory.chat.figures import compared, status
from factory.chat.screen import Screen
from factory.chat.session import Comparison, Session
from factory.chat.settings import LOOKUP, MODEL, OFF, Settings
from factory.chat.talk import Talk
from factory.decoding.decoder import Generation
from factory.errors import DataError

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHAT


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
