"""Pull the drafter's predictions toward the target's: where acceptance comes from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from factory.distillation.settings import METHODS, Loss, LossTerm, MethodName, OnPolicy, Selection
from factory.errors import FactoryError
from factory.stages.base import CacheSettings, Given, TrainingStage

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

    from factory.data import TextBlocks
    from factory.teacher import Teacher

MEASURED_ROWS = 32  # held-out rows that the reported overlap is measured on
CHUNK = 1024


class Distill(TrainingStage):
    """Distillation toward the target on answer tokens: which loss, on whose text, for how long.

    Full parameters unless `lora` or `freeze` say otherwise; float32 master weights. The loss is fused with
    the head chunk by chunk over positions, so that [B, T, V] is never held.
    """

    kind: Literal["distill"]
    version: ClassVar[int] = 3  # a step's loss is a mean over its tokens, whatever passes or processes it is made in
    method: MethodName | None = Field(
        default=None, description="a method by its name in the literature; sets loss and on_policy where these are not"
    )
    loss: Loss | None = Field(
        default=None, description="one kind, or a list of {kind, weight}; forward_kl where neither is said"
    )
    temperature: float = Field(default=1.0, gt=0, description="softens both distributions")
    teacher: Literal["online", "cache"] = Field(
        default="online", description="cache: the target's top_k of every position, written once for all candidates"
    )
    top_k: int = Field(default=64, ge=1, description="log-probabilities a position in the cache")
    on_policy: OnPolicy | None = None
    select: Selection | None = None
    epochs: float = Field(default=1.0, gt=0, description="passes over the training text; fractions allowed")
    lr: float = Field(default=5e-4, gt=0, description="peak learning rate")
    warmup: float = Field(default=0.03, ge=0, lt=1, description="share of the steps that warm up")
    final_lr: float = Field(default=0.1, ge=0, le=1, description="end of the cosine, as a share of lr")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: for the layers' matrices; all else stays with adamw"
    )
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    ema: float = Field(default=0.0, ge=0, lt=1, description="decay of a running mean of the weights; 0: none")
    freeze: tuple[Literal["embedding", "head", "norms", "layers"], ...] = Field(
        default=(), description="what stays as it is"
    )
    lora: int | None = Field(default=None, ge=1, description="rank of adapters trained in place of the matrices")
    batch: int = Field(default=8, ge=1, description="rows in one forward pass, over all processes")
    accumulate: int = Field(default=1, ge=1, description="forward passes in one optimizer step")
    pack: int | None = Field(default=None, ge=2, description="rows are laid end to end in blocks of so many tokens")
    gradient_checkpointing: bool = Field(default=False, description="activations are computed again, not kept")
    compile: bool = Field(default=False, description="torch.compile the drafter's layers")
    checkpoint_every: int = Field(default=50, ge=1, description="optimizer steps between checkpoints")
    check_every: int | None = Field(
        default=None, ge=1, description="optimizer steps between looks at the held-out text; a tenth of all"
    )
    patience: int | None = Field(default=None, ge=1, description="looks without a better overlap, then it stops early")
    keep: Literal["best", "last"] = Field(default="best", description="the weights of which look are kept")

    @model_validator(mode="after")
    def _fits_together(self) -> Distill:
        faults = []
        if self.loss == ():
            faults.append("loss: an empty list; give at least one {kind, weight}, or remove the key")
        rolls_out = self.rollouts is not None
        if self.teacher == "cache" and rolls_out:
            faults.append("teacher: what the drafter will write is in no cache; write `teacher: online`, or no on_policy")
        if self.pack is not None and rolls_out:
            faults.append("pack: roll-outs cannot be packed; remove pack or on_policy")
        if self.lora is not None and "layers" in self.freeze:
            faults.append("freeze: adapters are trained within layers; remove layers from it, or lora")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @property
    def terms(self) -> tuple[LossTerm, ...]:
        """The loss, term by term: what the recipe says, else what its method says."""
        if self.loss is None:
            return (METHODS[self.method][0] if self.method else LossTerm(kind="forward_kl"),)
        return (LossTerm(kind=self.loss),) if isinstance(self.loss, str) else self.loss

    @property
    def rollouts(self) -> OnPolicy | None:
        """Training on the drafter's own text: what the recipe says, else what its method says."""
        return self.on_policy or (METHODS[self.method][1] if self.method else None)

    @property
    def cached(self) -> CacheSettings | None:
        """What the teacher cache that it reads must hold; None with an online teacher."""
        return CacheSettings(self.temperature, self.top_k) if self.teacher == "cache" else None

    def steps(self, rows: int) -> int:
        """Optimizer steps for that many rows of text."""
        return max(1, round(self.epochs * rows / (self.batch * self.accumulate)))

    def learning_rate(self, step: int, steps: int) -> float:
        """Linear warm-up, then a cosine from `lr` to `final_lr * lr`."""
        warmup_steps = round(self.warmup * steps)
        if step < warmup_steps:
            return self.lr * (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))

    def apply(self, drafter: PreTrainedModel, given: Given) -> dict[str, Any]:
        """Train in place, from the last checkpoint where there is one; `drafter` ends in float32.

        The rows of step n are a function of (seed, n): a resumed run is bit for bit the undisturbed
        one on the same machine. Raises FactoryError when the loss is not finite.
        """
        import torch

        from factory.teacher import Teacher

        if given.text is None or len(given.text) == 0:
            raise FactoryError("distill: there is no text to learn from; give the recipe a `data` section")
        target = given.target()
        teacher = Teacher(target, given.text, epochs=self.epochs, batch=self.batch, progress=given.progress)
        drafter.float().requires_grad_(True)  # stays in eval mode: no dropout
        optimizer = torch.optim.AdamW(
            [p for p in drafter.parameters() if p.requires_grad], lr=self.lr, weight_decay=self.weight_decay
        )
        steps, step, losses = self.steps(len(given.text)), 0, []
        before = self.agreement(drafter, given)
        saved = given.checkpoint / "checkpoint.pt"
        if saved.is_file():
            state = torch.load(saved, map_location=drafter.device, weights_only=True)
            drafter.load_state_dict(state["drafter"])
            optimizer.load_state_dict(state["optimizer"])
            step, losses, before = state["step"], state["losses"], state["before"]
        while step < steps:
            optimizer.param_groups[0]["lr"] = self.learning_rate(step, steps)
            loss = self._accumulate_gradient(drafter, teacher, given.text, given, step)
            if not math.isfinite(loss):
                raise FactoryError(
                    f"distill: the loss is {loss} at step {step} of {steps}; lower `lr` ({self.lr}) or `clip` "
                    f"({self.clip}) in the recipe. The stages before this one are kept."
                )
            torch.nn.utils.clip_grad_norm_(drafter.parameters(), self.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            losses.append(loss)
            given.progress(step, steps, f"distilling, loss {loss:.3f}")
            if step % self.checkpoint_every == 0 and step < steps:
                state = {"drafter": drafter.state_dict(), "optimizer": optimizer.state_dict()}
                _save_checkpoint({**state, "step": step, "losses": losses, "before": before}, saved)
        drafter.requires_grad_(False)
        return {
            "steps": steps,
            "rows": len(given.text),
            "answer_tokens": int(given.text.answer_mask.sum()),
            "held_out_before": before,
            "held_out_after": self.agreement(drafter, given),
            "losses": [round(loss, 5) for loss in losses],
        }

    def _accumulate_gradient(
        self, drafter: PreTrainedModel, teacher: Teacher, text: TextBlocks, given: Given, step: int
    ) -> float:
        """One optimizer step's gradient, mean over its forward passes; returns the mean loss in nats."""
        from factory.models import hidden_states
        from factory.tensors.divergence import backward_in_chunks

        total = 0.0
        for part in range(self.accumulate):
            indices = batch_rows(len(text), given.seed, step * self.accumulate + part, self.batch)
            rows = text.rows(indices)
            ids, mask = rows.ids.to(drafter.device), rows.answer_mask.to(drafter.device)
            if not mask.any():  # every row ended at its first token
                continue
            teacher_hidden = teacher.hidden(indices)  # in the target's own precision
            with mixed_precision(given.target()):
                total += backward_in_chunks(
                    hidden_states(drafter, ids, mask),
                    drafter.get_output_embeddings(),
                    teacher_hidden,
                    teacher.head,
                    temperature=self.temperature,
                    scale=1 / self.accumulate,
                    chunk=CHUNK,
                )
        return total / self.accumulate

    def agreement(self, drafter: PreTrainedModel, given: Given) -> dict[str, float] | None:
        """Mean forward KL (nats) and overlap, sum_v min(p, q), at T = 1 on held-out answer tokens."""
        import torch

        from factory.models import hidden_states
        from factory.tensors.divergence import forward_kl, overlap

        if given.held_out is None or len(given.held_out) == 0:
            return None
        count, divergence, shared = 0, 0.0, 0.0
        chosen = range(min(MEASURED_ROWS, len(given.held_out)))
        target = given.target()
        p_head, q_head = target.get_output_embeddings(), drafter.get_output_embeddings()
        with torch.no_grad():
            for index in chosen:
                row = given.held_out.rows([index])
                ids, mask = row.ids.to(drafter.device), row.answer_mask.to(drafter.device)
                p_hidden = hidden_states(target, ids, mask)
                with mixed_precision(target):
                    q_hidden = hidden_states(drafter, ids, mask)
                for start in range(0, len(q_hidden), CHUNK):
                    p_logits = p_head(p_hidden[start : start + CHUNK])
                    with mixed_precision(target):
                        q_logits = q_head(q_hidden[start : start + CHUNK])
                    divergence += forward_kl(p_logits, q_logits).sum().item()
                    shared += overlap(p_logits, q_logits).sum().item()
                count += len(q_hidden)
        return {"forward_kl": divergence / count, "overlap": shared / count, "tokens": count} if count else None


def _save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """The whole checkpoint or the old one; what a full disk cut short is removed, since it takes the room."""
    import torch

    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:  # given a name, torch's own writer loses the reason of a failure
            torch.save(state, file)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def mixed_precision(target: PreTrainedModel) -> torch.autocast:
    """bfloat16 products over float32 master weights where the target itself runs in half precision."""
    import torch

    half = target.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(target.device.type, dtype=torch.bfloat16, enabled=half)


def batch_rows(rows: int, seed: int, batch_index: int, batch: int) -> list[int]:
    """Row indices of one batch: a fresh permutation each epoch, cut into batches that may span two epochs."""
    import torch

    chosen = []
    for position in range(batch_index * batch, (batch_index + 1) * batch):
        epoch, offset = divmod(position, rows)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        chosen.append(int(torch.randperm(rows, generator=generator)[offset]))
    return chosen
