"""Text as token blocks: which tokens are answers, which rows are equal, which are held out.

A drafter is judged on what the target would write, so that is what it must learn; whether a row was
written by the target (`scribe`) or given as it is (`encoding`) is not known here.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from factory.errors import DataError

Spans = Sequence[tuple[int, int]]  # [start, end) of each answer
Row = tuple[Sequence[int], int | Spans]  # token ids, and the answers in them: from a position to the end, or spans


@dataclass(frozen=True)
class TextBlocks:
    """Rows of token ids with their answers marked."""

    ids: torch.Tensor  # [N, T] int64, right-padded with 0
    length: torch.Tensor  # [N] real tokens
    answer: torch.Tensor  # [N, T] bool: the token belongs to an answer
    index: torch.Tensor  # [N] int64: which row of the whole text each one is

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def token_mask(self) -> torch.Tensor:  # [N, T] bool
        """Positions that hold a token."""
        return torch.arange(self.ids.shape[1])[None, :] < self.length[:, None]

    @property
    def answer_mask(self) -> torch.Tensor:  # [N, T] bool
        """Positions whose *next* token belongs to an answer: those whose prediction is learned."""
        mask = torch.zeros_like(self.answer)
        mask[:, :-1] = self.answer[:, 1:]
        return mask

    def rows(self, indices: Sequence[int]) -> TextBlocks:
        """Those rows, trimmed to the longest of them."""
        chosen = torch.as_tensor(list(indices), dtype=torch.long)
        length = self.length[chosen]
        longest = int(length.max()) if len(chosen) else 0
        return TextBlocks(self.ids[chosen, :longest], length, self.answer[chosen, :longest], self.index[chosen])


def text_blocks(rows: Sequence[Row]) -> TextBlocks:
    """Pads rows into one block, and numbers them."""
    length = torch.tensor([len(ids) for ids, _ in rows], dtype=torch.long)
    ids = torch.zeros((len(rows), int(length.max()) if rows else 0), dtype=torch.long)
    answer = torch.zeros(ids.shape, dtype=torch.bool)
    for number, (tokens, answers) in enumerate(rows):
        ids[number, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        for start, end in spans_of(answers, len(tokens)):
            answer[number, start:end] = True
    return TextBlocks(ids, length, answer, torch.arange(len(rows)))


def spans_of(answers: int | Spans, length: int) -> Spans:
    """A row's answers as spans."""
    return [(answers, length)] if isinstance(answers, int) else answers


def token_key(ids: Sequence[int]) -> bytes:
    """Equal for equal token ids, and short."""
    return hashlib.blake2b(array("q", ids).tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class Corpus:
    """A whole text: distinct rows, each with an answer."""

    rows: TextBlocks
    prompt: tuple[int, ...]  # [N] which prompt each row is of
    facts: dict[str, int]  # counts, for records: `rows`, `tokens`, `answer_tokens`, what was dropped and why


def corpus(rows: Sequence[Row], prompts: Sequence[int]) -> Corpus:
    """The text without rows that say what an earlier one says, and without those that answer nothing.

    `prompts` says which prompt each row is of. A prediction is learned where the token before it is in
    the row, so an answer of a row's first token is none. Raises DataError where nothing is left.
    """
    kept: list[Row] = []
    of: list[int] = []
    seen: set[bytes] = set()
    unanswered = duplicates = 0
    for row, prompt in zip(rows, prompts, strict=True):
        ids, answers = row
        key = token_key(ids)
        if not any(end > max(start, 1) for start, end in spans_of(answers, len(ids))):
            unanswered += 1
        elif key in seen:
            duplicates += 1
        else:
            seen.add(key)
            kept.append(row)
            of.append(prompt)
    if not kept:
        raise DataError(
            f"data: of {len(rows)} rows none has an answer to learn from; give conversations in which the assistant "
            "speaks, or `written_by: target`"
        )
    block = text_blocks(kept)
    facts = {
        "duplicate_rows": duplicates,
        "rows_without_answer": unanswered,
        "rows": len(kept),
        "tokens": int(block.length.sum()),
        "answer_tokens": int(block.answer_mask.sum()),
    }
    return Corpus(block, tuple(of), facts)


def split_held_out(prompts: Sequence[int], share: float) -> tuple[list[int], list[int]]:
    """Rows for training and held out, where prompts[i] is the prompt of row i: the last prompts to appear are held out.

    Split by prompt, so that no held-out text begins like one trained on; by row where there is but one
    prompt (`bos`).
    """
    order = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    kinds = [order[prompt] for prompt in prompts] if len(order) > 1 else list(range(len(prompts)))
    count = max(kinds, default=-1) + 1
    held = min(count - 1, max(1, round(share * count))) if share > 0 and count > 1 else 0
    training = [row for row, kind in enumerate(kinds) if kind < count - held]
    return training, [row for row, kind in enumerate(kinds) if kind >= count - held]
