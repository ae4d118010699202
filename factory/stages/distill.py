"""Pull the drafter's predictions toward the target's: where acceptance comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from factory.distillation.settings import METHODS, Loss, LossTerm, MethodName, OnPolicy, Selection
from factory.stages.base import CacheSettings, Given, TrainingStage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        kinds = [term.kind for term in self.terms]
        if len(set(kinds)) < len(kinds):
            faults.append(f"loss: {max(kinds, key=kinds.count)} stands in it twice; give it one weight")
        rolls_out = self.rollouts is not None
        if self.teacher == "cache" and rolls_out:
            faults.append(
                "teacher: what the drafter will write is in no cache; write `teacher: online`, or no on_policy"
            )
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

    def looks_every(self, steps: int) -> int:
        """Optimizer steps between looks at the held-out text."""
        return self.check_every or max(1, steps // 10)

    def key(self, given: Given) -> dict[str, Any]:
        """What a checkpoint must agree in to be gone on from."""
        rows = len(given.text) if given.text is not None else 0
        tokens = int(given.text.length.sum()) if given.text is not None else 0
        return {
            "stage": self.model_dump(mode="json"),
            "version": self.version,
            "seed": given.seed,
            "text": [rows, tokens],
        }

    def apply(self, drafter: PreTrainedModel, given: Given) -> dict[str, Any]:
        """Train in place, from the last checkpoint where there is one; `drafter` ends in float32, frozen.

        Raises FactoryError when the loss is not finite, DataError where the checkpoint or the teacher cache
        belongs to something else.
        """
        from factory.distillation.training import distil

        return distil(self, drafter, given)
