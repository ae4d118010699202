"""The teacher's predictions on rows of text: from the target itself, or from what was kept of them on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from factory.data.blocks import TextBlocks
from factory.limits import READ_ROWS, REMEMBERED_BYTES
from factory.models.loading import hidden_states
from factory.teaching.teacher_cache import TeacherCache
from factory.tensors.predictions import FullPredictions, Predictions, TopPredictions


class Teacher(Protocol):
    """What the target says at the answer positions of a text, row after row."""

    def predictions(self, rows: Sequence[int]) -> Predictions:
        """Of those rows of its text."""
        ...


Memory = dict[int, torch.Tensor]  # by row of the whole text: the target's states at its answers, [answer tokens, D]


class OnlineTeacher:
    """The target itself: its final hidden states, of which its head makes logits chunk by chunk on demand.

    Where a `memory` is given, it reads its text into that first, if the states fit, and then only looks them
    up: for a shallow student reading is most of the arithmetic, and every epoch and every candidate of one
    text shares the memory. They are always made in the same batches, those of the text's order, so that
    whoever comes later meets the very same bits.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        text: TextBlocks,
        temperature: float,
        *,
        memory: Memory | None = None,
        progress: Callable[[int, int, str], None],
    ) -> None:
        self._target, self._text, self._temperature = target, text, temperature
        self._head = target.get_output_embeddings()  # hidden [C, D] -> logits [C, V]
        self._index: list[int] = text.index.tolist()
        size = int(text.answer_mask.sum()) * target.config.hidden_size * target.dtype.itemsize
        self._memory = memory if memory is not None and size <= REMEMBERED_BYTES else None
        if self._memory is None:
            return
        begins = True
        for start in range(0, len(text), READ_ROWS):
            rows = range(start, min(start + READ_ROWS, len(text)))
            if any(self._index[row] not in self._memory for row in rows):
                if begins:
                    progress(rows.start, len(text), "the target reads")
                begins = False
                part = text.rows(rows)
                states = torch.split(self._read(part), part.answer_mask.sum(-1).tolist())
                self._memory |= {self._index[row]: held for row, held in zip(rows, states, strict=True)}
                progress(rows.stop, len(text), "the target reads")

    def predictions(self, rows: Sequence[int]) -> FullPredictions:
        """Of those rows of the text."""
        if self._memory is None:
            return self.read(self._text.rows(rows))
        hidden = torch.cat([self._memory[self._index[row]] for row in rows])
        return FullPredictions(hidden, self._head, self._temperature)

    def read(self, rows: TextBlocks) -> FullPredictions:
        """Of rows that are not of the text, such as what the drafter wrote."""
        return FullPredictions(self._read(rows), self._head, self._temperature)

    @torch.no_grad()
    def _read(self, rows: TextBlocks) -> torch.Tensor:  # [N, D]
        device = self._target.device
        return hidden_states(self._target, rows.ids.to(device), rows.answer_mask.to(device))


class CachedTeacher:
    """The target's likeliest tokens and what stands for the rest, from the cache of the text that `text` is part of."""

    def __init__(self, cache: TeacherCache, text: TextBlocks, device: torch.device) -> None:
        self._cache, self._index, self._device = cache, text.index.tolist(), device

    def predictions(self, rows: Sequence[int]) -> TopPredictions:
        """Of those rows of the text."""
        ids, log_p, tail = self._cache.rows([self._index[row] for row in rows])
        place = self._device
        return TopPredictions(
            ids.to(place), log_p.to(place), tail.to(place), self._cache.temperature, self._cache.drawn
        )
