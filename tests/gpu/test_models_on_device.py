"""What is computed on a device against the CPU's float64: scores, the teacher cache, a training, an enlarged model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from eval.parity import audit, near_tie_bounds
from factory.data.blocks import TextBlocks, text_blocks
from factory.data.scribe import write_text
from factory.decoding.decoder import Limits, autoregressive
from factory.decoding.lean import LeanReader
from factory.decoding.readers import open_reader
from factory.decoding.sampling import Noise, Sampling
from factory.given import CacheSettings, Given
from factory.models.loading import load_model, load_tokenizer
from factory.stages import Distill
from factory.surgery.activations import contributions, magnitudes, residual_streams
from factory.surgery.enlarge import enlarge, named_sizes
from factory.teaching.teacher_cache import TeacherCache, write_cache
from factory.tensors.saliency import block_influence

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "recipes/demo/target"
Tiny = Callable[..., PreTrainedModel]


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def some_text(rows: int = 24, seed: int = 0) -> TextBlocks:
    """Rows of 5 to 14 tokens, the first two of each a prompt."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 15, (rows,), generator=generator).tolist()
    return text_blocks([(torch.randint(3, 96, (length,), generator=generator).tolist(), 2) for length in lengths])


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_scores_are_those_of_float64(families: dict[str, Tiny], family: str, device: str) -> None:
    exact, model = families[family](layers=3), families[family](layers=3, dtype=torch.float32).to(device)
    text = some_text()
    heads = family == "llama"
    for made, expected in zip(
        [*contributions(model, text, silent, heads=heads), *magnitudes(model)],
        [*contributions(exact, text, silent, heads=heads), *magnitudes(exact)],
        strict=True,
    ):
        for layer, exact_layer in zip(made, expected, strict=True):
            torch.testing.assert_close(layer.double().cpu(), exact_layer.double(), rtol=1e-3, atol=1e-4)
    influence = [
        [float(block_influence(stream[0], stream[1], mask)) for stream, mask in residual_streams(each, text, silent)]
        for each in (model, exact)
    ]
    assert influence[0] == pytest.approx(influence[1], rel=1e-3)


def test_the_teacher_cache_is_that_of_float64(families: dict[str, Tiny], tmp_path: Path, device: str) -> None:
    text, settings = some_text(), CacheSettings(temperature=1.0, top_k=8, drawn=4)
    kept = []
    for name, model in [
        ("exact", families["llama"]()),
        ("here", families["llama"](dtype=torch.float32).to(device)),
    ]:
        write_cache(model, text, settings, folder=tmp_path / name, key={"target": name}, progress=silent)
        kept.append(TeacherCache.open(tmp_path / name).rows(range(len(text))))
    (exact_ids, exact_log_p, exact_tail), (ids, log_p, tail) = kept
    assert torch.equal(ids[:, :8], exact_ids[:, :8])
    torch.testing.assert_close(log_p[:, :8].float(), exact_log_p[:, :8].float(), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(tail, exact_tail, rtol=1e-3, atol=1e-5)
    assert (ids[:, 8:] == exact_ids[:, 8:]).float().mean() > 0.99  # one draw; at an edge rounding decides


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pack": 32, "gradient_checkpointing": True, "ema": 0.9},
        {"loss": [{"kind": "lk_hybrid"}, {"kind": "cross_entropy", "weight": 0.1}], "optimizer": "muon"},
        {"select": {"keep": 0.5}, "lora": 4},
        {"on_policy": {"share": 0.5, "new_tokens": 4}, "accumulate": 2},
    ],
    ids=str,
)
def test_a_training_learns_what_it_learns_on_a_cpu(
    families: dict[str, Tiny], tmp_path: Path, device: str, fields: dict[str, object]
) -> None:
    stage = Distill.model_validate_json(json.dumps({"kind": "distill", "epochs": 2, "lr": 1e-3, "batch": 6, **fields}))
    losses = []
    for place in ("cpu", device):
        target = families["llama"](dtype=torch.float32).to(place)
        drafter = families["llama"](layers=2, seed=1, dtype=torch.float32).to(place)
        folder = tmp_path / f"{len(losses)}"
        folder.mkdir()
        given = Given(lambda target=target: target, some_text(), some_text(6, 1), 0, folder, silent)  # type: ignore[misc]
        losses.append(stage.apply(drafter, given)["losses"])
        assert {weight.device.type for weight in drafter.parameters()} == {place}
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)


def test_the_text_is_one_that_the_target_writes(families: dict[str, Tiny], tmp_path: Path, device: str) -> None:
    """In float64, so that the very tokens are drawn that a CPU draws."""
    texts = []
    for place in ("cpu", device):
        model = families["llama"]().to(place)
        made = write_text(
            lambda model=model: model,  # type: ignore[misc]
            [[1], [1, 5]],
            samples=12,
            temperature=1.0,
            max_new_tokens=10,
            batch=5,
            seed=0,
            folder=tmp_path / f"{len(texts)}",
            progress=silent,
            top_p=0.95,
        )
        texts.append(made.rows.ids)
    assert torch.equal(*texts)


def test_the_shipped_target_enlarged(device: str) -> None:
    """On a GPU to the shape of Llama 2 7B, of which only the small model travels."""
    small = load_model(SHIPPED, dtype=torch.bfloat16, device=device)
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 20 GB of free memory on the device")
    large = enlarge(small, named_sizes("7b" if device == "cuda" else "tiny", 64))
    assert {tensor.device.type for tensor in (*large.parameters(), *large.buffers())} == {device}
    tokenizer = load_tokenizer(SHIPPED)
    lines = (ROOT / "eval/prompts/code.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    prompts = [tokenizer(json.loads(line)["prompt"])["input_ids"][:40] for line in lines]
    limits = Limits(48, frozenset(), 512)
    readers = LeanReader(small), open_reader(large)
    before, after = (
        autoregressive(each, prompts, Sampling(), limits, Noise(0, range(len(prompts)), device)) for each in readers
    )
    with torch.inference_mode():  # either rounds in its own way
        bound = sum(near_tie_bounds(each, before, [3])[3] for each in readers)
        found = audit(readers[0], before, after, bound)
    assert found.passed, found.detail
    assert found.divergences <= 3
