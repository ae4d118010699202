"""The estimate beside what is really allocated, and what is said where memory is short."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from eval.measurement import CHOOSE
from eval.timing import placing
from eval.timing.memory import Load, Models, cache_bytes_per_token, free_bytes, memory_errors, require_memory
from eval.timing.partial import FOLDER
from factory.anatomy.families import shape_from_config
from factory.artifact import Artifact
from factory.decoding.decoder import Limits, speculative
from factory.decoding.drafters import ModelDrafter
from factory.decoding.eager import EagerReader
from factory.decoding.sampling import Noise, Sampling
from factory.errors import DataError

Tiny = Callable[..., PreTrainedModel]
Judge = Callable[..., dict[str, Any]]


def test_the_caches_are_as_large_as_estimated(tiny: Tiny) -> None:
    """Of a real run: the target's and the drafter's, in every family, to the byte."""
    target, smaller = tiny(), tiny(layers=2, seed=1)
    readers = [EagerReader(target), EagerReader(smaller)]
    prompts = [[5, 6, 7, 8, 9], [10, 11]]
    load = Load(batch=2, k=3, prompt=5, new=6)
    limits = Limits(load.new, frozenset(), 160)
    speculative(readers[0], ModelDrafter(readers[1]), prompts, load.k, Sampling(), limits, Noise(0, [0, 1]))
    stored = [part for reader in readers for part in reader._cache._stored or ()]
    shapes = [shape_from_config(model.config.to_dict()) for model in (target, smaller)]
    found = sum(part.untyped_storage().nbytes() for part in stored)
    assert Models(shapes[0], shapes[1:], "float64").cache_bytes(load) == found
    assert found == sum(cache_bytes_per_token(shape, "float64") for shape in shapes) * 2 * (5 + 6 + 3 + 1)
    assert Models(shapes[0], shapes[1:], "float64").weight_bytes == sum(
        tensor.numel() * 8 for model in (target, smaller) for tensor in model.parameters()
    )


def test_each_part_grows_with_what_it_is_of(families: dict[str, Tiny]) -> None:
    shape = shape_from_config(families["llama"]().config.to_dict())
    load = Load(batch=4, k=3, prompt=20, new=10)
    plain = Models(shape, [shape], "float32")
    packed, exact = Models(shape, [shape], "float32", packed=True), Models(shape, [shape], "float32", exact=True)
    assert packed.weight_bytes == plain.weight_bytes + 2 * shape.step_bytes
    assert exact.weight_bytes == plain.weight_bytes + 2 * 8 * shape.parameters
    assert plain.cache_bytes(Load(8, 3, 20, 10)) == 2 * plain.cache_bytes(load)
    assert plain.needed_bytes(load) < plain.needed_bytes(Load(4, 4, 20, 10)) < plain.needed_bytes(Load(4, 4, 21, 10))


@pytest.mark.parametrize(
    ("fitting", "words"),
    [
        (Load(5, 6, 60, 40), "a batch of 5 would fit: lower batches in the plan"),
        (Load(1, 4, 60, 40), "at batch 1, k = 4 would fit: lower ks in the plan"),
        (Load(1, 1, 30, 40), "at batch 1 and k = 1, 70 tokens of prompt and output would fit: lower max_new_tokens"),
    ],
)
def test_what_would_fit_is_named(families: dict[str, Tiny], fitting: Load, words: str) -> None:
    shape = shape_from_config(families["llama"](hidden_size=64, vocabulary=2000).config.to_dict())
    models = Models(shape, [shape], "float32")
    asked = Load(8, 6, 60, 40)
    free = int(models.needed_bytes(fitting)) + 1
    require_memory(models, fitting, free)
    require_memory(models, asked, None)
    with pytest.raises(
        DataError, match=r"^about .*B of memory are needed, and .* are free: .*batch 8, k 6, 100 tokens"
    ) as told:
        require_memory(models, asked, free)
    assert words in str(told.value)


def test_weights_alone_may_be_too_large(families: dict[str, Tiny]) -> None:
    shape = shape_from_config(families["llama"]().config.to_dict())
    for packed in (False, True):
        with pytest.raises(DataError, match="the weights alone do not fit: evaluate fewer drafters") as told:
            require_memory(Models(shape, [shape], "float32", packed), Load(8, 6, 60, 40), 10_000)
        assert ("`lean`" in str(told.value)) == packed


def test_what_is_free_is_known_here() -> None:
    free = free_bytes("cpu")
    assert free is not None and free > 1 << 20


def exhaust_torch() -> None:
    torch.empty(1 << 58, dtype=torch.uint8)


def exhaust_python() -> None:
    bytearray(1 << 62)


@pytest.mark.parametrize("exhaust", [exhaust_torch, exhaust_python])
@pytest.mark.parametrize(
    ("load", "remedy"),
    [
        (Load(8, 4, 60, 40), "lower batches in the plan to 4"),
        (Load(1, 4, 60, 40), "lower ks in the plan below 4"),
        (Load(1, 1, 60, 40), "lower max_new_tokens in the plan below 40, or give prompts shorter than 60 tokens"),
    ],
)
def test_memory_that_runs_out_is_told_with_a_smaller_load(exhaust: Callable[[], None], load: Load, remedy: str) -> None:
    said = rf"^memory ran out at batch {load.batch}, .*{remedy}; what is measured is kept$"
    with pytest.raises(DataError, match=said), memory_errors(load):
        exhaust()


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"), memory_errors(Load(1, 1, 1, 1)):
        raise RuntimeError("shape '[2]' is invalid")


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_a_plan_that_does_not_fit_is_refused_before_anything_is_loaded(
    built: Artifact, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "free_bytes", lambda device: 100_000)
    said: list[str] = []
    with pytest.raises(DataError, match=r"about .* of memory are needed, and 100\.0 kB are free: weights"):
        judge(built, tmp_path / "out", progress=lambda _done, _total, what: said.append(what))
    assert said == [] and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_where_memory_runs_out_what_is_measured_stays(built: Artifact, judge: Judge, tmp_path: Path) -> None:
    out, changes = tmp_path / "out", {"batches": (1, 2), "prompts": 4, "ks": (2,), "temperatures": (0.0,)}

    def progress(done: int, _total: int, what: str) -> None:
        if what == "timing" and done == 4 * 4 + 3:
            exhaust_torch()

    with pytest.raises(
        DataError, match=r"memory ran out at batch 2, k 2 and \d+ tokens .*: lower batches in the plan to 1"
    ):
        judge(built, out, progress=progress, **changes)
    (kept,) = out.glob(f"{FOLDER}/*/{CHOOSE}-*.json")
    assert json.loads(kept.read_text())["block"]["batch"] == 1
    assert "kept of an interrupted run: 1." in " ".join(judge(built, out, **changes)["notes"])
