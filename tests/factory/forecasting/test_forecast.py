"""Costs by hand, the published sizes of the shipped configs, and what a recipe's forecast says and refuses."""

import json
import subprocess
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow
import pytest
from huggingface_hub import constants
from pyarrow import parquet

from factory import hub
from factory.anatomy.families import shape_from_config
from factory.anatomy.shapes import Shape
from factory.errors import FactoryError, UnsupportedModel
from factory.forecasting.amounts import Effort, Text
from factory.forecasting.effort import DISK_BYTES_PER_S, effort_of, text_of, writing
from factory.forecasting.estimate import Forecast, forecast_recipe
from factory.forecasting.forecast import (
    LOW_CEILING,
    Costs,
    cost_ratio,
    costs_in_bytes,
    costs_in_time,
    expected_tokens,
    modelled_speedup,
    served,
    step_seconds,
)
from factory.forecasting.profile import BUILT_IN, DeviceProfile
from factory.forecasting.training_effort import BEST_BYTES, CHECKPOINT_BYTES, MASTER_BYTES
from factory.recipes.recipe import load
from factory.recipes.sources import Data, FilePrompts, HubPrompts
from factory.stages import Distill, DropLayers, Gptq
from factory.wording import count, seconds, size

RECIPES = Path(__file__).parents[3] / "recipes"
CONFIGS = RECIPES / "configs"

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "max_position_embeddings": 4096,
    "vocab_size": 32000,
}

# A device of round figures: reading 1000 bytes/s, 10,000 FLOP/s, 0.5 s of host time a layer.
DEVICE = DeviceProfile("round", "cuda", False, "this test", 10**9, None, 1e3, {"float32": 1e4, "bfloat16": 1e4})
EAGER = replace(DEVICE, layer_overhead_s=0.5, step_overhead_s=0.25)


def shape_of(config: str) -> Shape:
    return shape_from_config(json.loads((CONFIGS / f"{config}.json").read_text()))


def small(layers: int = 4) -> Shape:
    """Per layer 4 * 16 * 16 + 3 * 16 * 32 = 2,560 weights of matrices; the head 100 * 16 = 1,600."""
    config = {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 100,
        "max_position_embeddings": 64,
    }
    shape = shape_from_config(config)
    assert shape.layer_parameters == 2_560 and shape.bits == 32
    return shape


@pytest.mark.parametrize(
    ("config", "published"),
    [
        ("llama-2-7b-chat", 6_738_415_616),
        ("llama-3.1-8b-instruct", 8_030_261_248),
        ("qwen3-8b", 8_190_735_360),
        ("gpt2", 124_439_808),
    ],
)
def test_shipped_configs_have_the_published_sizes(config: str, published: int) -> None:
    assert shape_of(config).parameters == published


def test_half_depth_can_never_pay_much() -> None:
    llama = served(shape_of("llama-2-7b-chat"), "bfloat16")
    c = cost_ratio(replace(llama, layers=16), llama)
    assert c == pytest.approx(0.51, abs=5e-4)
    speedup, k = costs_in_bytes(replace(llama, layers=16), llama).best(0.8)
    assert (
        k == 2 and speedup == pytest.approx((1 + 0.8 + 0.64) / (2 * c + 1)) and speedup == pytest.approx(1.21, abs=5e-3)
    )


@pytest.mark.parametrize(
    ("keep", "llama2", "llama3"), [(1, 0.050, 0.099), (2, 0.081, 0.128), (4, 0.142, 0.186), (8, 0.265, 0.303)]
)
def test_cost_in_bytes_of_the_first_layers(keep: int, llama2: float, llama3: float) -> None:
    for name, expected in (("llama-2-7b-chat", llama2), ("llama-3.1-8b-instruct", llama3)):
        target = shape_of(name)
        assert cost_ratio(replace(target, layers=keep), target) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("alpha", "c", "speedup", "k"),
    [(0.6, 0.02, 2.17, 6), (0.8, 0.1, 2.47, 6), (0.9, 0.05, 4.67, 13), (0.7, 0.3, 1.37, 2), (0.6, 0.5, 1.07, 1)],
)
def test_best_speedup_at_best_k(alpha: float, c: float, speedup: float, k: int) -> None:
    assert Costs(0.0, c, lambda _k: 1.0).best(alpha) == (pytest.approx(speedup, abs=5e-3), k)


def test_tau_and_speedup_by_hand() -> None:
    assert expected_tokens(0.5, 2) == 1.75 and expected_tokens(1.0, 4) == 5 and expected_tokens(0.0, 4) == 1
    assert modelled_speedup(0.5, 2, 0.25) == 1.75 / 1.5
    assert modelled_speedup(0.5, 2, 0.25, verify=1.25) == 1.0


