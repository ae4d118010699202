"""What has been said, and the token ids that the target reads next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError  # torch brings it, transformers runs templates with it
from transformers import PreTrainedTokenizerBase

from factory.chat.stream import decoded
from factory.errors import DataError

Message = dict[str, str]  # role, content
_LAST_CHARACTER = 4  # tokens that hold it for sure


@dataclass(frozen=True)
class Turn:
    """A line and what was written after it."""

    line: str
    line_ids: list[int]  # as they stand in a plain text; empty under a chat template
    answer_ids: list[int]


@dataclass(frozen=True)
class Question:
    """What the target is to go on from."""

    line: str
    line_ids: list[int]
    prompt: list[int]
    first: int  # the first turn that is in the prompt
    going_on: bool = False  # the last answer is continued


class Conversation:
    """Turns in the tokenizer's chat template or, where it has none, one text that grows.

    Where turns and an answer would not fit into the context, the oldest turns are left out, whole ones only,
    since half a turn means something else. Nothing is kept until `keep` is told what became of a question.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int, system: str | None = None) -> None:
        """Raises DataError where there is a `system` message and no place for it."""
        self.tokenizer = tokenizer
        self.context = context
        self.templated = bool(tokenizer.chat_template)
        self.turns: list[Turn] = []
        self._last: Question | None = None
        self._system = [] if system is None else [{"role": "system", "content": system}]
        if self._system and not self.templated:
            raise DataError(
                "the target's tokenizer has no chat template, so a system message has no place: leave it out"
            )
        if self._system:
            self._templated([], "x")  # a template that takes none is found out before the first answer

    def ask(self, line: str, reserve: int) -> Question:
        """The question that a new line puts; old turns leave where fewer than `reserve` tokens would be left to write.

        Raises DataError where the line has no tokens, or fills the context alone.
        """
        line_ids = [] if self.templated else self._plain_ids(line)

        def prompt(turns: Sequence[Turn]) -> list[int]:
            return self._templated(turns, line) if self.templated else self._plain(turns, line_ids)

        return Question(line, line_ids, *self._fitted(prompt, reserve))

    def go_on(self) -> Question:
        """The question that continues the last answer. Raises DataError where there is none, or no room."""
        if self._last is None or not self.turns:
            raise DataError("nothing has been written yet that could go on")
        prompt = self._last.prompt + self.turns[-1].answer_ids
        if len(prompt) >= self.context:
            raise DataError(f"the context of {self.context} tokens is full: /clear, or write a new line")
        return Question(self._last.line, self._last.line_ids, prompt, 0, going_on=True)

    def keep(self, question: Question, answer_ids: Sequence[int]) -> None:
        """Remember a question with what was written after it; what it left out is forgotten."""
        if question.going_on:
            last = self.turns.pop()
            self.turns.append(Turn(last.line, last.line_ids, [*last.answer_ids, *answer_ids]))
            return
        self.turns = [*self.turns[question.first :], Turn(question.line, question.line_ids, list(answer_ids))]
        self._last = question

    def clear(self) -> None:
        """Forget every turn; the system message stays."""
        self.turns, self._last = [], None

    def _fitted(self, prompt: Callable[[Sequence[Turn]], list[int]], reserve: int) -> tuple[list[int], int]:
        for first in range(len(self.turns)):
            ids = prompt(self.turns[first:])
            if len(ids) + reserve <= self.context:
                return ids, first
        ids = prompt([])
        if len(ids) >= self.context:
            raise DataError(
                f"this line makes a prompt of {len(ids)} tokens, which leaves no room in a context of {self.context}: "
                "shorten it"
            )
        return ids, len(self.turns)

    def _templated(self, turns: Sequence[Turn], line: str) -> list[int]:
        messages: list[Message] = [*self._system]
        for turn in turns:
            messages.append({"role": "user", "content": turn.line})
            messages.append({"role": "assistant", "content": decoded(self.tokenizer, turn.answer_ids)})
        messages.append({"role": "user", "content": line})
        try:
            ids: list[int] = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except (TemplateError, ValueError, TypeError) as error:
            system = " (it may take no system message: try without)" if self._system else ""
            raise DataError(f"the tokenizer's chat template refuses this conversation: {error}{system}") from error
        return ids

    def _plain(self, turns: Sequence[Turn], line_ids: list[int]) -> list[int]:
        ids = [token for turn in turns for token in (*turn.line_ids, *turn.answer_ids)] + line_ids
        begins = self._beginning()
        return ids if ids[: len(begins)] == begins else begins + ids

    def _plain_ids(self, line: str) -> list[int]:
        """A line's ids where it stands: on a line of its own, or first in a text where the last one has ended."""
        written = self.turns[-1].answer_ids if self.turns else []
        begins = not written or written[-1] in self.tokenizer.all_special_ids
        if not begins and not decoded(self.tokenizer, written[-_LAST_CHARACTER:]).endswith("\n"):
            line = "\n" + line
        ids: list[int] = self.tokenizer(line, add_special_tokens=False)["input_ids"]
        if not ids:
            raise DataError("this line has no tokens: write something")
        return self._beginning() + ids if begins else ids

    def _beginning(self) -> list[int]:
        """BOS, where this tokenizer begins a text with it."""
        first: list[int] = self.tokenizer("a")["input_ids"][:1]
        return first if first == [self.tokenizer.bos_token_id] else []
