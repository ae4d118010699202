"""What each step of a build takes: peak memory, seconds and disk, from sizes alone. All of it is rough.

The formulas stand at each function. They are for deciding whether a build fits and whether it is a
matter of minutes or of days, not for a timetable.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from factory.anatomy.families import BITS
from factory.anatomy.shapes import Shape
from factory.distillation.settings import Distillation
from factory.files.atomic import SHARD_BYTES
from factory.forecasting.amounts import Effort, Text
from factory.forecasting.forecast import step_seconds
from factory.forecasting.profile import DeviceProfile
from factory.forecasting.training_effort import training
from factory.given import CacheSettings
from factory.limits import CACHE_SHARD_ROWS, LOGITS_BYTES, READ_ROWS, SCORED_ROWS
from factory.recipes.sources import BOS, UNASKED_TEXTS, Data, HubPrompts
from factory.stages.base import QuantizingStage, Stage, StructuralStage

PROMPT_TOKENS = 256  # taken for prompts of a dataset, which is not read for a forecast
CHARACTERS_PER_TOKEN = 4
COLUMN_S = 1e-4  # taken for one column of GPTQ, which goes column by column with small kernels
DISK_BYTES_PER_S = 0.5e9  # taken for reading, hashing and writing weights
LOGITS_PASSES = 8  # taken for how often float32 logits pass through memory until their top k are known
COMPARED_BYTES = 2 * 4  # a weight of a quantised drafter's source in float32, and at most as much of one other model


def text_of(data: Data | None) -> Text | None:
    """Sizes of a recipe's text. Every row is taken to be written to its full length.

    What is in a file is measured, at 4 characters a token; prompts of a dataset are taken for 256 tokens.
    """
    if data is None:
        return None
    written = data.written_by == "target"
    source = data.prompts
    if isinstance(source, HubPrompts):  # how many rows a dataset of unknown length has is not known
        rows, prompt = data.texts() if written else source.samples or UNASKED_TEXTS, PROMPT_TOKENS
    elif source == BOS:
        rows, prompt = data.texts(1), 1
    else:
        entries = data.entries(Path()) or []
        rows = data.texts(len(entries)) if written else len(entries)
        characters = sum(entry.characters(prompt=written) for entry in entries)
        prompt = max(1, characters // (CHARACTERS_PER_TOKEN * len(entries)))
    return Text(rows, prompt, data.max_new_tokens if written else 0, data.batch)


def writing(text: Text, target: Shape, profile: DeviceProfile, dtype: str) -> Effort:
    """The target writes the text, batch by batch.

    A step streams the weights and the cache of every row, 2 L D_kv bytes-per-value a token, at half of
    its final length on average; the prompts cost 2 N operations a token. Memory: weights, the full
    cache, and the logits of a batch in float32 three times over.
    """
    cache = 2 * target.layers * target.kv_width * BITS[dtype] / 8  # bytes a token
    batches = math.ceil(text.rows / text.batch)
    reading_s = text.batch * (text.prompt_tokens + text.new_tokens / 2) * cache / profile.bandwidth_bytes_per_s
    step_s = step_seconds(target, text.batch, profile, dtype) + reading_s
    prompts_s = target.step_operations * text.rows * text.prompt_tokens / profile.peak(dtype)
    logits = 3 * 4 * text.batch * target.head_rows
    memory = target.weight_bytes + text.batch * text.row_tokens * cache + logits
    return Effort(memory, batches * text.new_tokens * step_s + prompts_s, 4 * text.rows * text.row_tokens)


def caching(text: Text, settings: CacheSettings, target: Shape, profile: DeviceProfile, dtype: str) -> Effort:
    """The target reads the text once; of every answer token it keeps the top k and the drawn, an id and a float16 each,
    and the tail.

    2 N operations a token, the logits' way through memory, and the host's part of each forward pass. Memory: weights,
    the activations of one layer at 34 D bytes a token in half precision, the logits thrice, a shard's rows twice.
    """
    answers = text.rows * text.answer_tokens
    kept = min(settings.top_k, target.head_rows) + settings.drawn
    token_bytes = kept * (2 + (2 if target.head_rows <= 1 << 16 else 4)) + 4
    stays = answers * token_bytes
    computing_s = target.step_operations * text.rows * text.row_tokens / profile.peak(dtype)
    logits_s = LOGITS_PASSES * 4 * answers * target.head_rows / profile.bandwidth_bytes_per_s
    host_s = math.ceil(text.rows / READ_ROWS) * (target.layers * profile.layer_overhead_s + profile.step_overhead_s)
    activations = (34 if BITS[dtype] == 16 else 68) * min(READ_ROWS, text.rows) * text.row_tokens * target.hidden
    logits = 3 * min(LOGITS_BYTES, 4 * answers * target.head_rows)
    shard = 2 * min(CACHE_SHARD_ROWS, text.rows) * text.answer_tokens * token_bytes
    memory = target.weight_bytes + activations + logits + shard
    return Effort(memory, computing_s + logits_s + host_s + stays / DISK_BYTES_PER_S, stays)


def effort_of(
    stage: Stage, before: Shape, after: Shape, target: Shape, text: Text | None, profile: DeviceProfile, dtype: str
) -> Effort:
    """What a stage takes. Where it needs text, the target that wrote it is taken to be in memory still."""
    held = target.weight_bytes if stage.needs_text else 0.0
    files_s = (before.weight_bytes + after.weight_bytes) / DISK_BYTES_PER_S
    if isinstance(stage, QuantizingStage):
        return _quantizing(stage, before, after, held, text, files_s, profile)
    if isinstance(stage, Distillation) and text is not None:
        found = training(stage, after, target, text, profile, dtype)
        return replace(found, seconds=found.seconds + files_s)
    return _structural(stage, before, after, target, held, text, profile, dtype)


def _structural(
    stage: Stage,
    before: Shape,
    after: Shape,
    target: Shape,
    held: float,
    text: Text | None,
    profile: DeviceProfile,
    dtype: str,
) -> Effort:
    """Surgery streams what stays: one file's worth of tensors is held, and the tensor at hand twice over.

    Only a score that runs or reads the model loads it; where that is the target, it is there already.
    """
    loads = isinstance(stage, StructuralStage) and stage.needs_model
    loaded = (target.weight_bytes if before == target else held + before.weight_bytes) if loads else held
    largest = max(
        before.embedding_rows * before.hidden * before.table_bits / 8, before.hidden * before.ffn * before.bits / 8
    )
    streaming = min(after.weight_bytes, SHARD_BYTES) + 2 * largest
    scored = _tokens(SCORED_ROWS, text, before) if stage.needs_text else 0
    scoring_s = before.step_operations * scored / profile.peak(dtype)
    files_s = ((before.weight_bytes if loads else after.weight_bytes) + 2 * after.weight_bytes) / DISK_BYTES_PER_S
    return Effort(loaded + streaming, files_s + scoring_s, after.weight_bytes)


def _tokens(rows: int, text: Text | None, shape: Shape) -> int:
    """Tokens of so many rows of the text, of as many as it has; a row is no longer than the context."""
    if text is None:
        return rows * shape.context
    return min(rows, text.rows) * min(text.row_tokens, shape.context)


def _quantizing(
    stage: Stage,
    before: Shape,
    after: Shape,
    held: float,
    text: Text | None,
    files_s: float,
    profile: DeviceProfile,
) -> Effort:
    """GPTQ (arXiv 2210.17323): for a matrix of I inputs and O outputs, 2 C I^2 operations for the Hessian over C tokens
    of calibration, I^3 to invert it, 2 O I^2 to compensate, and I columns one by one; two forward passes besides.

    Memory: at its end the drafter in float32 is compared with one other model at a time; to that the largest Hessian
    and its inverse, and a layer's inputs and outputs on the calibration text, in float32 all. Rougher than the rest:
    the time of a column is taken, not measured.
    """
    tokens = _tokens(int(getattr(stage, "samples", 128)), text, before)
    float32 = profile.peak("float32")
    layer = sum(2 * tokens * i**2 + i**3 + 2 * o * i**2 for i, o in before.layer_matrices)
    columns = sum(inputs for inputs, _ in before.layer_matrices)
    forward = 2 * before.step_operations * tokens
    seconds = (before.layers * layer + forward) / float32 + before.layers * columns * COLUMN_S + files_s
    widest = max(inputs for inputs, _ in before.layer_matrices)
    memory = held + COMPARED_BYTES * before.parameters + 2 * 4 * widest**2 + 2 * 4 * tokens * before.hidden
    return Effort(memory, seconds, after.weight_bytes)
