"""Answers written one after another by a target and what drafts for it. Knows no terminal and no files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.timing.bench import Stopwatch
from factory.chat.answer import Answer, Ending, Piece, Speed
from factory.chat.conversation import Conversation, Question
from factory.chat.settings import OFF, Settings
from factory.chat.stream import TextStream
from factory.decoding.costs import measure_costs
from factory.decoding.decoder import Generation, Limits, Round, autoregressive, speculative
from factory.decoding.drafters import Drafter
from factory.decoding.pace import AutoPace
from factory.decoding.reader import Reader
from factory.decoding.sampling import Noise, Sampling
from factory.errors import DataError

# Sees the answer after every round, and the text that this round made certain; what it takes is not counted.
Told = Callable[[Answer, Sequence[Piece]], None]

ALONE_TOKENS = 32  # what the target writes alone, once, so that there is a figure without a drafter
_WARM_UP_TOKENS, _WARM_UP_K = 8, 4


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Writing was stopped from outside."""


@dataclass(frozen=True)
class Comparison:
    """One answer written both ways, once each."""

    alone: Answer
    drafted: Answer

    @property
    def first_difference(self) -> int | None:
        """The first token, from 0, in which the two differ; None where they are the same."""
        one, other = self.alone.tokens, self.drafted.tokens
        same = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))
        return None if one == other else min(same, len(other))


