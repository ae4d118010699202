"""What a distillation takes: memory, seconds and disk, from sizes alone. As rough as the rest; see each function."""

from __future__ import annotations

from itertools import pairwise

from factory.anatomy.families import BITS
from factory.anatomy.shapes import Shape
from factory.distillation.settings import Distillation, Weight, weight_at
from factory.forecasting.amounts import Effort, Text
from factory.forecasting.forecast import served, step_seconds
from factory.forecasting.profile import DeviceProfile
from factory.limits import JUDGED_ROWS, LOGITS_BYTES, REMEMBERED_BYTES

EFFICIENCY = 0.5  # taken for the share of a training step that is matrix products at their peak
MASTER_BYTES = 16  # a weight in training: float32 value, gradient, and AdamW's two moments
CHECKPOINT_BYTES = 2 * 12  # a weight in a checkpoint and in the one that replaces it
BEST_BYTES = 4  # a weight of the best look's
MOMENT_BYTES = 4  # of which AdamW has two, Muon one
UPDATE_BYTES = 28  # read and written to update a weight: its gradient; value and both moments, twice
NEWTON_SCHULZ = 5  # steps in which Muon orthogonalises a matrix


def training(
    stage: Distillation, drafter: Shape, target: Shape, text: Text, profile: DeviceProfile, dtype: str
) -> Effort:
    """On one device. The target is taken to be in memory still, a teacher cache or not."""
    memory = target.weight_bytes + _states(stage, drafter) + _passing(stage, drafter, target, text, dtype)
    return Effort(
        memory,
        _seconds(stage, drafter, target, text, profile, dtype),
        drafter.weight_bytes + _checkpoints(stage, drafter),
    )


def precision_of(stage: Distillation, dtype: str) -> str:
    """What products run in beside a target of that dtype."""
    return dtype if stage.precision == "auto" else stage.precision


def _trained(stage: Distillation, drafter: Shape) -> tuple[int, int]:
    """Weights that are trained: all, and those of them that are Muon's."""
    matrices = drafter.layers * drafter.layer_parameters
    if stage.lora is not None:
        adapters = drafter.layers * sum(stage.lora * (inputs + outputs) for inputs, outputs in drafter.layer_matrices)
        return adapters, adapters if stage.optimizer == "muon" else 0
    trained = drafter.parameters
    if "layers" in stage.freeze:
        trained -= matrices + drafter.layers * drafter.layer_vector_parameters
    if "embedding" in stage.freeze or (drafter.tied and "head" in stage.freeze):
        trained -= drafter.embedding_rows * drafter.hidden
    if "head" in stage.freeze and not drafter.tied:
        trained -= drafter.head_rows * drafter.hidden
    return trained, matrices if stage.optimizer == "muon" and "layers" not in stage.freeze else 0


def _states(stage: Distillation, drafter: Shape) -> float:
    """The drafter in float32; of what is trained the gradient and the moments (two with AdamW, one with Muon), and
    with `ema` its mean: 4 bytes a weight each. With `lora` also the sums of matrices and adapters, which the backward
    pass needs; with `select` the drafter beside the reference that is trained first."""
    trained, muon = _trained(stage, drafter)
    each = MASTER_BYTES - 4 + (4 if stage.ema else 0)
    found = 4 * drafter.parameters + each * trained - MOMENT_BYTES * muon
    if stage.lora is not None:
        found += 4 * trained + 4 * drafter.layers * drafter.layer_parameters
    if stage.select is not None:
        found += 4 * drafter.parameters
    return found


def _passing(stage: Distillation, drafter: Shape, target: Shape, text: Text, dtype: str) -> float:
    """Activations: 34 T D bytes a layer in half precision, twice that in float32 (Korthikanti et al., arXiv
    2205.05198, attention scores not kept); with `gradient_checkpointing` one layer's, and 4 T D for each layer's
    input. The logits of a chunk four times; the target's states of the text, where they are kept, and of the
    held-out text; the cache of what the drafter writes itself."""
    tokens = stage.batch * text.row_tokens
    layer = (34 if BITS[precision_of(stage, dtype)] == 16 else 68) * tokens * drafter.hidden
    activations = layer * drafter.layers
    if stage.gradient_checkpointing:
        activations = layer + 4 * tokens * drafter.hidden * drafter.layers
    logits = 4 * min(LOGITS_BYTES, 4 * stage.batch * text.answer_tokens * target.head_rows)
    found: float = activations + logits
    state = text.answer_tokens * target.hidden * BITS[dtype] / 8
    if stage.teacher == "online":
        found += state * min(JUDGED_ROWS, text.rows) + (
            state * text.rows if _remembers(stage, target, text, dtype) else 0
        )
    if stage.rollouts is not None:
        found += 4 * 2 * drafter.layers * drafter.kv_width * tokens
    return found


