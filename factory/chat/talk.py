"""The loop: a line in, an answer or the effect of a command out."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from factory.chat.answer import Answer, Ending, Piece
from factory.chat.commands import HELP, change, split
from factory.chat.figures import HOW, compared, status
from factory.chat.screen import Screen
from factory.chat.session import ALONE_TOKENS, Session, Stopped
from factory.chat.settings import MODEL, OFF
from factory.errors import FactoryError

_COMMAND = re.compile(r"/[A-Za-z]+(\s|$)")  # "// a comment" and "/usr/bin" are text
_PROMPT, _GOES_ON = "> ", "... "


class Talk:
    """A session in front of whoever writes lines. A fault of a line is said, and the talk goes on."""

    def __init__(self, session: Session, screen: Screen, interactive: bool) -> None:
        """`interactive`: somebody sits there, so Ctrl-C stops one answer and not everything."""
        self.refused = 0  # lines that could not be carried out
        self._session, self._screen, self._interactive = session, screen, interactive
        self._legend_shown = self._left_out_said = False

    def run(self, lines: Iterator[str]) -> None:
        """Carry out line after line, until they end or one says /quit."""
        screen, session = self._screen, self._session
        if not session.conversation.templated:
            screen.note("the tokenizer has no chat template: what you write is a text, and the target goes on with it")
        screen.note(f"{session.settings.words}. /help lists the commands")
        for line in lines:
            if line.strip() == "/quit":
                return
            try:
                self._carry_out(line)
            except FactoryError as error:
                self.refused += 1
                screen.note(str(error))

    def _carry_out(self, line: str) -> None:
        session, screen = self._session, self._screen
        if not _COMMAND.match(line):
            if line.strip():
                self._answer(line)
            return
        name, argument = split(line)
        if name == "/help":
            screen.note(f"{HELP}\n{HOW}")
        elif name == "/clear":
            session.clear()
            self._left_out_said = False
            screen.note("forgotten: the next line begins anew")
        elif name == "/more":
            self._answer(None)
        elif name == "/compare":
            self._compare()
        else:
            change(session.settings, name, argument, has_model=MODEL in session.drafters)
            screen.note(session.settings.words)

    def _answer(self, line: str | None) -> None:
        """Write what follows a line; None goes on with the last answer."""
        session, screen = self._session, self._screen
        if not self._legend_shown and session.settings.drafter != OFF:
            screen.legend()
            self._legend_shown = True
        self._announce_costs()

        def told(answer: Answer, pieces: Sequence[Piece]) -> None:
            screen.show(pieces)
            screen.live(status(answer, session.alone))

        shown = line.rsplit("\n", 1)[-1] if line is not None and not session.conversation.templated else ""
        answer, left_out = None, 0
        screen.begin(shown)
        try:
            with self._stoppable():
                if line is None:
                    answer = session.go_on(told)
                else:
                    answer, left_out = session.answer(line, told)
        finally:
            screen.end()
        if left_out and not self._left_out_said:
            self._left_out_said = True
            screen.note("the context is full: from here on the oldest turns are left out; /clear begins anew")
        if answer is None or not answer.tokens:
            screen.note("stopped before the first token: nothing is kept of it")
            return
        if answer.drafter and session.alone is None and answer.speed and answer.ending is not Ending.STOPPED:
            screen.note(f"measuring the target alone, once: up to {ALONE_TOKENS} tokens of this answer, unseen")
            with self._stoppable():
                session.measure_alone()
        screen.note(status(answer, session.alone))

    def _compare(self) -> None:
        session, screen = self._session, self._screen
        comparison, tokens = None, len(session.comparable().tokens)
        self._announce_costs()
        screen.note(f"writing the last answer ({tokens} tokens) again, by the target alone and then drafted, unseen")
        with self._stoppable():
            comparison = session.compare()
        greedy = session.settings.temperature == 0
        for line in compared(comparison, greedy) if comparison else ["stopped: nothing was compared"]:
            screen.note(line)

    def _announce_costs(self) -> None:
        if self._session.needs_costs:
            self._screen.note(
                "measuring what rounds of this drafter cost, once, to choose k by; /k N needs no measuring"
            )

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Ctrl-C ends what is being written, not the talk; in a pipe it ends everything, as elsewhere."""
        if not self._interactive:
            yield
            return

        def stop(_signal: int, _frame: FrameType | None) -> None:
            self._screen.interrupted()
            self._session.stop()

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        except Stopped:  # asked twice, just as the answer ended
            pass
        finally:
            signal.signal(signal.SIGINT, before)


def joined(read: Callable[[bool], str]) -> Iterator[str]:
    """Lines, each with those that it goes on in after a backslash. `read(goes_on)` gives the next one, or EOFError."""
    parts: list[str] = []
    while True:
        try:
            line = read(bool(parts))
        except EOFError:
            if parts:
                yield "\n".join(parts)
            return
        if line.endswith("\\"):
            parts.append(line[:-1])
            continue
        yield "\n".join([*parts, line])
        parts = []


def typed(goes_on: bool) -> str:
    """A line that somebody types at a prompt; Ctrl-C there ends the input as Ctrl-D does. Raises EOFError."""
    try:
        return input(_GOES_ON if goes_on else _PROMPT)
    except KeyboardInterrupt:
        raise EOFError from None


def piped(lines: TextIO) -> Callable[[bool], str]:
    """The same of a pipe or file, without a prompt."""

    def read(_goes_on: bool) -> str:
        line = lines.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n")

    return read