def test_a_step_reads_or_computes_whichever_takes_longer() -> None:
    shape = small()
    reading_s = shape.step_bytes / 1e3
    assert step_seconds(shape, 1, DEVICE, "float32") == reading_s
    assert step_seconds(shape, 1000, DEVICE, "float32") == shape.step_operations * 1000 / 1e4 > reading_s
    # 2 bytes a weight at 1000 bytes/s against 2 operations a token at 10,000/s: from 20 tokens on (vectors apart).
    costs = costs_in_time(shape, shape, DEVICE, "float32")
    assert costs.verify(4) == 1.0 and costs.verify(40) > 1.5 and costs.c == 1.0


def test_the_hosts_time_adds_on_a_cpu_and_hides_behind_a_gpu() -> None:
    shape = small()
    device_s, host_s = shape.step_bytes / 1e3, 4 * 0.5 + 0.25
    assert step_seconds(shape, 1, EAGER, "float32") == max(device_s, host_s)
    slow_host = replace(EAGER, layer_overhead_s=100.0)
    assert step_seconds(shape, 1, slow_host, "float32") == 400.25
    assert step_seconds(shape, 1, replace(slow_host, kind="cpu"), "float32") == pytest.approx(device_s + 400.25)
    # Where only the host counts, c is the share of the layers, whatever the bytes.
    costs = costs_in_time(replace(shape, layers=1), shape, replace(slow_host, step_overhead_s=0.0), "float32")
    assert costs.c == 0.25


def test_what_drafting_verifying_and_a_round_add_on_the_host() -> None:
    shape = small()
    host = replace(EAGER, kind="cpu", verify_layer_overhead_s=0.75, draft_overhead_s=0.125, round_overhead_s=2.0)
    plain, costs = (costs_in_time(shape, shape, device, "float32") for device in (replace(EAGER, kind="cpu"), host))
    assert costs.target_s == plain.target_s
    assert costs.draft_s == pytest.approx(plain.draft_s - 0.125)
    assert costs.verify_s(3) == pytest.approx(plain.verify_s(3) + shape.layers * 0.25)
    tokens = 1 + 0.5 + 0.25 + 0.125
    round_s = 3 * costs.draft_s + costs.verify_s(3) + 2.0
    assert costs.speedup(0.5, 3) == pytest.approx(tokens * costs.target_s / round_s)


def test_few_rows_reach_a_smaller_share_of_the_peak() -> None:
    shape = small()
    slow = replace(DEVICE, few_rows_flop_per_s={"float32": ((5, 1e3), (9, 1e3))})
    plain, here = (costs_in_time(shape, shape, device, "float32").verify(4) for device in (DEVICE, slow))
    assert plain == 1.0
    assert here == pytest.approx(shape.step_operations * 5 / 1e3 / step_seconds(shape, 1, slow, "float32"))
    assert here > 2


def test_quantised_layers_cost_less_where_a_kernel_reads_them() -> None:
    shape = served(small(), "bfloat16")
    int4 = replace(shape, bits=4.25)
    assert served(int4, "float32").bits == 4.25 and served(int4, "float32").table_bits == 32
    assert served(shape, "float32").bits == 32
    assert costs_in_time(int4, shape, DEVICE, "bfloat16").c == pytest.approx(costs_in_bytes(int4, shape).c)
    assert costs_in_bytes(int4, shape).c < 0.5
    cpu = replace(DEVICE, kind="cpu")
    assert costs_in_time(int4, shape, cpu, "bfloat16").c < 1
    for bits in (2.2, 3.2, 8.3):  # unpacked first
        assert costs_in_time(replace(shape, bits=bits), shape, cpu, "bfloat16").c == 1.0
        assert costs_in_time(replace(shape, bits=bits), shape, DEVICE, "bfloat16").c < 1


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


HALF = """\
name: half
target: {model: someone/llama, dtype: bfloat16, config: config.json}
data: {prompts: bos, samples: 1000}
stages:
  - {kind: drop_layers, keep: 16}
  - {kind: distill, epochs: 2}
"""


def forecast(tmp_path: Path, recipe: str = HALF, device: DeviceProfile = BUILT_IN["h200"], **config: int) -> Forecast:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **config}))
    (tmp_path / "r.yaml").write_text(recipe)
    (loaded,) = load(tmp_path / "r.yaml")
    found = forecast_recipe(loaded, device)
    assert found is not None
    return found


