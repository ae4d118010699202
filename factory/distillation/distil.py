"""A distillation from its settings: who teaches, who judges, what comes before the training itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from factory.decoding.compiled import why_no_compiler
from factory.distillation.checkpoint import write_state
from factory.distillation.judge import Judge
from factory.distillation.lesson import Lessons
from factory.distillation.selection import reference_losses
from factory.distillation.settings import Distillation
from factory.distillation.training import Training
from factory.errors import DataError, FactoryError
from factory.given import Given
from factory.limits import JUDGED_ROWS
from factory.teaching.teacher import CachedTeacher, OnlineTeacher, Teacher
from factory.teaching.teacher_cache import TeacherCache


def distil(stage: Distillation, drafter: PreTrainedModel, given: Given, version: int) -> dict[str, Any]:
    """Train the drafter in place as the settings say; facts for the manifest. Raises FactoryError, DataError."""
    if given.text is None or len(given.text) == 0:
        raise FactoryError("distill: there is no text to learn from; give the recipe a `data` section")
    _require_possible(stage, given, drafter.device)
    teacher, online, held, facts = _teachers(stage, given, drafter.device)
    judge = Judge(given.held_out, held, stage.batch, drafter.device)
    # What a checkpoint must agree in to be gone on from.
    text = [len(given.text), int(given.text.length.sum())]
    key = {"stage": stage.model_dump(mode="json"), "version": version, "seed": given.seed, "text": text}
    reference = None
    if stage.select is not None:
        reference = _reference(stage, drafter, given, teacher, online, judge, key)
    training = Training(stage, drafter, given, judge, Lessons(stage, given, teacher, online, reference), key)
    training.run()
    return facts | training.facts()


def _require_possible(stage: Distillation, given: Given, device: torch.device) -> None:
    fault = stage.fault_together(given.processes.world, given.processes.sharded)
    if fault is not None:
        raise FactoryError(fault)
    if stage.compile and device.type == "cpu" and (missing := why_no_compiler()) is not None:
        raise FactoryError(f"distill: `compile: true`, and {missing}, or remove the key")
    longest = int(given.text.length.max()) if given.text is not None else 0
    if stage.pack is not None and longest > stage.pack:
        raise DataError(
            f"distill: a row of {longest} tokens is longer than `pack: {stage.pack}`; write a larger `pack`"
        )


def _teachers(
    stage: Distillation, given: Given, device: torch.device
) -> tuple[Teacher, OnlineTeacher | None, Teacher | None, dict[str, Any]]:
    """Of the text, of what the drafter writes, of the held-out text; facts of the cache, where one is read."""
    text, held_out = given.text, given.held_out
    assert text is not None
    if given.cache is not None:
        cache = TeacherCache.open(given.cache)
        kept, facts = None, cache.facts
        if held_out is not None and len(held_out):
            kept = CachedTeacher(cache, held_out, device)
            facts["alpha_bound"] = cache.alpha_bound(held_out.index[:JUDGED_ROWS].tolist())
        return CachedTeacher(cache, text, device), None, kept, {"teacher_cache": facts}
    target, memory = given.target(), given.memory if stage.taught else None  # else it does not read the text
    online = OnlineTeacher(target, text, stage.temperature, memory=memory, progress=given.progress)
    held = None
    if held_out is not None:
        held = OnlineTeacher(target, held_out, stage.temperature, progress=given.progress)
    return online, online, held, {}


def _reference(
    stage: Distillation,
    drafter: PreTrainedModel,
    given: Given,
    teacher: Teacher,
    online: OnlineTeacher | None,
    judge: Judge,
    key: dict[str, Any],
) -> torch.Tensor:  # [answer tokens]
    """The reference's losses, kept beside the checkpoint: trained once, from checkpoints of its own."""
    assert stage.select is not None and given.text is not None
    folder = given.checkpoint / "reference"
    kept = folder / "losses.pt"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        plain = stage.model_copy(update={"select": None, "epochs": stage.select.reference_epochs, "patience": None})

        def said(done: int, total: int, what: str) -> None:
            given.progress(done, total, f"reference: {what}")

        inside = replace(given, checkpoint=folder, progress=said)

        def train(reference: PreTrainedModel) -> None:
            Training(plain, reference, inside, judge, Lessons(plain, inside, teacher, online, None), key).run()

        losses = reference_losses(drafter, given.text, teacher, train, given.progress)
        if given.processes.first:
            write_state({"losses": losses}, kept)
        given.processes.wait()
    found: torch.Tensor = torch.load(kept, weights_only=True)["losses"]
    return found
