"""What each step of a build takes, by hand."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from round_figures import DEVICE, small

from factory.forecasting.amounts import Effort, Text
from factory.forecasting.effort import DISK_BYTES_PER_S, effort_of, text_of, writing
from factory.forecasting.forecast import (
    step_seconds,
)
from factory.forecasting.training_effort import BEST_BYTES, CHECKPOINT_BYTES, MASTER_BYTES
from factory.recipes.sources import Data, FilePrompts, HubPrompts
from factory.stages import Distill, DropLayers, Gptq


def test_effort_by_hand() -> None:
    target, drafter = small(4), small(1)
    text = text_of(Data(prompts="bos", samples=100, max_new_tokens=31, batch=10))
    assert text is not None and (text.rows, text.row_tokens) == (100, 32)
    written = writing(text, target, DEVICE, "float32")
    cache = 2 * 4 * 16 * 4  # bytes a token
    assert written.memory_bytes == target.weight_bytes + 10 * 32 * cache + 3 * 4 * 10 * 100
    step_s = step_seconds(target, 10, DEVICE, "float32") + 10 * (1 + 15.5) * cache / 1e3
    assert written.seconds == pytest.approx(10 * 31 * step_s + target.step_operations * 100 / 1e4)

    stage = Distill(kind="distill", epochs=2, batch=5)
    found = effort_of(stage, drafter, drafter, target, text, DEVICE, "float32")
    tokens = 2 * 100 * 32  # the target reads them once: its hidden states are remembered
    arithmetic_s = (3 * drafter.step_operations * tokens + target.step_operations * tokens / 2) / 1e4 / 0.5
    assert found.seconds == pytest.approx(arithmetic_s + 40 * 28 * drafter.parameters / 1e3, rel=1e-3)
    assert found.memory_bytes > target.weight_bytes + MASTER_BYTES * drafter.parameters
    assert found.disk_bytes == drafter.weight_bytes + (CHECKPOINT_BYTES + BEST_BYTES) * drafter.parameters

    dropped = effort_of(DropLayers(kind="drop_layers", keep=1), target, drafter, target, text, DEVICE, "float32")
    embedding = 4 * target.embedding_rows * target.hidden
    assert dropped.memory_bytes == drafter.weight_bytes + 2 * embedding  # streamed: the target is not loaded
    scored = DropLayers(kind="drop_layers", keep=1, score="angular")
    loaded = effort_of(scored, target, drafter, target, text, DEVICE, "float32")
    assert loaded.memory_bytes == target.weight_bytes + drafter.weight_bytes + 2 * embedding
    assert dropped.disk_bytes == drafter.weight_bytes
    # Scores look at 64 rows of the text, 32 tokens each; beyond `dropped` the whole target is read.
    read_s = (target.weight_bytes - drafter.weight_bytes) / DISK_BYTES_PER_S
    scored_s = target.step_operations * 64 * 32 / 1e4
    assert loaded.seconds - dropped.seconds == pytest.approx(scored_s + read_s)

    quantised = [
        effort_of(Gptq(kind="gptq", samples=samples), drafter, drafter, target, text, DEVICE, "float32")
        for samples in (10, 100, 1000)
    ]
    hessian = 2 * 4 * 32**2  # the widest input
    for found, rows in zip(quantised, (10, 100, 100), strict=True):  # the text has no more
        compared = 2 * 4 * drafter.parameters
        assert found.memory_bytes == target.weight_bytes + compared + hessian + 2 * 4 * rows * 32 * 16


def distilling(**fields: object) -> Effort:
    """Of a drafter of one layer, 32-bit; its matrices have 2,560 weights, its embedding and head 1,600 each."""
    text = Text(rows=100, prompt_tokens=1, new_tokens=31, batch=10)
    stage = Distill.model_validate_json(json.dumps({"kind": "distill", "batch": 5, **fields}))
    return effort_of(stage, small(1), small(1), small(4), text, DEVICE, "float32")


def test_what_each_way_to_distil_takes() -> None:
    drafter, plain = small(1), distilling()
    weights, matrices, target_s = drafter.parameters, drafter.layer_parameters, small(4).step_operations * 3200 / 5e3
    assert matrices == 2_560 and not drafter.tied

    cached = distilling(teacher="cache")  # the target computes nothing, and keeps nothing of the held-out text
    assert plain.seconds - cached.seconds == pytest.approx(target_s)
    assert plain.memory_bytes - cached.memory_bytes == 100 * 31 * 16 * 4

    likely = distilling(loss="cross_entropy")  # its predictions are asked for where it is judged alone
    assert plain.seconds - likely.seconds == pytest.approx(target_s)

    mean = distilling(ema=0.99)
    assert mean.memory_bytes - plain.memory_bytes == 4 * weights
    assert mean.disk_bytes - plain.disk_bytes == 2 * 4 * weights
    assert mean.seconds - plain.seconds == pytest.approx(20 * 12 * weights / 1e3)

    muon = distilling(optimizer="muon")  # one moment less for matrices
    assert plain.memory_bytes - muon.memory_bytes == 4 * matrices
    assert plain.disk_bytes - muon.disk_bytes == 2 * 4 * matrices
    assert muon.seconds > plain.seconds

    adapters = 2 * sum(inputs + outputs for inputs, outputs in drafter.layer_matrices)
    lora = distilling(lora=2)
    assert plain.memory_bytes - lora.memory_bytes == 12 * weights - 16 * adapters - 4 * matrices
    assert lora.disk_bytes - plain.disk_bytes == 2 * (12 * adapters - 8 * weights) + 4 * adapters
    frozen = distilling(freeze=["embedding", "head"])
    assert plain.memory_bytes - frozen.memory_bytes == 12 * 2 * 1_600
    assert frozen.seconds < plain.seconds

    deep = Distill(kind="distill", batch=5), Distill(kind="distill", batch=5, gradient_checkpointing=True)
    text = Text(rows=100, prompt_tokens=1, new_tokens=31, batch=10)
    kept, again = (effort_of(stage, small(8), small(8), small(8), text, DEVICE, "float32") for stage in deep)
    assert kept.memory_bytes - again.memory_bytes == (7 * 68 - 8 * 4) * 160 * 16
    assert again.seconds - kept.seconds == pytest.approx(small(8).step_operations * 3200 / 5e3)

    chosen = distilling(select={"keep": 0.5, "reference_epochs": 2.0})
    assert chosen.seconds > 3 * (plain.seconds - target_s)  # three epochs of the drafter, and a reading
    assert chosen.memory_bytes - plain.memory_bytes == 4 * weights
    assert chosen.disk_bytes - plain.disk_bytes == 12 * weights

    own = distilling(on_policy={"share": 0.4, "new_tokens": 8})  # two of five rows in each of 20 passes
    rolled_s = 20 * 8 * step_seconds(drafter, 2, DEVICE, "float32")
    learned = (3 * drafter.step_operations + small(4).step_operations) * 0.4 * 100 / 5e3
    # behind 1 token and half of the 31 stand 8 new ones: 24 in place of 32
    assert own.seconds - plain.seconds == pytest.approx(rolled_s - 8 * learned)
    rising = distilling(on_policy={"share": [[0, 0.0], [1, 0.8]], "new_tokens": 8})
    assert rising.seconds == pytest.approx(own.seconds)
    assert distilling(method="on_policy_gkd").seconds > distilling(method="f_distill").seconds > plain.seconds


def test_the_forecast_knows_how_many_logits_are_held() -> None:
    from factory.limits import LOGITS_BYTES
    from factory.tensors.fused import CHUNK_BYTES

    assert CHUNK_BYTES == LOGITS_BYTES


def test_text_of_prompts_in_a_file_is_measured(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(f"{'a' * 40}\n{'b' * 80}\n")
    given = Data(prompts=str(tmp_path / "p.txt"), samples=7, max_new_tokens=10)
    text = text_of(given)
    assert text is not None and (text.rows, text.prompt_tokens, text.new_tokens) == (7, 15, 10)
    as_it_is = text_of(given.model_copy(update={"written_by": "none"}))
    assert as_it_is is not None and (as_it_is.rows, as_it_is.new_tokens) == (2, 0)
    assert text_of(None) is None


def test_text_of_conversations_and_answers_is_measured(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "a" * 40}, {"role": "assistant", "content": "b" * 80}]
    records = [{"messages": said, "q": "c" * 20, "a": "d" * 60}] * 3
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "p.parquet")
    whole = Data(prompts=str(tmp_path / "p.parquet"), written_by="none")
    pairs = FilePrompts(file=str(tmp_path / "p.parquet"), column="q", answer="a", samples=2)
    answered = Data(prompts=str(tmp_path / "p.parquet"), per_prompt=4, max_new_tokens=10)
    listed = Data(prompts=HubPrompts(dataset="user/set", column="text", samples=7), per_prompt=2)
    for data, sizes in (
        (whole, (3, 30, 0)),
        (answered, (12, 10, 10)),
        (Data(prompts=pairs, written_by="none"), (2, 20, 0)),
        (listed, (14, 256, 256)),
        (Data(prompts="bos", per_prompt=5), (5, 1, 256)),
    ):
        text = text_of(data)
        assert text is not None and (text.rows, text.prompt_tokens, text.new_tokens) == sizes
