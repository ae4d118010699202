"""What each step of a training is about: rows of the text, rows that the drafter writes, and what each token weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from factory.distillation.rollouts import decays, how_many, roll_out
from factory.distillation.rows import Laid, Order, lay
from factory.distillation.settings import Distillation, kept_of, weight_at
from factory.distillation.student import Chosen
from factory.given import Given
from factory.teaching.teacher import OnlineTeacher, Teacher
from factory.tensors.divergences import Term
from factory.tensors.predictions import Predictions


@dataclass(frozen=True)
class Lesson:
    """One forward and backward pass."""

    laid: Laid
    predictions: Predictions | None  # None where the loss looks at none
    weights: torch.Tensor | Chosen  # [N]; over all lessons of a step and all processes they add up to `world`
    own: bool = False  # the drafter wrote it

    def terms_of(self, terms: Sequence[Term]) -> list[Term]:
        """Cross-entropy is likelihood of what the target wrote: of what the drafter wrote there is none."""
        return [term for term in terms if not (self.own and term.divergence is None)]


class Lessons:
    """Every step's lessons for this process: a function of seed, step and, where it writes, the drafter."""

    def __init__(
        self,
        stage: Distillation,
        given: Given,
        teacher: Teacher,
        online: OnlineTeacher | None,
        reference: torch.Tensor | None,
    ) -> None:
        assert given.text is not None
        self._stage, self._seed, self._text, self._processes = stage, given.seed, given.text, given.processes
        self._teacher, self._online, self._reference = teacher, online, reference
        self._order = Order(len(given.text), given.seed)
        self._answers: list[int] = given.text.answer_mask.sum(-1).tolist()
        starts = torch.tensor([0, *self._answers]).cumsum(0).tolist()
        self._spans = [slice(start, start + count) for start, count in zip(starts, self._answers, strict=False)]

    def of_step(self, step: int, progress: float, drafter: PreTrainedModel) -> tuple[list[Lesson], int]:
        """This process's lessons, and how many tokens all processes learn from in this step."""
        stage, device, world = self._stage, drafter.device, self._processes.world
        passes: list[list[int]] = []
        own: list[tuple[Laid, Predictions, torch.Tensor]] = []
        tokens, weight = 0, 0.0
        for index in range(step * stage.accumulate, (step + 1) * stage.accumulate):
            rows = self._order.batch(index, stage.batch)
            rolled = self._rolled(index, progress)
            for rank in range(world):
                count = sum(self._answers[row] for place, row in self._places(rows, rank) if place >= rolled)
                tokens += self._learned(count)
                weight += self._learned(count)
            mine = self._places(rows, self._processes.rank)
            passes.append([row for place, row in mine if place >= rolled])
            if to_continue := [row for place, row in mine if place < rolled]:
                own.append(self._own(to_continue, drafter, index))
        weight += self._processes.sum(float(sum(float(weights.sum()) for _, _, weights in own)))
        tokens += int(self._processes.sum(float(sum(len(weights) for _, _, weights in own))))
        scale = world / weight if weight else 0.0
        lessons = [self._given(rows, scale, device) for rows in passes if rows]
        lessons += [Lesson(laid, seen, weights * scale, own=True) for laid, seen, weights in own]
        return lessons, tokens

    def _places(self, rows: list[int], rank: int) -> list[tuple[int, int]]:
        """A process's rows of a batch, each with its place. At least one: none may be left out of a step."""
        return list(enumerate(rows))[rank :: self._processes.world]

    def _rolled(self, index: int, progress: float) -> int:
        rollouts = self._stage.rollouts
        return 0 if rollouts is None else how_many(weight_at(rollouts.share, progress), self._stage.batch, index)

    def _learned(self, tokens: int) -> int:
        """Of so many tokens of one pass, how many are learned from."""
        return tokens if self._stage.select is None else kept_of(self._stage.select.keep, tokens)

    def _given(self, rows: list[int], scale: float, device: torch.device) -> Lesson:
        """Rows of the text."""
        laid = lay(self._text.rows(rows), self._stage.pack).to(device)
        weights: torch.Tensor | Chosen = torch.full((len(laid.where),), scale, device=device)
        if self._stage.select is not None and self._reference is not None:
            reference = torch.cat([self._reference[self._spans[row]] for row in rows])
            weights = Chosen(reference.to(device), self._stage.select.keep, scale)
        return Lesson(laid, self._teacher.predictions(rows) if self._stage.taught else None, weights)

    def _own(self, rows: list[int], drafter: PreTrainedModel, index: int) -> tuple[Laid, Predictions, torch.Tensor]:
        rollouts = self._stage.rollouts
        assert rollouts is not None and self._online is not None
        seed = self._seed + self._processes.rank  # others' rows are continued by other draws
        written = roll_out(drafter, self._text.rows(rows), rollouts, seed, index)
        laid = lay(written).to(drafter.device)
        return laid, self._online.read(written), decays(written, rollouts.decay).to(drafter.device)
