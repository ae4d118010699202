"""Prompts of one length, made of a suite's own: for asking what a longer context does to a speedup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.suites import Prompt, Suite
from factory.errors import DataError

BETWEEN = "\n\n"


@dataclass(frozen=True)
class Lengthener:
    """Joins a suite's prompts up to a length.

    Each prompt ends as a suite's prompt does, since that is where the suite's author meant a model to go on; what
    stands before it are the prompts before it in the suite, the first following the last. Of what is too long the end
    stays, behind the special tokens that the tokenizer begins a text with. Neighbours therefore share text.
    """

    suites: Sequence[Suite]
    encode: Callable[[str], Sequence[int]]
    special: frozenset[int]

    @property
    def count(self) -> int:
        """How many different prompts there are: one for each of the suites' own."""
        return sum(len(suite.prompts) for suite in self.suites)

    def prompts(self, tokens: int, count: int) -> list[Prompt]:
        """The first `count` prompts of exactly that many tokens, the suites in turn.

        Raises DataError where a suite, all of it joined, is shorter.
        """
        ends = [(suite, place) for suite in self.suites for place in range(len(suite.prompts))]
        ends.sort(key=lambda end: end[1])  # stable: the suites in turn
        return [Prompt(request, self._ending(*end, tokens)) for request, end in enumerate(ends[:count])]

    def _ending(self, suite: Suite, place: int, tokens: int) -> list[int]:
        ids: list[int] = []
        for reach in range(len(suite.prompts)):
            texts = [suite.prompts[place - back] for back in range(reach, -1, -1)]
            ids = [int(token) for token in self.encode(BETWEEN.join(texts))]
            if len(ids) >= tokens:
                head = next((n for n, token in enumerate(ids) if token not in self.special), 0)
                head = min(head, tokens - 1)
                return [*ids[:head], *ids[len(ids) - (tokens - head) :]]
        raise DataError(
            f"suite {suite.name}: all its prompts joined have {len(ids)} tokens, and map_contexts asks for {tokens}; "
            "give more prompts, or lower map_contexts in the plan"
        )
