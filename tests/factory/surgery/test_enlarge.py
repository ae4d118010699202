"""An enlarged model says what the small one says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from eval.parity import audit, near_tie_bounds
from factory.anatomy.shapes import Edit
from factory.decoding.decoder import Generation, Limits, autoregressive, speculative
from factory.decoding.drafters import ModelDrafter
from factory.decoding.lean import LeanReader
from factory.decoding.sampling import Noise, Sampling
from factory.errors import UnsupportedModel
from factory.models.loading import load_model, load_tokenizer
from factory.surgery.carving import carve_module
from factory.surgery.enlarge import (
    FAMILIES,
    SHAPES,
    Sizes,
    enlarge,
    enlarged_config,
    enlarged_from,
    named_sizes,
    sizes_alike,
    sizes_of,
    zero_share,
)

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "recipes/demo/target"
GREEDY = Sampling(temperature=0.0)
Tiny = Callable[..., PreTrainedModel]


def in_float64(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' RMS norms compute in float32 whatever the dtype; here in the tensors' own."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = self.weight
        return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            monkeypatch.setattr(type(module), "forward", forward)


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: int = 24) -> torch.Tensor:
    """[2, T, V]"""
    vocabulary = model.config.vocab_size
    ids = torch.randint(3, vocabulary, (2, tokens), generator=torch.Generator().manual_seed(1))
    found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


CASES: list[tuple[str, dict[str, Any], Sizes]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}, Sizes(5, 96, 100, 12, 4)),
    ("llama", {"tie_word_embeddings": True}, Sizes(3, 64, 48, 8, 8)),  # keys of one head each
    ("llama", {"num_key_value_heads": 4}, Sizes(3, 32, 49, 8, 4)),  # groups where there were none
    ("llama", {"num_key_value_heads": 1}, Sizes(4, 192, 250, 6, 3)),
    ("llama", {}, Sizes(3, 160, 48, 5, 5)),  # copies of some heads only
    ("mistral", {}, Sizes(5, 64, 96, 8, 2)),
    ("qwen2", {}, Sizes(5, 96, 90, 12, 6)),  # biases, layers of two kinds
    ("qwen3", {"tie_word_embeddings": True}, Sizes(4, 128, 100, 16, 8)),  # norms of heads
]


@pytest.mark.parametrize(
    ("family", "changes", "sizes"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_logits_are_equal(
    families: dict[str, Tiny], family: str, changes: dict[str, Any], sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families[family](layers=3, seed=3, **changes)
    made = enlarge(model, sizes)
    assert sizes_of(made.config.to_dict()) == sizes
    assert made.config.head_dim == 8
    assert made.get_input_embeddings().weight.shape == (model.config.vocab_size, sizes.hidden)
    torch.testing.assert_close(logits(made), logits(model), rtol=1e-5, atol=1e-4)  # transformers' norms are float32
    in_float64(model, monkeypatch)
    torch.testing.assert_close(logits(made), logits(model), rtol=0, atol=1e-9)


def test_the_small_model_is_left_alone(families: dict[str, Tiny]) -> None:
    model = families["llama"](layers=2, tie_word_embeddings=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = enlarge(model, Sizes(3, 64, 96, 8, 4))
    with torch.no_grad():
        for weight in made.parameters():
            weight.fill_(7.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def shipped() -> PreTrainedModel:
    return load_model(SHIPPED, dtype=torch.float64)


def test_the_shipped_target_in_float64(shipped: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    made = enlarge(shipped, named_sizes("tiny", 64))
    in_float64(shipped, monkeypatch)
    torch.testing.assert_close(logits(made, 64), logits(shipped, 64), rtol=0, atol=1e-9)


def prompts(count: int) -> list[list[int]]:
    """Python code, [count][40]."""
    tokenizer = load_tokenizer(SHIPPED)
    lines = (ROOT / "eval/prompts/code.jsonl").read_text(encoding="utf-8").splitlines()
    ids = (tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines)
    return [one[:40] for one in ids if len(one) >= 40][:count]


def written(model: PreTrainedModel, drafter: PreTrainedModel | None = None, tokens: int = 48) -> list[Generation]:
    """Greedy texts by the lean reader."""
    limits, noise = Limits(tokens, frozenset(), model.config.max_position_embeddings), Noise(0, range(4))
    target = LeanReader(model)
    if drafter is None:
        return autoregressive(target, prompts(4), GREEDY, limits, noise)
    return speculative(target, ModelDrafter(LeanReader(drafter)), prompts(4), 3, GREEDY, limits, noise)


def test_greedy_text_of_the_shipped_target_in_bfloat16() -> None:
    small = load_model(SHIPPED, dtype=torch.bfloat16)
    before, after = written(small), written(enlarge(small, named_sizes("tiny", 64)))
    reader = LeanReader(small)
    with torch.inference_mode():
        bound = near_tie_bounds(reader, before, [3])[3]
        found = audit(reader, before, after, bound)  # other sums are rounded otherwise, on each processor
    assert found.passed, found.detail
    assert found.divergences <= 1


def test_a_pair_keeps_its_acceptance(shipped: PreTrainedModel) -> None:
    drafter = carve_module(shipped, Edit(keep_layers=tuple(range(12))))
    sizes = Sizes(21, 512, 1024, 8, 4)
    alike = sizes_alike(sizes_of(drafter.config.to_dict()), sizes_of(shipped.config.to_dict()), sizes)
    assert alike == Sizes(12, 512, 1024, 8, 4)
    before = written(shipped, drafter, tokens=24)
    after = written(enlarge(shipped, sizes), enlarge(drafter, alike), tokens=24)
    assert [one.tokens for one in after] == [one.tokens for one in before]
    assert [one.accepted for one in after] == [one.accepted for one in before]
    assert 0 < sum(sum(one.accepted) for one in before) < sum(sum(one.proposed) for one in before)


def test_a_narrower_drafter_grows_by_the_factors_of_its_target() -> None:
    target, large = Sizes(20, 256, 512, 4, 2), Sizes(32, 4096, 11008, 64, 64)
    assert sizes_alike(Sizes(1, 256, 384, 2, 1), target, large) == Sizes(1, 4096, 8256, 32, 32)
    assert sizes_alike(Sizes(1, 256, 511, 4, 2), target, large).ffn == 10987  # 10986.5, rounded up
    with pytest.raises(UnsupportedModel, match="not cut out of"):
        sizes_alike(Sizes(1, 128, 512, 4, 2), target, large)
    with pytest.raises(UnsupportedModel, match=r"3 on 1 would be 9/2 on 1"):
        sizes_alike(Sizes(1, 256, 512, 3, 1), target, replace(large, heads=6, kv_heads=2))


def test_shapes_are_those_of_the_models_they_are_named_after(shipped: PreTrainedModel) -> None:
    assert named_sizes("7b", 128) == Sizes(32, 4096, 11008, 32, 32)
    assert named_sizes("7b", 64) == Sizes(32, 4096, 11008, 64, 64)
    assert named_sizes("1b", 64) == Sizes(22, 2048, 5632, 32, 4)
    for name in SHAPES:
        config = enlarged_config(shipped.config.to_dict(), named_sizes(name, 64))
        assert sizes_of(config) == named_sizes(name, 64)
    with pytest.raises(UnsupportedModel, match="no whole heads of 96"):
        named_sizes("7b", 96)
    with pytest.raises(UnsupportedModel, match="no shape is named '8b'"):
        named_sizes("8b", 64)


def test_only_what_further_layers_write_is_zero(families: dict[str, Tiny]) -> None:
    model = families["llama"](layers=2)
    assert zero_share(model) == 0
    assert zero_share(enlarge(model, Sizes(2, 64, 100, 8, 4))) == 0
    made = enlarge(model, Sizes(3, 64, 100, 8, 4))
    layer = made.model.layers[2]
    zeros = layer.self_attn.o_proj.weight.numel() + layer.mlp.down_proj.weight.numel()
    assert zero_share(made) == zeros / made.num_parameters()
    again = enlarge(model, Sizes(3, 64, 100, 8, 4))
    assert torch.equal(layer.mlp.up_proj.weight, again.model.layers[2].mlp.up_proj.weight)
    other = enlarge(model, Sizes(3, 64, 100, 8, 4), seed=1)
    assert not torch.equal(layer.mlp.up_proj.weight, other.model.layers[2].mlp.up_proj.weight)


def test_it_is_labelled(families: dict[str, Tiny]) -> None:
    model = families["llama"](layers=2)
    assert enlarged_from(model.config.to_dict()) is None
    once = enlarge(model, Sizes(3, 64, 100, 8, 4))
    said = enlarged_from(enlarge(once, Sizes(4, 128, 200, 16, 4)).config.to_dict())
    assert said is not None
    assert said.startswith("enlarged from 2 layers x 32 (FFN 48) to 4 x 128 (FFN 200)")


@pytest.mark.parametrize("family", sorted({"gpt2", "gpt_neox", "opt"}))
def test_other_families_are_refused(families: dict[str, Tiny], family: str) -> None:
    assert family not in FAMILIES
    with pytest.raises(UnsupportedModel, match=f"'{family}' cannot be enlarged; llama, mistral, qwen2, qwen3 can"):
        enlarge(families[family](layers=1), Sizes(2, 128, 512, 8, 8))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (Sizes(1, 64, 48, 8, 2), "layers 2 to 1"),
        (Sizes(2, 64, 47, 4, 1), "ffn 48 to 47, kv_heads 2 to 1"),
        (Sizes(2, 80, 48, 4, 2), "hidden size 80 is no multiple of 32"),
        (Sizes(2, 96, 48, 12, 8), "no equal groups"),
        (Sizes(2, 64, 48, 6, 2), "no multiple of 6 heads"),
        (Sizes(2, 64, 48, 3, 3), "heads 4 to 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(families: dict[str, Tiny], sizes: Sizes, words: str) -> None:
    model = families["llama"](layers=2)
    with pytest.raises(UnsupportedModel, match=words):
        enlarge(model, sizes)


def test_float16_is_refused(families: dict[str, Tiny]) -> None:
    with pytest.raises(UnsupportedModel, match="float16"):
        enlarge(families["llama"](layers=1, dtype=torch.float16), Sizes(1, 64, 48, 8, 4))


def test_it_is_made_on_the_device_asked_for(families: dict[str, Tiny]) -> None:
    model = families["llama"](layers=2, tie_word_embeddings=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        made = enlarge(model, Sizes(2, 4096, 11008, 512, 512), device="cuda:0")
        places = {tensor.device.type for tensor in (*made.parameters(), *made.buffers())}
    assert places == {"cuda"}
    assert made.lm_head.weight is made.model.embed_tokens.weight


def enlarge_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "docs/benchmarks/enlarge.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_the_script_writes_what_transformers_loads(tmp_path: Path) -> None:
    out = tmp_path / "large"
    done = enlarge_script(SHIPPED, out, "--hidden", 512, "--layers", 21, "--dtype", "float32", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert facts["parameters"] == loaded.num_parameters()
    assert facts["head_bytes"] == 2048 * 512 * 4
    small = load_model(SHIPPED, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(small), rtol=1e-3, atol=1e-3)
    assert (out / "tokenizer.json").read_bytes() == (SHIPPED / "tokenizer.json").read_bytes()
    again = enlarge_script(SHIPPED, out, "--hidden", 512)
    assert (again.returncode, again.stderr.strip()) == (2, f"{out} is there already: name a folder that is not")