def _remembers(stage: Distillation, target: Shape, text: Text, dtype: str) -> bool:
    size = text.rows * text.answer_tokens * target.hidden * BITS[dtype] / 8
    return stage.teacher == "online" and stage.taught and stage.epochs > 1 and size <= REMEMBERED_BYTES


def _seconds(
    stage: Distillation, drafter: Shape, target: Shape, text: Text, profile: DeviceProfile, dtype: str
) -> float:
    """Forward and backward of the drafter, 6 N operations a token (8 with `gradient_checkpointing`), and forward of the
    target, 2 N, at half of the peak; where a teacher cache is read, or the loss is of tokens alone, the target computes
    nothing.

    To that the optimizer's traffic, 28 bytes a weight that is trained and step, 12 more with `ema`; Muon's products;
    the host's time, the drafter's layers three times and the target's once. With `select` the reference's epochs come
    on top, one more reading of the text, and the head once more for each token that is chosen from. With `on_policy`
    the drafter writes `new_tokens` one by one in each pass, in float32, and the target reads what it wrote.
    """
    share, own_tokens, writing_s = _own(stage, drafter, text, profile)
    once = text.rows * text.row_tokens
    reference = stage.select.reference_epochs if stage.select is not None else 0.0
    given = once * (stage.epochs * (1 - share) + reference)
    passes = 4 if stage.gradient_checkpointing else 3
    operations: float = passes * drafter.step_operations * (given + own_tokens)
    if stage.teacher == "online" and stage.taught:
        operations += target.step_operations * (
            (once if _remembers(stage, target, text, dtype) else given) + own_tokens
        )
    if stage.select is not None:
        chosen = stage.epochs * text.rows * text.answer_tokens
        operations += drafter.step_operations * once + 2 * drafter.head_rows * drafter.hidden * chosen
    steps = max(1, round((stage.epochs + reference) * text.rows / (stage.batch * stage.accumulate)))
    trained, muon = _trained(stage, drafter)
    if muon:
        operations += steps * drafter.layers * sum(_orthogonalising(*matrix) for matrix in drafter.layer_matrices)
    updates_s = steps * (UPDATE_BYTES + (12 if stage.ema else 0)) * trained / profile.bandwidth_bytes_per_s
    read_layers = target.layers if stage.teacher == "online" and stage.taught else 0
    host_s = steps * stage.accumulate * (passes * drafter.layers + read_layers) * profile.layer_overhead_s
    peak = profile.peak(precision_of(stage, dtype))
    return operations / peak / EFFICIENCY + updates_s + host_s + writing_s


def _orthogonalising(inputs: int, outputs: int) -> float:
    """Operations of a matrix of m rows and n >= m columns: 4 m^2 n + 2 m^3 in each step of Newton-Schulz."""
    m, n = sorted((inputs, outputs))
    return NEWTON_SCHULZ * (4 * m**2 * n + 2 * m**3)


def _own(stage: Distillation, drafter: Shape, text: Text, profile: DeviceProfile) -> tuple[float, float, float]:
    """Of what the drafter writes itself: the share of rows, tokens that are read of it, seconds of the writing."""
    rollouts = stage.rollouts
    if rollouts is None:
        return 0.0, 0.0, 0.0
    share = _mean(rollouts.share)
    beginning = text.row_tokens - text.answer_tokens
    beginning += text.answer_tokens // 2 if rollouts.begin == "anywhere" else 0
    rows = share * stage.batch  # in a pass, on average
    tokens = share * stage.epochs * text.rows * min(drafter.context, beginning + rollouts.new_tokens)
    passes = stage.epochs * text.rows / stage.batch
    step_s = step_seconds(served(drafter, "float32"), max(1, round(rows)), profile, "float32")
    return share, tokens, min(1.0, rows) * passes * rollouts.new_tokens * step_s


def _mean(weight: Weight) -> float:
    """Over the training: a schedule is straight between its points."""
    if isinstance(weight, int | float):
        return float(weight)
    edges = sorted({0.0, 1.0, *(share for share, _ in weight)})
    found = 0.0
    for left, right in pairwise(edges):
        found += (right - left) * (weight_at(weight, left) + weight_at(weight, right)) / 2
    return found


def _checkpoints(stage: Distillation, drafter: Shape) -> float:
    """A checkpoint and the one that replaces it: the drafter in float32, and of what is trained its moments and mean;
    the weights of the best look; with `select` the reference's checkpoint."""
    trained, muon = _trained(stage, drafter)
    moments = 2 * MOMENT_BYTES + (4 if stage.ema else 0)
    adapters = 4 * trained if stage.lora is not None else 0
    one = 4 * drafter.parameters + adapters + moments * trained - MOMENT_BYTES * muon
    best = BEST_BYTES * drafter.parameters + adapters if stage.keep == "best" else 0
    return 2 * one + best + (one if stage.select is not None else 0)
