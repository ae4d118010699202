"""What a recipe can say of a distillation beside plain numbers. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


class _Setting(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


MOST_EPOCHS = 1_000_000

Weight = float | tuple[tuple[float, float], ...]
"""A number, or a schedule: straight lines between points [share of the steps, weight], flat outside them."""


def weight_at(weight: Weight, progress: float) -> float:
    """The weight when `progress` of the steps is done, 0 to 1."""
    points = ((0.0, weight),) if isinstance(weight, int | float) else weight
    if progress <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if progress <= right:
            return low + (high - low) * (progress - left) / (right - left)
    return points[-1][1]


def largest(weight: Weight) -> float:
    """The most that it ever is."""
    return weight if isinstance(weight, int | float) else max(height for _, height in weight)


def _nothing_counts(weights: Sequence[Weight]) -> bool:
    """Whether all are 0 for a while. They are straight between their points, so its ends decide."""
    edges = {0.0, 1.0, *(share for weight in weights if isinstance(weight, tuple) for share, _ in weight)}
    silent = [all(weight_at(weight, edge) == 0 for weight in weights) for edge in sorted(edges)]
    return any(left and right for left, right in pairwise(silent))


def _sound(weight: Weight) -> Weight:
    points = ((0.0, weight),) if isinstance(weight, int | float) else weight
    shares = [share for share, _ in points]
    if not points or any(not 0 <= share <= 1 for share in shares) or any(a >= b for a, b in pairwise(shares)):
        raise ValueError("the points [share of the steps, weight] of a schedule must go forward from 0 to 1")
    if any(height < 0 for _, height in points):
        raise ValueError("must not be below 0: that pushes the drafter away from the target")
    return weight


SoundWeight = Annotated[Weight, AfterValidator(_sound)]

LossKind = Literal[
    "forward_kl", "reverse_kl", "jsd", "tv", "tvd_plus_plus", "negative_log_acceptance", "lk_hybrid", "cross_entropy"
]


class LossTerm(_Setting):
    """One loss and its weight over the training."""

    kind: LossKind = Field(description="which loss")
    weight: SoundWeight = Field(default=1.0, description="a number, or a schedule: [[share of the steps, weight], ...]")
    beta: float | None = Field(default=None, gt=0, lt=1, description="of jsd: weight of the target in the mixture, 0.5")
    eta: float | None = Field(default=None, gt=0, description="of lk_hybrid: how soon TV takes over from KL, 3.0")

    @model_validator(mode="after")
    def _options_belong(self) -> LossTerm:
        if self.beta is not None and self.kind != "jsd":
            raise ValueError(f"beta: only jsd has it; remove it from {self.kind}")
        if self.eta is not None and self.kind != "lk_hybrid":
            raise ValueError(f"eta: only lk_hybrid has it; remove it from {self.kind}")
        return self


Loss = LossKind | tuple[LossTerm, ...]
"""One kind, or a mix of several."""


class OnPolicy(_Setting):
    """Training on what the drafter itself writes, the target being asked what it would have written there.

    `begin: prompt` continues prompts to the end, as GKD does (arXiv 2306.13649); `begin: anywhere` continues
    the text from a random place within an answer, as a drafter does in speculative decoding: what stands
    before that place is verified, and position i behind it is reached only where i guesses were accepted,
    which `decay` to the power of i stands for.
    """

    share: SoundWeight = Field(description="share of a step's rows that the drafter writes, or its schedule")
    begin: Literal["prompt", "anywhere"] = Field(
        default="anywhere", description="where it begins: behind a prompt, or at a random place within an answer"
    )
    new_tokens: int = Field(default=8, ge=1, description="longest roll-out")
    temperature: float = Field(default=1.0, ge=0, description="of the drafter's writing")
    decay: float = Field(default=1.0, gt=0, le=1, description="weight of position i is decay to the power of i")

    @model_validator(mode="after")
    def _is_a_share(self) -> OnPolicy:
        if largest(self.share) > 1:
            raise ValueError("share: must be at most 1, which is all rows of a step")
        if largest(self.share) == 0:
            raise ValueError("share: never above 0, so nothing is ever written; remove on_policy")
        return self


class Selection(_Setting):
    """Leaves out tokens that the drafter cannot learn (AdaSPEC, arXiv 2510.19779).

    A copy of the drafter is distilled first, the reference. The drafter then learns only from the share
    `keep` of the tokens where its own loss exceeds the reference's the most: where there is something to gain.
    """

    keep: float = Field(gt=0, lt=1, description="share of the answer tokens that are learned from")
    reference_epochs: float = Field(
        default=1.0, gt=0, le=MOST_EPOCHS, description="passes over the text that the reference gets"
    )


def kept_of(keep: float, tokens: int) -> int:
    """Of so many tokens of one pass, how many a selection keeps: at least one, since a small share could be none."""
    return min(tokens, max(1, round(keep * tokens)))


MethodName = Literal["seq_kd", "supervised_kd", "imit_kd", "f_distill", "on_policy_gkd"]

METHODS: dict[str, tuple[LossTerm, OnPolicy | None]] = {
    # Kim & Rush, arXiv 1606.07947: likelihood of what the target wrote
    "seq_kd": (LossTerm(kind="cross_entropy"), None),
    # Sanh et al., arXiv 1910.01108: the target's distribution on given text
    "supervised_kd": (LossTerm(kind="forward_kl"), None),
    # Lin et al., arXiv 2009.07253: given text and the drafter's own, mixed
    "imit_kd": (LossTerm(kind="forward_kl"), OnPolicy(share=0.5, begin="prompt", new_tokens=128)),
    # Wen et al., arXiv 2307.15190: total variation, on text of both
    "f_distill": (LossTerm(kind="tv"), OnPolicy(share=0.5, begin="prompt", new_tokens=128)),
    # Agarwal et al., arXiv 2306.13649: only what the drafter writes
    "on_policy_gkd": (LossTerm(kind="jsd"), OnPolicy(share=1.0, begin="prompt", new_tokens=128)),
}
"""Methods by their names in the literature (DistillSpec, arXiv 2310.08461, table 1, lists them), and what each says."""

WRITTEN_BY = {"seq_kd": "target", "supervised_kd": "none", "imit_kd": "none", "f_distill": "target"}
"""Whose text a method is defined on, where it is."""


class Distillation(_Setting):
    """All that a recipe's distillation can say."""

    method: MethodName | None = Field(
        default=None, description="a method by its name in the literature; sets loss and on_policy where these are not"
    )
    loss: Loss | None = Field(
        default=None, description="one kind, or a list of {kind, weight}; forward_kl where neither is said"
    )
    temperature: float = Field(default=1.0, gt=0, description="softens both distributions")
    teacher: Literal["online", "cache"] = Field(
        default="online",
        description="cache: of every position top_k tokens and drawn others, written once for all candidates",
    )
    top_k: int = Field(default=48, ge=1, description="likeliest tokens of a position that the cache keeps")
    drawn: int = Field(default=16, ge=0, description="tokens drawn to stand for all others; 0: others are one outcome")
    on_policy: OnPolicy | None = None
    select: Selection | None = None
    epochs: float = Field(
        default=1.0, gt=0, le=MOST_EPOCHS, description="passes over the training text; fractions allowed"
    )
    lr: float = Field(default=5e-4, gt=0, description="peak learning rate")
    warmup: float = Field(default=0.03, ge=0, lt=1, description="share of the steps that warm up")
    final_lr: float = Field(default=0.1, ge=0, le=1, description="end of the cosine, as a share of lr")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: for the layers' matrices; all else stays with adamw"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of the optimizer; 0: none")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    ema: float = Field(default=0.0, ge=0, lt=1, description="decay of a running mean of the weights; 0: none")
    freeze: tuple[Literal["embedding", "head", "norms", "layers"], ...] = Field(
        default=(), description="what stays as it is"
    )
    untie_head: bool = Field(default=False, description="a head tied to the embedding becomes a matrix of its own")
    lora: int | None = Field(default=None, ge=1, description="rank of adapters trained in place of the matrices")
    batch: int = Field(default=8, ge=1, description="rows in one forward pass, over all processes")
    accumulate: int = Field(default=1, ge=1, description="forward passes in one optimizer step")
    pack: int | None = Field(default=None, ge=2, description="rows are laid end to end in blocks of so many tokens")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of products in training; auto: bfloat16 where the target runs in half precision"
    )
    gradient_checkpointing: bool = Field(default=False, description="activations are computed again, not kept")
    compile: bool = Field(default=False, description="torch.compile the drafter's layers")
    checkpoint_every: int = Field(default=50, ge=1, description="optimizer steps between checkpoints")
    check_every: int | None = Field(
        default=None, ge=1, description="optimizer steps between looks at the held-out text; a tenth of all"
    )
    patience: int | None = Field(default=None, ge=1, description="looks without a better overlap, then it stops early")
    keep: Literal["best", "last"] = Field(default="best", description="the weights of which look are kept")

    @model_validator(mode="after")
    def _fits_together(self) -> Distillation:
        faults = []
        if self.loss == ():
            faults.append("loss: an empty list; give at least one {kind, weight}, or remove the key")
        elif _nothing_counts([term.weight for term in self.terms]):
            faults.append("loss: for a part of the training every weight is 0, so nothing is learned there; raise one")
        kinds = [term.kind for term in self.terms]
        if len(set(kinds)) < len(kinds):
            faults.append(f"loss: {max(kinds, key=kinds.count)} stands in it twice; give it one weight")
        kinds = [term.kind for term in self.terms if largest(term.weight) > 0]
        rolls_out = self.rollouts is not None
        if self.teacher == "cache" and rolls_out:
            faults.append(
                "teacher: what the drafter will write is in no cache; write `teacher: online`, or no on_policy"
            )
        if rolls_out and set(kinds) == {"cross_entropy"}:
            faults.append(
                "loss: cross_entropy learns nothing from what the drafter writes itself, since it is the likelihood of "
                "what the target wrote; add another loss, or remove on_policy"
            )
        if self.pack is not None and rolls_out:
            faults.append("pack: roll-outs cannot be packed; remove pack or on_policy")
        if self.lora is not None and "layers" in self.freeze:
            faults.append("freeze: adapters are trained within layers; remove layers from it, or lora")
        if self.teacher == "online":
            asked = [
                name for name in ("top_k", "drawn") if getattr(self, name) != type(self).model_fields[name].default
            ]
            faults += [f"{name}: only a teacher cache has it; write `teacher: cache`, or remove it" for name in asked]
        if self.lora is not None and self.untie_head:
            faults.append(
                "untie_head: with lora the head is not trained, so it would stay equal; remove one of the two"
            )
        if self.optimizer == "muon" and "layers" in self.freeze:
            faults.append("optimizer: muon is for the layers' matrices, which `freeze` keeps as they are; write adamw")
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
    def taught(self) -> bool:
        """Whether it looks at the target's predictions on the text: the likelihood of tokens needs none."""
        return self.select is not None or any(term.kind != "cross_entropy" for term in self.terms)

    @property
    def rollouts(self) -> OnPolicy | None:
        """Training on the drafter's own text: what the recipe says, else what its method says."""
        return self.on_policy or (METHODS[self.method][1] if self.method else None)

    def fault_together(self, world: int, sharded: bool) -> str | None:
        """Why that many processes cannot train so together, with what to change; None where they can."""
        if self.batch < world:
            return (
                f"distill: `batch: {self.batch}` rows cannot be shared among {world} processes; write a larger batch, "
                "or launch fewer"
            )
        if sharded and (self.rollouts is not None or self.select is not None or self.lora is not None):
            return "distill: on_policy, select and lora need the drafter whole in every process; launch without FSDP"
        return None

    def steps(self, rows: int) -> int:
        """Optimizer steps for that many rows of text."""
        return max(1, round(self.epochs * rows / (self.batch * self.accumulate)))

    def looks_every(self, steps: int) -> int:
        """Optimizer steps between looks at the held-out text."""
        return self.check_every or max(1, steps // 10)
