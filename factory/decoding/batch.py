"""The texts of a batch while they are written: where each one ends, what each pass brought, which rows go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from factory.decoding.sending import sent
from factory.decoding.stops import Stops, StopWatch
from factory.errors import DataError


@dataclass(frozen=True)
class Limits:
    """Where a text ends.

    After max_new_tokens, after any `eos` token, where prompt and output fill the context, or with the
    first token at which the output contains a string of `stops`.
    """

    max_new_tokens: int
    eos: frozenset[int]
    context: int
    stops: Stops | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass
class Generation:
    """What was written for one prompt, and what it took.

    `accepted` and `proposed` have one entry per round after the prefill. Guesses behind an accepted
    guess that ended the text were examined by nobody and are not in `proposed`; so a round has a
    rejection iff accepted < proposed, and emits accepted + 1 tokens unless an accepted guess ends it.
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)  # new ones only; an EOS is the last
    target_passes: int = 0
    accepted: list[int] = field(default_factory=list)
    proposed: list[int] = field(default_factory=list)
    stop: str | None = None  # the stop string that ended it


@dataclass(frozen=True)
class Round:
    """What one target pass brought to the rows that were still being written, in any order.

    Of row b's new tokens the first accepted[b] were proposed; one more, where there is one, is the
    target's own: a correction where accepted[b] < proposed[b], else a bonus.
    """

    rows: list[int]  # which prompts, from 0
    emitted: list[list[int]]
    accepted: list[int]
    proposed: list[int]


# Sees every round as it ends, the prefill's (which proposes nothing) among them; what it raises ends the writing.
Listener = Callable[[Round], None]


class Batch:
    """The rows still being written. Rows that end leave; the last ones take their places."""

    def __init__(self, prompts: Sequence[Sequence[int]], limits: Limits) -> None:
        """Raises DataError for a prompt that is empty or fills the context."""
        for number, prompt in enumerate(prompts, 1):
            if len(prompt) == 0:
                raise DataError(f"prompt {number} has no tokens: begin it with the tokenizer's BOS or EOS token")
            if len(prompt) >= limits.context:
                raise DataError(
                    f"prompt {number} has {len(prompt)} tokens, which leaves no room in a context of "
                    f"{limits.context}: shorten it or leave it out"
                )
        self.generations = [Generation(list(prompt)) for prompt in prompts]
        self._limits = limits
        self._rows = list(self.generations)
        self._numbers = list(range(len(self._rows)))  # which prompt each row is of
        self._watches: list[StopWatch] = [limits.stops.watch() for _ in prompts] if limits.stops else []
        most, context = limits.max_new_tokens, limits.context
        self._most = [min(most, context - len(prompt)) for prompt in prompts]  # tokens that each row may write
        self.capacity = max(
            (len(row.prompt) + most for row, most in zip(self._rows, self._most, strict=True)), default=0
        )

    def prompts(self) -> list[list[int]]:
        """Of every row."""
        return [row.prompt for row in self._rows]

    def texts_before(self, emitted: list[list[int]]) -> list[list[int]]:
        """Prompt and output of every row, without what it emitted last."""
        return [
            row.prompt + row.tokens[: len(row.tokens) - len(run)] for row, run in zip(self._rows, emitted, strict=True)
        ]

    def room(self) -> list[int]:
        """Tokens that each row may still write."""
        return [most - len(row.tokens) for most, row in zip(self._most, self._rows, strict=True)]

    def last_tokens(self, device: torch.device) -> torch.Tensor:
        """What the target reads next, [B, 1]."""
        return sent([row.tokens[-1:] for row in self._rows], device)

    def begin(self, tokens: list[list[int]]) -> list[list[int]]:
        """Take the prefill's token of every row, [B, 1]."""
        for place, (row, run) in enumerate(zip(self._rows, tokens, strict=True)):
            row.target_passes += 1
            row.tokens += run
            self._end(place, run)
        return tokens

    def emit(self, runs: list[list[int]], proposed: list[int]) -> list[list[int]]:
        """Append one round's tokens, each row cut where plain decoding would have stopped."""
        emitted = []
        for place, (row, run, guesses) in enumerate(zip(self._rows, runs, proposed, strict=True)):
            end = self._end(place, run)
            row.target_passes += 1
            row.accepted.append(min(len(run) - 1, end))
            if end < len(run):
                run, guesses = run[:end], min(guesses, end)
            row.tokens += run
            row.proposed.append(guesses)
            emitted.append(run)
        return emitted

    def _end(self, place: int, run: list[int]) -> int:
        """After how many of these tokens the row's text ends, found token by token; all of them where it goes on."""
        eos = self._limits.eos
        if not self._watches and eos.isdisjoint(run):
            return len(run)
        for count, token in enumerate(run, 1):
            if token in eos:
                return count
            if self._watches and (found := self._watches[place].push(token)) is not None:
                self._rows[place].stop = found
                return count
        return len(run)

    def going_on(self, emitted: list[list[int]]) -> list[int]:
        """Which rows have not ended; the others leave. The last rows fill the gaps, so that few caches move."""
        eos = self._limits.eos
        ended = [
            room == 0 or run[-1] in eos or row.stop is not None
            for room, run, row in zip(self.room(), emitted, self._rows, strict=True)
        ]
        if not any(ended):
            return list(range(len(ended)))
        rows = [row for row, over in enumerate(ended) if not over]
        stay = [row if not over else None for row, over in enumerate(ended)][: len(rows)]
        movers = [row for row in rows if row >= len(rows)]
        rows = [movers.pop() if row is None else row for row in stay]
        self._rows = [self._rows[row] for row in rows]
        self._numbers = [self._numbers[row] for row in rows]
        self._most = [self._most[row] for row in rows]
        self._watches = [self._watches[row] for row in rows] if self._watches else []
        return rows

    def tell(self, listener: Listener | None, emitted: list[list[int]]) -> None:
        """Hand on what the last pass brought to every row that was still being written."""
        if listener is None or not emitted:
            return
        accepted = [row.accepted[-1] if row.accepted else 0 for row in self._rows]
        proposed = [row.proposed[-1] if row.proposed else 0 for row in self._rows]
        listener(Round(list(self._numbers), emitted, accepted, proposed))
