"""Entries to token ids: prompts for the target to continue, and rows that are text as they are.

A conversation is rendered by the target's own chat template; where its answers lie is found by
rendering its beginnings, so no template needs to be known. Raises DataError, with the entry's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from factory.data.blocks import Row, token_key
from factory.data.prompts import Entry, Message
from factory.errors import DataError

# The date that Llama's templates tell the model: a build that goes on tomorrow must read what it read today.
_TODAY = "26 Jul 2024"
_AT_ONCE = 256  # entries tokenised together: offsets of a whole data set would not fit into memory


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts that leave room for what is to be written."""

    ids: list[list[int]]
    facts: dict[str, int]  # `prompts`, `duplicate_prompts`, `left_out`


@dataclass(frozen=True)
class Rows:
    """Rows that fit into the context. Rows of one prompt have its number."""

    rows: list[Row]
    prompt: list[int]
    facts: dict[str, int]  # `prompts`, `left_out`


class Encoder:
    """A target's tokenizer and chat template. `eos` ends an answer, where the target has one; V is its vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, vocabulary: int, eos: int | None = None) -> None:
        self._tokenizer, self._vocabulary, self._eos = tokenizer, vocabulary, eos

    def prompts(self, entries: Sequence[Entry], room: int) -> Prompts:
        """What the target is to continue: a text, or a conversation up to the user's last message.

        Of equal prompts the first stays; those of more than `room` tokens are left out.
        """
        found: dict[bytes, list[int]] = {}
        left_out = duplicates = 0
        for some in _batches(entries):
            plain = [entry for entry in some if not entry.messages]
            spoken = [entry for entry in some if entry.messages]
            ids = dict(zip(map(id, plain), self._ids([entry.text for entry in plain]), strict=True))
            texts = [self._question(entry) for entry in spoken]
            ids |= zip(map(id, spoken), self._ids(texts, add_special_tokens=False), strict=True)
            for entry in some:
                tokens = ids[id(entry)]
                self._require_tokens(entry, tokens, least=1)
                key = token_key(tokens)
                if len(tokens) > room:
                    left_out += 1
                elif key in found:
                    duplicates += 1
                else:
                    found[key] = tokens
        facts = {"prompts": len(found), "duplicate_prompts": duplicates, "left_out": left_out}
        return Prompts(list(found.values()), facts)

    def rows(self, entries: Sequence[Entry], room: int) -> Rows:
        """Entries as they are. A text is learned from its second token on, an answer with the EOS behind it, and of a
        conversation what the assistant says, with the token that ends its turn.

        Rows begin alike, and have the same prompt, where they are equal before the first answer; a plain text has
        none but itself.
        """
        rows: list[Row] = []
        prompt: list[int] = []
        numbers: dict[bytes, int] = {}
        left_out = 0
        for some in _batches(entries):
            for entry, (ids, answers) in zip(some, self._rows_of(some), strict=True):
                self._require_tokens(entry, ids, least=2)
                if len(ids) > room:
                    left_out += 1
                    continue
                begins = ids if entry.answer is None and not entry.messages else ids[: _first(answers, len(ids))]
                prompt.append(numbers.setdefault(token_key(begins), len(numbers)))
                rows.append((ids, answers))
        return Rows(rows, prompt, {"prompts": len(numbers), "left_out": left_out})

    def _rows_of(self, entries: Sequence[Entry]) -> Iterator[Row]:
        """One row an entry, in their order."""
        plain = iter(self._ids([entry.text for entry in entries if not entry.messages]))
        answers = iter(
            self._ids([entry.answer for entry in entries if entry.answer is not None], add_special_tokens=False)
        )
        for entry in entries:
            if entry.messages:
                yield self._conversation(entry)
            elif entry.answer is None:
                yield next(plain), 1
            else:
                prompt, answer = next(plain), next(answers)
                yield [*prompt, *answer, *([] if self._eos is None else [self._eos])], len(prompt)

    def _ids(self, texts: Sequence[str], **settings: Any) -> list[list[int]]:
        return [list(ids) for ids in self._tokenizer(list(texts), **settings)["input_ids"]] if texts else []

    def _require_tokens(self, entry: Entry, ids: Sequence[int], least: int) -> None:
        if len(ids) < least:
            raise DataError(
                f"{entry.place}: {len(ids)} token{'s' * (len(ids) != 1)} for the target, where at least {least} are "
                "needed; give longer text, or leave it out"
            )
        if (largest := max(ids)) >= self._vocabulary:
            raise DataError(
                f"{entry.place}: its tokenizer gives token {largest}, and the target has {self._vocabulary}; leave the "
                "text out, or give the target its own tokenizer"
            )

    def _question(self, entry: Entry) -> str:
        messages = entry.question()
        if not messages:
            raise DataError(f"{entry.place}: the user says nothing, so there is nothing to answer; leave it out")
        return self._render(entry, messages, to_answer=True)

    def _conversation(self, entry: Entry) -> Row:
        """A whole conversation; each answer from behind what asks for it to the end of its turn."""
        text = self._render(entry, entry.messages)
        spans = []
        for turn, message in enumerate(entry.messages):
            if message["role"] != "assistant" or turn == 0:  # what opens a conversation answers nothing
                continue
            before = self._render(entry, entry.messages[:turn], to_answer=True)
            after = self._render(entry, entry.messages[: turn + 1])
            if not (after.startswith(before) and text.startswith(after)):
                raise DataError(
                    f"{entry.place}: the target's chat template writes message {turn + 1} otherwise at the end of a "
                    "conversation than within it, so answers cannot be told apart; give conversations of one answer, "
                    "or columns of text: `column` and `answer`"
                )
            spans.append((len(before), len(after)))
        if not self._tokenizer.is_fast:
            raise DataError(
                f"{entry.place}: the target's tokenizer cannot say where tokens lie in a conversation; give it a "
                "tokenizer.json, or columns of text: `column` and `answer`"
            )
        coded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(coded["input_ids"]), coded["offset_mapping"]
        answers = [self._answer(text, ids, offsets, span) for span in spans]
        return ids, [(start, end) for start, end in answers if start < end]

    def _answer(
        self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], span: tuple[int, int]
    ) -> tuple[int, int]:
        """The tokens that begin within a span of the text.

        Where a special token ends the turn, the line break that templates put behind it is no part of the answer:
        the target stops before it.
        """
        inside = [place for place, (start, _) in enumerate(offsets) if span[0] <= start < span[1]]
        if not inside:
            return 0, 0
        start, end = inside[0], inside[-1] + 1
        special = {*self._tokenizer.all_special_ids, self._eos}
        last = next((place for place in reversed(inside) if ids[place] in special), None)
        if last is not None and not text[offsets[last][1] : span[1]].strip():
            end = last + 1
        return start, end

    def _render(self, entry: Entry, messages: Sequence[Message], *, to_answer: bool = False) -> str:
        if not self._tokenizer.chat_template:
            raise DataError(
                f"{entry.place}: a conversation, and the target has no chat template to write it with; give columns "
                "of text: `column`, and `answer` where the target is not to write"
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=to_answer, date_string=_TODAY
                )
            )
        except Exception as error:  # a template is a program of the model's author, and raises what it likes
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"{entry.place}: the target's chat template refuses the conversation ({roles}): {error}; leave it out"
            ) from error


def _first(answers: Any, length: int) -> int:
    """Where the first answer begins; the whole length where there is none."""
    return answers if isinstance(answers, int) else min((start for start, _ in answers), default=length)


def _batches(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    return (entries[start : start + _AT_ONCE] for start in range(0, len(entries), _AT_ONCE))
