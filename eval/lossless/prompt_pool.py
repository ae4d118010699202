"""Many prompts out of few: those of the suites, the same cut short, and beginnings that the target writes itself.

A losslessness check wants many different texts; whether they are good text matters less. Every source
is counted, so that a reader sees how many prompts somebody wrote and how many were derived.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from transformers import PreTrainedModel

from eval.parity import in_parts
from eval.suites import Suite
from factory.decoding.decoder import Limits, autoregressive
from factory.decoding.reader import Reader
from factory.decoding.sampling import Noise, Sampling
from factory.errors import ModelError
from factory.models.loading import first_token_id
from factory.provenance import sha256_text

CUTS = (Fraction(3, 4), Fraction(1, 2), Fraction(1, 4))  # of a suite's prompt, in tokens
ATTEMPTS = 4  # how often the target is asked for more before fewer are enough
WRITTEN_TOKENS = 32  # of a prompt that the target writes, at most
AT_ONCE = 32  # prompts that it writes

SUITE, CUT, WRITTEN = "suite", "cut", "written_by_target"

# Given a count and a number that makes it a draw of its own: so many texts, as tokens.
Writer = Callable[[int, int], Sequence[list[int]]]


@dataclass(frozen=True)
class PromptPool:
    """Distinct prompts, as tokens, and where they come from."""

    prompts: list[list[int]]
    sources: dict[str, int]

    def facts(self) -> dict[str, Any]:
        """As a certificate has it; the sum pins the very tokens."""
        tokens = [len(prompt) for prompt in self.prompts]
        return {
            "distinct": len(self.prompts),
            "sources": self.sources,
            "shortest_tokens": min(tokens, default=0),
            "longest_tokens": max(tokens, default=0),
            "sha256": sha256_text(json.dumps(self.prompts)),
        }

    def dealt(self, batch: int) -> list[list[int]]:
        """The same prompts in an order in which consecutive batches mix sources and lengths."""
        hands = max(1, -(-len(self.prompts) // batch))
        return [prompt for hand in range(hands) for prompt in self.prompts[hand::hands]]


def target_writer(model: PreTrainedModel, reader: Reader, eos: frozenset[int], seed: int) -> Writer:
    """Beginnings of one to 32 tokens behind the target's first, sampled at temperature 1; none where there is none."""

    def write(count: int, attempt: int) -> list[list[int]]:
        try:
            first = first_token_id(model)
        except ModelError:
            return []
        texts: list[list[int]] = []
        limits = Limits(WRITTEN_TOKENS, eos, reader.context)
        for part in in_parts(range(attempt << 20, (attempt << 20) + count), AT_ONCE):  # no request comes twice
            noise = Noise(seed, part, device=reader.device)
            made = autoregressive(reader, [[first]] * len(part), Sampling(temperature=1.0), limits, noise)
            for request, text in zip(part, made, strict=True):
                tokens = [token for token in text.tokens if token not in eos]
                texts.append([first, *tokens[: 1 + request % WRITTEN_TOKENS]])
        return texts

    return write


def prompt_pool(
    suites: Sequence[Suite], encode: Callable[[str], Sequence[int]], room: int, count: int, write: Writer
) -> PromptPool:
    """`count` distinct prompts of at most `room` tokens; fewer where the sources give no more.

    First the suites' own in their order, then each of them cut to three quarters, a half and a quarter,
    then what the target writes from its first token.
    """
    found: dict[tuple[int, ...], str] = {}

    def take(prompts: Sequence[Sequence[int]], source: str) -> None:
        for prompt in prompts:
            if 0 < len(prompt) <= room and len(found) < count:
                found.setdefault(tuple(prompt), source)

    encoded = [[int(token) for token in encode(text)] for suite in suites for text in suite.prompts]
    take(encoded, SUITE)
    for share in CUTS:
        take([prompt[: int(share * len(prompt))] for prompt in encoded], CUT)
    for attempt in range(ATTEMPTS):
        if missing := count - len(found):
            take(write(missing, attempt), WRITTEN)
    sources = list(found.values())
    return PromptPool(
        [list(prompt) for prompt in found], {source: sources.count(source) for source in (SUITE, CUT, WRITTEN)}
    )
