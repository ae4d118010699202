"""The training loop: rows, loss, step; looks at held-out text; checkpoints that it goes on from bit for bit."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from factory.distillation.average import Average
from factory.distillation.checkpoint import Checkpoint
from factory.distillation.judge import Judge
from factory.distillation.lesson import Lesson, Lessons
from factory.distillation.losses import terms_at
from factory.distillation.optimizers import learning_rate, optimizers_of
from factory.distillation.parallel import let_go, summed, whole, wrap
from factory.distillation.settings import Distillation
from factory.distillation.student import Student, layers_of, prepare, release, untie
from factory.errors import FactoryError
from factory.given import Given


class Training:
    """One distillation of `drafter`, in place; goes on from its last checkpoint where there is one.

    Step n is a function of (weights, seed, n): its rows, its roll-outs, its learning rate. So a killed
    training ends with the very bits of an undisturbed one, on the same machine.
    """

    def __init__(
        self,
        stage: Distillation,
        drafter: PreTrainedModel,
        given: Given,
        judge: Judge,
        lessons: Lessons,
        key: dict[str, Any],  # of its checkpoints
    ) -> None:
        assert given.text is not None
        self._stage, self._given, self._processes = stage, given, given.processes
        self._drafter, self._judge, self._lessons = drafter, judge, lessons
        self.steps = stage.steps(len(given.text))
        trained = copy.deepcopy(drafter) if given.processes.sharded else drafter
        prepare(stage, trained, given.seed)
        self._trained = trained
        self._model = wrap(Student(trained), layers_of(trained), drafter.device, given.processes)
        self._optimizers = optimizers_of(stage, trained)
        self._weights = [weight for weight in trained.parameters() if weight.requires_grad]
        if not self._weights:
            raise FactoryError("distill: everything is frozen, so there is nothing to train; shorten `freeze`")
        self._average = Average(self._weights, stage.ema) if stage.ema else None
        self._checkpoint = Checkpoint(given.checkpoint, key, given.processes)
        self.step, self.tokens = 0, 0
        self.losses: list[float] = []
        self.looks: list[dict[str, Any]] = []

    def run(self) -> None:
        """Train to the end, or until looks stop getting better. Raises FactoryError where the loss is not finite."""
        self._resume()
        while self.step < self.steps and not self.stopped_early:
            self._take_step()
            self._given.progress(self.step, self.steps, self._said())
            done = self.step == self.steps
            if done or self.step % self._stage.looks_every(self.steps) == 0:
                self._look()
            if not done and not self.stopped_early and self.step % self._stage.checkpoint_every == 0:
                self._save()
        if self.step < self.steps:  # patience had an end
            self._given.progress(self.step, self.step, self._said())
        self._finish()

    def facts(self) -> dict[str, Any]:
        """For the manifest and the report."""
        text, kept = self._given.text, self.kept_step
        assert text is not None
        at = {look["step"]: look for look in self.looks}
        return {
            "steps": self.step,
            "planned_steps": self.steps,
            "kept_step": kept,
            "rows": len(text),
            "answer_tokens": int(text.answer_mask.sum()),
            "trained_tokens": self.tokens,
            "processes": self._processes.world,
            "held_out_before": _judged(at.get(0)),
            "held_out_after": _judged(at.get(kept)),
            "looks": [{key: _rounded(value) for key, value in look.items()} for look in self.looks],
            "losses": [round(loss, 5) for loss in self.losses],
        }

    @property
    def kept_step(self) -> int:
        """Whose weights are kept: of the best look where the recipe says so, else of the last step."""
        if self._stage.keep == "last" or self._judge.empty:
            return self.step
        return int(max(self.looks[1:], key=lambda look: (look["overlap"], -look["step"]))["step"])

    @property
    def stopped_early(self) -> bool:
        """Whether as many looks as the recipe has patience for brought nothing better."""
        if self._stage.patience is None or self._judge.empty or len(self.looks) < 2:
            return False
        best = max(range(1, len(self.looks)), key=lambda index: (self.looks[index]["overlap"], -index))
        return len(self.looks) - 1 - best >= self._stage.patience

    def _take_step(self) -> None:
        """One optimizer step: the gradient of its tokens' mean loss, whatever passes or processes it is made in."""
        progress = self.step / self.steps
        rate = learning_rate(self._stage, self.step, self.steps)
        lessons, tokens = self._lessons.of_step(self.step, progress, self._trained)
        terms = terms_at(self._stage.terms, progress)
        total = torch.zeros((), dtype=torch.float64, device=self._drafter.device)
        for number, lesson in enumerate(lessons):
            with summed(self._model, last=number == len(lessons) - 1), self._mixed():
                loss = self._learn(lesson, terms)
            total += loss.double()
        norm = clip_grad_norm_(self._weights, self._stage.clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        loss_sum, size = torch.stack((total, norm.double())).tolist()  # a step's only wait of ours for the device
        mean = self._processes.sum(loss_sum) / self._processes.world
        if not (math.isfinite(mean) and math.isfinite(size)):
            raise FactoryError(self._diverged(mean, size, self.step))
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update()
        self.step += 1
        self.tokens += tokens
        self.losses.append(mean)

    def _learn(self, lesson: Lesson, terms: list[Any]) -> torch.Tensor:
        """Adds a lesson's gradient; its loss, detached."""
        found = self._model(lesson.laid, lesson.predictions, lesson.weights, lesson.terms_of(terms))
        found.loss.backward()
        loss: torch.Tensor = found.loss.detach()
        return loss

    def _mixed(self) -> Any:
        """bfloat16 products over float32 master weights (Micikevicius et al., arXiv 1710.03740), as `precision` says.

        Weights, gradients and the optimizers' states stay float32: a step is often smaller than half of what
        bfloat16 can tell apart, 2^-9 of a weight, and would be lost.
        """
        half = self._given.half if self._stage.precision == "auto" else self._stage.precision == "bfloat16"
        return torch.autocast(self._drafter.device.type, dtype=torch.bfloat16) if half else nullcontext()

    def _look(self) -> None:
        """Judge the weights as they stand (their mean, with `ema`), and keep them where they are the best so far."""
        with self._average.in_place() if self._average is not None else nullcontext():
            with self._mixed():
                judged = self._judge(self._model)
            let_go(self._model)
            if judged is None:
                return
            if not math.isfinite(judged["overlap"]):
                raise FactoryError(self._diverged(judged["forward_kl"], math.nan, self.step - 1))
            since = self.looks[-1]["step"] if self.looks else 0
            recent = self.losses[since:]
            look = {"step": self.step, "tokens": self.tokens, **judged}
            if recent:
                look["loss"] = sum(recent) / len(recent)
            if self._given.modelled is not None and self._stage.temperature == 1:
                look |= self._given.modelled(judged["overlap"])
            self.looks.append(look)
            if self._stage.keep == "best" and len(self.looks) > 1 and self.kept_step == self.step < self.steps:
                self._checkpoint.save_best(self._model, self.step)

    def _said(self) -> str:
        last = self.looks[-1] if self.looks else None
        said = f"distilling, loss {self.losses[-1]:.3f}"
        if last is not None:
            said += f", overlap {last['overlap']:.3f}"
        if last is not None and "speedup" in last:
            said += f", modelled {last['speedup']:.2f}x at k = {last['k']}"
        return said

    def _diverged(self, loss: float, size: float, sound: int) -> str:
        """What to say where it is not finite any more; it may have been saved up to step `sound`."""
        kept = max(0, sound) // self._stage.checkpoint_every * self._stage.checkpoint_every
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {size}"
        return (
            f"distill: {what} at step {self.step} of {self.steps}; lower `lr` ({self._stage.lr}) or `clip` "
            f"({self._stage.clip}) in the recipe"
            + (f". The state of step {kept} is kept in {self._checkpoint.path}" if kept else "")
            + ". The stages before this one are kept."
        )

    def _resume(self) -> None:
        state = self._checkpoint.load(self._model, self._optimizers)
        self._given.progress(state["step"] if state is not None else 0, self.steps, "distilling")
        if state is None:
            self._look()
            return
        self.step, self.tokens = state["step"], state["tokens"]
        self.losses, self.looks = state["losses"], state["looks"]
        if self._average is not None:
            self._average.load(state["average"])

    def _save(self) -> None:
        more = {"step": self.step, "tokens": self.tokens, "losses": self.losses, "looks": self.looks}
        if self._average is not None:
            more["average"] = self._average.state()
        self._checkpoint.save(self._model, self._optimizers, more)

    def _finish(self) -> None:
        """The kept weights stand in the drafter, whole, frozen, in eval mode."""
        if self.kept_step != self.step:
            self._checkpoint.load_best(self._model, self.kept_step)
        elif self._average is not None:
            self._average.settle()
        if self._processes.sharded:
            state = whole(self._model)
            if self._processes.first:
                prefix = "drafter."
                if self._stage.untie_head:
                    untie(self._drafter)
                held = {name.removeprefix(prefix): weight for name, weight in state.items()}
                self._drafter.float().load_state_dict(held)
        else:
            release(self._drafter, self._stage)


def _judged(look: dict[str, Any] | None) -> dict[str, float] | None:
    return None if look is None else {key: look[key] for key in ("forward_kl", "overlap", "judged_tokens")}


def _rounded(value: float) -> float:
    return round(value, 6) if isinstance(value, float) else value
