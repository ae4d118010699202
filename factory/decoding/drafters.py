"""What guesses the next tokens: a model, or the text itself. A drafter never calls the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from factory.decoding.graphed import GraphedReader
from factory.decoding.reader import Reader, right_padded
from factory.decoding.rejection import Draft, no_draft
from factory.decoding.sampler import Sampler
from factory.decoding.sampling import PointMasses, Sampling, draw
from factory.decoding.vocabulary import fitted


class Drafter(Protocol):
    """Proposes tokens for a batch of rows, and is told what became of them."""

    name: str
    vocabulary: int  # ids that it may propose; must be the target's

    def prepare(self, rows: int, ks: Sequence[int], tokens: int, sampling: Sampling) -> None:
        """Make ahead of use what it needs to propose so many tokens, in texts of a batch that grow to `tokens`."""

    def start(self, prompts: list[list[int]], capacity: int, sampler: Sampler) -> None:
        """Begin a batch whose rows reach at most `capacity` tokens. The sampler is the loop's: only ask it."""

    def propose(self, k: int) -> Draft:
        """Up to k tokens per row."""

    def commit(self, tokens: list[list[int]]) -> None:
        """The tokens that each row emitted since the last call, at least one.

        All but a row's last are those that it proposed, in order. The first call brings the token
        that the prefill gave.
        """

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order."""


class ModelDrafter:
    """A smaller model, or the target itself, that writes k tokens one by one.

    After a round its cache holds too much (a guess fell) or lacks its own last guess (all stood):
    `commit` rewinds to what was emitted, and the next proposal first feeds what is missing, one or
    two tokens as a rule. A row whose text has outgrown the drafter's context proposes nothing.
    """

    def __init__(
        self,
        reader: Reader,
        name: str = "model",
        *,
        vocabulary: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`vocabulary`: rows of the target's head, where that differs; `require_one_vocabulary` says whether it may.

        `device`: the target's, where that differs: drafts and q are handed over there, and the sampler is there.
        """
        self.name = name
        self._device = reader.device if device is None else device
        self.vocabulary = reader.vocabulary if vocabulary is None else vocabulary
        self._reader = reader
        self._text: list[list[int]] = []  # prompt and output, per row
        self._sampler: Sampler

    def start(self, prompts: list[list[int]], capacity: int, sampler: Sampler) -> None:
        """Read the prompts."""
        self._text = [list(prompt) for prompt in prompts]
        self._sampler = sampler
        self._reader.start(len(prompts), min(capacity, self._reader.context + 1))
        readable = [prompt if len(prompt) <= self._reader.context else [] for prompt in prompts]
        if any(readable):
            self._read(readable)

    def propose(self, k: int) -> Draft:
        """Up to k tokens per row, each drawn from the drafter's own distribution, which goes along as q."""
        reader, sampler = self._reader, self._sampler
        # the last guess is never fed: one more than the context has room for
        length = [max(0, min(k, reader.context + 1 - len(text))) for text in self._text]
        guesses = max(length)
        if guesses == 0:
            return no_draft(len(length), self._device)
        if isinstance(reader, GraphedReader) and not sampler.looks_back and reader.records(len(length), 2):
            return self._recorded(reader, guesses, length)
        logits = self._read(self._unread(length)).to(self._device)
        numbers = sampler.uniform("draft", guesses)
        tokens: list[torch.Tensor] = []  # [B, 1] each
        drawn_from: list[torch.Tensor] = []
        for guess in range(guesses):
            if guess > 0:
                fed = None if guess < min(length) else [int(guess < room) for room in length]
                logits = reader.feed_last(tokens[-1].to(reader.device), fed).to(self._device)
            logits = fitted(logits, self.vocabulary)
            q = sampler.distribution(logits, torch.cat(tokens, dim=1) if tokens and sampler.looks_back else None)
            tokens.append(draw(q, None if numbers is None else numbers[:, guess : guess + 1]).unsqueeze(1))
            if not isinstance(q, PointMasses):
                drawn_from.append(q)
        q_of_all = torch.stack(drawn_from, dim=1) if drawn_from else None
        return Draft(torch.cat(tokens, dim=1), length, q_of_all)

    def prepare(self, rows: int, ks: Sequence[int], tokens: int, sampling: Sampling) -> None:
        """Have the reader made ready to propose so many tokens, in texts of a batch that grow to `tokens`."""
        if isinstance(self._reader, GraphedReader) and not sampling.looks_back:
            for k in ks:
                self._reader.prepare_writing(rows, k, tokens, sampling, self.vocabulary)
        else:
            self._reader.prepare(rows, (1, 2), tokens)

    def _recorded(self, reader: GraphedReader, guesses: int, length: list[int]) -> Draft:
        """The same by one recording, which begins with the last two tokens of each text."""
        before = self._unread(length, kept=2)
        if any(before):
            with reader.unrecorded():
                self._read(before)
        reader.rewind([min(read, len(text) - 2) for text, read in zip(self._text, reader.lengths, strict=True)])
        sampling = self._sampler.sampling
        k = reader.recorded_k(guesses, len(self._text), sampling, self.vocabulary)
        last, numbers = [text[-2:] for text in self._text], self._sampler.uniform("draft", k)
        tokens, q = reader.write(last, k, sampling, numbers, self.vocabulary)
        q = None if q is None else q[:, :guesses].to(self._device)
        return Draft(tokens[:, :guesses].to(self._device), length, q)

    def _unread(self, length: list[int], kept: int = 0) -> list[list[int]]:
        """What each row that has room lacks in its cache, but for the last `kept` tokens of its text."""
        return [
            text[read : len(text) - kept] if room else []
            for text, read, room in zip(self._text, self._reader.lengths, length, strict=True)
        ]

    def _read(self, unread: list[list[int]]) -> torch.Tensor:
        """Logits [B, W] behind each row's tokens. An id that the drafter has no row for is read as its last one."""
        tokens, count = right_padded(unread, self._reader.device)
        if self._reader.vocabulary < self.vocabulary:
            tokens.clamp_(max=self._reader.vocabulary - 1)
        return self._reader.feed_last(tokens, count)

    def commit(self, tokens: list[list[int]]) -> None:
        """Rewind to what was emitted: of a row's tokens only the last was not drafted here."""
        stands = [len(text) + len(new) - 1 for text, new in zip(self._text, tokens, strict=True)]
        self._reader.rewind([min(pair) for pair in zip(self._reader.lengths, stands, strict=True)])
        for text, new in zip(self._text, tokens, strict=True):
            text += new

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order."""
        self._reader.select(rows)
        self._text = [self._text[row] for row in rows]


class PromptLookup:
    """Continues the text as it went on when its last few tokens last occurred (Saxena, 2023: prompt lookup decoding).

    Free of training and almost of cost, so every drafter has to beat it. The longest match counts,
    then the latest. Copying runs on into its own guesses, so that a loop of any period goes on.
    Its guesses are certain (q is None); it proposes nothing where nothing matches.
    """

    name = "prompt-lookup"

    def __init__(
        self, max_ngram: int = 3, min_ngram: int = 1, *, vocabulary: int, device: torch.device | str = "cpu"
    ) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"need 1 <= min_ngram <= max_ngram, got {min_ngram} and {max_ngram}")
        self.vocabulary = vocabulary
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._device = torch.device(device)
        self._text: list[list[int]] = []
        self._after: list[dict[tuple[int, ...], int]] = []  # per row: n-gram -> where its latest continuation begins

    def prepare(self, rows: int, ks: Sequence[int], tokens: int, sampling: Sampling) -> None:
        """There is nothing to make."""

    def start(self, prompts: list[list[int]], capacity: int, sampler: Sampler) -> None:
        """Index the prompts."""
        self._text = [[] for _ in prompts]
        self._after = [{} for _ in prompts]
        self.commit(prompts)

    def propose(self, k: int) -> Draft:
        """k tokens for each row whose end occurred before, none for the others."""
        guesses = [self._continue(text, after, k) for text, after in zip(self._text, self._after, strict=True)]
        tokens, length = right_padded(guesses, self._device)
        return Draft(tokens, length, None)

    def commit(self, tokens: list[list[int]]) -> None:
        """Append to the text; an n-gram enters the index only once something follows it."""
        for text, after, new in zip(self._text, self._after, tokens, strict=True):
            for token in new:
                for size in self._sizes:
                    if size <= len(text):
                        after[tuple(text[-size:])] = len(text)
                text.append(token)

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order."""
        self._text = [self._text[row] for row in rows]
        self._after = [self._after[row] for row in rows]

    def _continue(self, text: Sequence[int], after: dict[tuple[int, ...], int], k: int) -> list[int]:
        for size in self._sizes:
            start = after.get(tuple(text[-size:])) if size <= len(text) else None
            if start is not None:
                period = len(text) - start
                return [text[start + guess % period] for guess in range(k)]
        return []