class Session:
    """A conversation with a target, its drafters and its settings, and the last speed of the target alone.

    Every answer is one request of its own: the same lines with the same settings and seed give the same
    answers; where k is chosen as it goes, that holds for greedy ones, since a sampled text differs between k.
    Raises what decoding raises.
    """

    def __init__(
        self,
        target: Reader,
        drafters: dict[str, Drafter],
        conversation: Conversation,
        settings: Settings,
        eos: frozenset[int],
        seed: int = 0,
    ) -> None:
        self.target, self.drafters = target, drafters
        self.conversation, self.settings = conversation, settings
        self.alone: Speed | None = None  # of the target without a drafter, as last measured
        self.last: Answer | None = None
        self._eos, self._seed = eos, seed
        self._paces: dict[tuple[str, bool], AutoPace] = {}  # by drafter, and whether greedy: a draw has its costs
        self._requests = 0
        self._stopping = self._hearing = self._measuring = False

    def answer(self, line: str, told: Told | None = None) -> tuple[Answer, int]:
        """Write what follows a new line; returns it, and how many of the oldest turns were left out for it.

        Raises DataError where the line does not fit into the context.
        """
        reserve = min(self.settings.max_new_tokens, self.conversation.context // 2)
        question = self.conversation.ask(line, reserve)
        before = [] if self.conversation.templated else question.prompt
        return self._kept(question, before, told), question.first

    def go_on(self, told: Told | None = None) -> Answer:
        """Continue the last answer. Raises DataError where there is none, or no room in the context."""
        question = self.conversation.go_on()
        return self._kept(question, question.prompt, told)

    def measure_alone(self) -> None:
        """Let the target begin the last answer again without a drafter, unseen, and keep its speed in `alone`."""
        if self.last is not None:
            self._write(self.last.generation.prompt, OFF, min(ALONE_TOKENS, len(self.last.tokens)), None)

    def compare(self) -> Comparison | None:
        """The last answer again, without a drafter and then with it, unseen; None where it was stopped meanwhile.

        Raises DataError as `comparable` does.
        """
        last = self.comparable()
        prompt, most = last.generation.prompt, len(last.tokens)
        self._prepare(prompt)
        alone = self._write(prompt, OFF, most, None)
        if alone.ending is Ending.STOPPED:
            return None
        drafted = self._write(prompt, self.settings.drafter, most, None)
        return None if drafted.ending is Ending.STOPPED else Comparison(alone, drafted)

    def comparable(self) -> Answer:
        """What would be compared. Raises DataError where nothing was written yet, or nothing drafts."""
        if self.last is None:
            raise DataError("nothing has been written yet that could be compared")
        if self.settings.drafter == OFF:
            raise DataError("nothing drafts, so there is nothing to compare with: /drafter on, or /lookup")
        return self.last

    def warm_up(self) -> None:
        """Write a little with everything there is, so that no first answer pays for what happens only once."""
        limits = Limits(_WARM_UP_TOKENS, frozenset(), self.conversation.context)
        noise = Noise(self._seed, [0], device=self.target.device)
        prompt, sampling = [[next(iter(self._eos), 0)]], Sampling(self.settings.temperature)
        autoregressive(self.target, prompt, sampling, limits, noise)
        for drafter in self.drafters.values():
            speculative(self.target, drafter, prompt, self.settings.k or _WARM_UP_K, sampling, limits, noise)

    @property
    def needs_costs(self) -> bool:
        """Whether the next drafted answer first measures what rounds cost, to choose k by: dozens of target steps."""
        return self.settings.k is None and self.settings.drafter != OFF and self._setting not in self._paces

    def clear(self) -> None:
        """Forget what was said; settings and figures stay."""
        self.conversation.clear()
        self.last = None

    def stop(self) -> None:
        """End the answer that is being written after its present round; asked again, at once, by raising Stopped.

        Measuring ends at once too. For a signal handler: the second asking may come when the answer has just ended.
        """
        if self._measuring or (self._stopping and not self._hearing):
            raise Stopped
        self._stopping = True

    def _kept(self, question: Question, before: Sequence[int], told: Told | None) -> Answer:
        self._prepare(question.prompt)
        stream = TextStream(self.conversation.tokenizer, before)
        self._requests += 1
        answer = self._write(question.prompt, self.settings.drafter, self.settings.max_new_tokens, told, stream)
        if answer.tokens:
            self.conversation.keep(question, answer.tokens)
            self.last = answer
        return answer

    @property
    def _setting(self) -> tuple[str, bool]:
        return self.settings.drafter, self.settings.temperature == 0

    def _prepare(self, prompt: list[int]) -> None:
        """Measure what has to be known before the clock of an answer runs."""
        if not self.needs_costs:
            return
        drafter, sampling = self.drafters[self.settings.drafter], Sampling(self.settings.temperature)
        self._measuring = True
        try:
            now_s = Stopwatch(str(self.target.device)).now_s
            self._paces[self._setting] = AutoPace(measure_costs(self.target, drafter, [prompt], sampling, now_s))
        finally:
            self._measuring = False

    def _write(
        self, prompt: list[int], drafter: str, most: int, told: Told | None, stream: TextStream | None = None
    ) -> Answer:
        settings, self._stopping, self._hearing = self.settings, False, False
        answer = Answer(Generation(prompt), None if drafter == OFF else drafter, settings.k)
        shown_s = 0.0

        def listen(told_round: Round) -> None:
            nonlocal shown_s
            now_s, self._hearing = time.perf_counter(), True
            new = answer.hear(told_round, now_s - begun_s - shown_s)
            if stream is not None:
                pieces = _pieces(stream, new, answer)
                answer.text += "".join(piece.text for piece in pieces)
                if told is not None:
                    told(answer, pieces)
            shown_s += time.perf_counter() - now_s
            self._hearing = False
            if self._stopping:
                raise Stopped

        given = ([prompt], Sampling(settings.temperature), Limits(most, self._eos, self.conversation.context))
        noise = Noise(self._seed, [self._requests], device=self.target.device)
        begun_s = time.perf_counter()
        try:
            if drafter == OFF:
                autoregressive(self.target, *given, noise, listener=listen)
            else:
                k = self._paces[self._setting] if settings.k is None else settings.k
                speculative(self.target, self.drafters[drafter], given[0], k, *given[1:], noise, listener=listen)
            answer.ending = self._ending(answer, most)
        except Stopped:
            answer.ending = Ending.STOPPED
        if stream is not None and (rest := stream.flush()):
            answer.text += rest
            if told is not None:
                told(answer, [Piece(rest, answer.origins[-1])])
        if drafter == OFF and answer.speed is not None:
            self.alone = answer.speed
        return answer

    def _ending(self, answer: Answer, most: int) -> Ending:
        if answer.tokens[-1] in self._eos:
            return Ending.EOS
        return Ending.LENGTH if len(answer.tokens) == most else Ending.CONTEXT


def _pieces(stream: TextStream, new: Sequence[int], answer: Answer) -> list[Piece]:
    """The text that these last tokens of an answer made certain."""
    origins = answer.origins[len(answer.origins) - len(new) :]
    pieces = [Piece(stream.push(token), origin) for token, origin in zip(new, origins, strict=True)]
    return [piece for piece in pieces if piece.text]