def test_a_recipes_forecast(tmp_path: Path) -> None:
    found = forecast(tmp_path)
    assert [step.what for step in found.steps] == ["target", "text", "drop_layers", "distill"]
    assert (found.target.parameters, found.drafter.layers) == (6_738_415_616, 16)
    assert found.in_bytes.c == pytest.approx(0.51, abs=5e-4)
    assert found.in_bytes.best(0.8)[0] < LOW_CEILING
    assert any(warning.startswith("the ceiling is low: at alpha .80") for warning in found.warnings)
    assert found.fits
    found.refuse()
    shown = "\n".join(found.lines())
    assert "32 -> 16 layers" in shown and "c = 0.510 in bytes" in shown and "1.21x@2" in shown
    assert "not measured here" in shown and "fits: peak memory" in shown and "13.5 GB" in shown
    record = json.loads(json.dumps(found.record()))
    assert record["c_bytes"] == found.in_bytes.c and record["fits"] is True
    assert record["best"]["bytes"][2] == {"alpha": 0.8, "speedup": found.in_bytes.best(0.8)[0], "k": 2}
    assert [step["parameters"] for step in record["steps"]] == [step.shape.parameters for step in found.steps]


def test_a_teacher_cache_is_a_step_and_spares_the_target_later(tmp_path: Path) -> None:
    online = forecast(tmp_path)
    found = forecast(tmp_path, HALF.replace("epochs: 2", "epochs: 2, teacher: cache, top_k: 64, drawn: 0"))
    assert [step.what for step in found.steps] == ["target", "text", "teacher", "drop_layers", "distill"]
    effort, trained, before = found.steps[2].effort, found.steps[-1].effort, online.steps[-1].effort
    assert effort is not None and trained is not None and before is not None
    assert effort.disk_bytes == 1000 * 256 * (64 * 4 + 4)  # 32,000 ids fit into 16 bits
    assert effort.memory_bytes > found.target.weight_bytes
    assert effort.seconds > 2 * found.target.parameters * 1000 * 256 / BUILT_IN["h200"].peak("bfloat16")
    assert trained.seconds < before.seconds and trained.memory_bytes <= before.memory_bytes
    assert found.disk_bytes == online.disk_bytes + effort.disk_bytes
    wide = forecast(tmp_path, HALF.replace("epochs: 2", "teacher: cache, top_k: 64, drawn: 0"), vocab_size=128_256)
    assert wide.steps[2].effort is not None and wide.steps[2].effort.disk_bytes == 1000 * 256 * (64 * 6 + 4)


def test_files_are_counted_in_the_dtype_that_they_are_stored_in(tmp_path: Path) -> None:
    """A bfloat16 checkpoint computes in float32 on a CPU, and is downloaded and written as it was."""
    recipe = HALF.replace("dtype: bfloat16, ", "")
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "dtype": "bfloat16"}))
    (tmp_path / "r.yaml").write_text(recipe)
    (loaded,) = load(tmp_path / "r.yaml")
    here, there = (forecast_recipe(loaded, BUILT_IN[device]) for device in ("cpu", "h200"))
    assert here is not None and there is not None
    whole = 2 * 6_738_415_616
    assert (here.dtype, there.dtype) == ("float32", "bfloat16")
    for found in (here, there):
        assert (found.target.weight_bytes, found.download_bytes) == (whole, whole)
        assert found.drafter.weight_bytes == 2 * found.drafter.parameters
    assert here.disk_bytes == there.disk_bytes
    assert here.in_bytes.c == pytest.approx(there.in_bytes.c, abs=1e-3)
    writing_memory = [found.steps[1].effort.memory_bytes for found in (here, there) if found.steps[1].effort]
    assert writing_memory[0] > 2 * whole > writing_memory[1] > whole  # what runs is float32 there
    assert here.in_time.target_s > 2 * whole / BUILT_IN["cpu"].bandwidth_bytes_per_s * 0.95
    (loaded,) = load(tmp_path / "r.yaml", ["target.dtype=float16"])
    cast = forecast_recipe(loaded, BUILT_IN["cpu"], config={**LLAMA, "dtype": "float32"})
    assert cast is not None and (cast.download_bytes, cast.drafter.bits) == (2 * whole, 16)


def test_a_config_that_is_given_comes_before_the_recipes(tmp_path: Path) -> None:
    forecast(tmp_path)
    (loaded,) = load(tmp_path / "r.yaml")
    found = forecast_recipe(loaded, BUILT_IN["h200"], config={**LLAMA, "num_hidden_layers": 24})
    assert found is not None and found.target.layers == 24


def test_few_layers_are_not_warned_about(tmp_path: Path) -> None:
    assert forecast(tmp_path, HALF.replace("keep: 16", "keep: 2")).warnings == ()


def test_the_host_is_named_where_it_decides(tmp_path: Path) -> None:
    slow = replace(BUILT_IN["h200"], step_overhead_s=0.02)
    found = forecast(tmp_path, HALF.replace("keep: 16", "keep: 4"), slow)
    assert found.in_bytes.best(0.8)[0] > LOW_CEILING > found.in_time.best(0.8)[0]
    assert any(warning.startswith("this engine on this device") for warning in found.warnings)


