"""What the text so far does to the next token's logits: penalties, n-grams that must not return, a least length."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from factory.decoding.reader import right_padded
from factory.decoding.sampling import Sampling
from factory.decoding.sending import sent


class History:
    """The text of a batch's rows, as far as their next tokens' logits depend on it.

    Position i of a verification has seen prompt, output and the first i guesses; so has the drafter's
    step i. Target and drafter therefore share one history. Guesses are handed over with every call and
    never become part of it: nothing has to be rolled back.

    The work goes by the length of the text, not by the size of the vocabulary, but for one copy of the
    logits. It does not know of temperature or top-k.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        capacity: int,
        sampling: Sampling,
        eos: frozenset[int],
        vocabulary: int,
        device: torch.device,
    ) -> None:
        """`capacity`: tokens that a row may reach, guesses among them."""
        self._sampling, self._vocabulary = sampling, vocabulary
        self._eos = torch.tensor(sorted(token for token in eos if token < vocabulary), dtype=torch.long, device=device)
        tokens, self._length = right_padded(prompts, device)
        self._prompt = list(self._length)  # tokens of the prompt, per row
        self._text = tokens.new_zeros(len(prompts), capacity)  # [B, capacity]; no text behind a row's length
        self._text[:, : tokens.shape[1]] = tokens

    def extend(self, runs: list[list[int]]) -> None:
        """Append what each row emitted."""
        tokens, count = right_padded(runs, self._text.device)
        self._write(tokens)
        self._length = [old + new for old, new in zip(self._length, count, strict=True)]

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order."""
        self._text = self._text[rows]
        self._length = [self._length[row] for row in rows]
        self._prompt = [self._prompt[row] for row in rows]

    def apply(self, logits: torch.Tensor, drafted: torch.Tensor | None) -> torch.Tensor:
        """Logits as they are after the text; [B, T, V] -> the same, at least float32, the argument left as it was.

        `drafted` [B, m]: guesses that follow the text; the last of the T positions has seen all of them,
        each one before it one fewer. Where no token would be left, n-grams may return.
        """
        sampling, positions, device = self._sampling, logits.shape[1], logits.device
        guesses = 0 if drafted is None else drafted.shape[1]
        if drafted is not None:
            self._write(drafted)
        longest = max(self._length) + guesses
        slots = torch.arange(longest, device=device)  # [S]
        # how long prompt, output and guesses are where a position looks back, [B, T, 1]
        length = sent(self._length, device).view(-1, 1, 1)
        length = length + torch.arange(guesses + 1 - positions, guesses + 1, device=device).view(1, -1, 1)
        prompt = sent(self._prompt, device).view(-1, 1, 1)
        # A column more than the vocabulary: slots behind a position's text count for that one.
        nowhere = self._vocabulary
        made = torch.nn.functional.pad(logits if logits.dtype == torch.float64 else logits.float(), (0, 1))
        seen = torch.where(slots < length, self._text[:, None, :longest], nowhere)  # [B, T, S]
        if sampling.repetition_penalty != 1:
            old, penalty = made.gather(2, seen), sampling.repetition_penalty
            made.scatter_(2, seen, torch.where(old < 0, old * penalty, old / penalty))
        written = torch.where(slots >= prompt, seen, nowhere)
        if sampling.frequency_penalty != 0:
            made.scatter_add_(2, written, made.new_full((1, 1, 1), -sampling.frequency_penalty).expand_as(written))
        if sampling.presence_penalty != 0:
            made.scatter_(2, written, made.gather(2, written) - sampling.presence_penalty)
        early = length - prompt < sampling.min_new_tokens  # [B, T, 1]
        if sampling.no_repeat_ngram_size == 0:
            return self._without_eos(made[..., :nowhere], early)
        left = self._without_eos(made.scatter(2, self._completing(seen, length), -torch.inf)[..., :nowhere], early)
        if longest + len(self._eos) < self._vocabulary:
            return left  # too short a text to forbid all
        stuck = (left == -torch.inf).all(dim=-1, keepdim=True)
        return torch.where(stuck, self._without_eos(made[..., :nowhere], early), left)

    def _without_eos(self, logits: torch.Tensor, early: torch.Tensor) -> torch.Tensor:
        """The same tensor, in which no EOS may follow where it is too early, [B, T, V]."""
        if self._sampling.min_new_tokens > 0 and len(self._eos):
            logits[..., self._eos] = logits[..., self._eos].masked_fill(early, -torch.inf)
        return logits

    def _completing(self, seen: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Tokens that would complete an n-gram that is in the text already, [B, T, S]; the column of none elsewhere."""
        size = self._sampling.no_repeat_ngram_size
        repeats = seen != self._vocabulary
        repeats[..., : size - 1] = False  # no n-gram ends there
        for back in range(1, size):
            ending = seen.gather(2, (length - back).clamp(min=0))  # [B, T, 1]: the text's last tokens, one by one
            repeats[..., back:] &= seen[..., :-back] == ending
        return torch.where(repeats, seen, self._vocabulary)

    def _write(self, tokens: torch.Tensor) -> None:
        """Put tokens [B, n] behind each row's text."""
        ends = sent(self._length, tokens.device).unsqueeze(1)
        self._text.scatter_(1, ends + torch.arange(tokens.shape[1], device=tokens.device), tokens)