def test_what_does_not_fit_is_refused_and_named(tmp_path: Path) -> None:
    found = forecast(tmp_path, device=replace(BUILT_IN["h200"], memory_bytes=40 * 10**9))
    assert not found.fits
    with pytest.raises(FactoryError, match=r"half: distill needs about \d+\.\d GB of memory.*has 40\.0 GB"):
        found.refuse()
    unknown = forecast(tmp_path, device=replace(BUILT_IN["h200"], memory_bytes=None))
    assert unknown.fits


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forecast(tmp_path)
    (loaded,) = load(tmp_path / "r.yaml")
    monkeypatch.setattr("factory.forecasting.estimate.free_bytes", lambda _out: 10**9)
    assert forecast_recipe(loaded, BUILT_IN["h200"]).fits  # type: ignore[union-attr]
    found = forecast_recipe(loaded, BUILT_IN["h200"], out=tmp_path)
    assert found is not None and "of disk, and 1.0 GB are free" in found.faults[0]


def test_without_a_config_there_is_no_forecast_and_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr("factory.forecasting.estimate.hub_config", lambda *what: asked.append(what))
    (tmp_path / "r.yaml").write_text(HALF.replace(", config: config.json", ""))
    (loaded,) = load(tmp_path / "r.yaml")
    assert forecast_recipe(loaded, BUILT_IN["cpu"]) is None
    assert asked == [("someone/llama", None)]
    found = forecast_recipe(loaded, BUILT_IN["cpu"], config=LLAMA)
    assert found is not None and found.target.layers == 32 and len(asked) == 1
    monkeypatch.setattr("factory.forecasting.estimate.hub_config", lambda *_what: {**LLAMA, "num_hidden_layers": 24})
    found = forecast_recipe(loaded, BUILT_IN["cpu"])
    assert found is not None and found.target.layers == 24


@pytest.mark.parametrize(
    ("status", "body", "layers"), [(200, json.dumps(LLAMA), 32), (401, "{}", None), (200, "<html>", None)]
)
def test_a_config_from_a_hub(monkeypatch: pytest.MonkeyPatch, status: int, body: str, layers: int | None) -> None:
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/someone/llama/resolve/main/config.json" else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.hub_config.cache_clear()
    try:
        found = hub.hub_config("someone/llama")
        assert (found and found["num_hidden_layers"]) == layers
        assert hub.hub_config("someone/else") is None
    finally:
        server.shutdown()
        hub.hub_config.cache_clear()


def test_a_hub_that_is_not_there_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.hub_config.cache_clear()
    assert hub.hub_config("someone/llama") is None


def test_what_cannot_be_done_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"r\.yaml:5: stages\.0: drop_layers: keep is 16, the model has 8"):
        forecast(tmp_path, num_hidden_layers=8)


def test_sizes_are_said_in_short() -> None:
    assert (count(6_738_415_616), count(12_330_000), count(900)) == ("6.74 B", "12.33 M", "900")
    assert (size(13_476_831_232), size(None), size(12)) == ("13.5 GB", "unknown", "12 B")
    assert (seconds(0.0032), seconds(90), seconds(5400)) == ("3.20 ms", "1.5 min", "1.5 h")


def test_a_forecast_imports_no_torch() -> None:
    code = "import sys, factory.forecasting.estimate, factory.forecasting.defaults; "
    code += "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("recipe", "c"),
    [
        ("llama2-prune50", [0.030, 0.041, 0.062, 0.105]),
        ("llama3-8b-layers", [0.128, 0.186, 0.302]),
        ("qwen3-8b-layers5", [0.210]),
        ("gpt2-layers2", [0.427]),
    ],
)
def test_the_catalogue_says_what_the_shipped_recipes_cost(recipe: str, c: list[float]) -> None:
    found = [forecast_recipe(loaded, BUILT_IN["h200"]) for loaded in load(RECIPES / f"{recipe}.yaml")]
    assert [each and round(each.in_bytes.c, 3) for each in found] == c
    assert all(each and each.fits for each in found)
    row = next(line for line in (RECIPES / "README.md").read_text().splitlines() if f"({recipe}.yaml)" in line)
    assert ", ".join(f"{each:.3f}" for each in c) in row


def test_more_prompts_than_the_target_continues_are_warned_about(tmp_path: Path) -> None:
    prompts = "{dataset: a/b, column: c, samples: 5000}"
    found = forecast(tmp_path, HALF.replace("keep: 16", "keep: 2").replace("prompts: bos", f"prompts: {prompts}"))
    assert any("of 5,000 prompts the target continues 1,000" in warning for warning in found.warnings)
