"""The project's own forward pass against transformers' modules: every family, in float64, through ragged rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from factory.decoding import compiled
from factory.decoding.compiled import CompiledReader, why_no_compiler
from factory.decoding.decoder import Limits, autoregressive, speculative
from factory.decoding.drafters import ModelDrafter
from factory.decoding.eager import EagerReader
from factory.decoding.lean import LeanReader
from factory.decoding.reader import Reader
from factory.decoding.sampling import Noise, Sampling
from factory.decoding.wiring import network_of, why_not
from factory.errors import UnsupportedModel

IDS = torch.randint(3, 90, (3, 48), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def script(reader: Reader) -> torch.Tensor:
    """Logits of a prompt, single tokens, ragged runs, rewinds, rows that leave: all that decoding does to a reader."""
    reader.start(3, 20)
    found = [reader.feed(IDS[:, :7]), reader.feed(IDS[:, 7:8])]
    ragged = reader.feed(IDS[:, 8:13], [1, 3, 5])
    found += [ragged[0, :1], ragged[1, :3], ragged[2, :5]]
    found += [reader.feed(IDS[:, 13:14]), reader.feed(IDS[:, 14:18])]
    reader.rewind([8, 9, 10])
    found.append(reader.feed(IDS[:, 18:30]))  # past the window of those that have one, and past the capacity
    reader.select([2, 0])
    found += [reader.feed(IDS[:2, 30:31]), reader.feed_last(IDS[:2, 31:35]), reader.feed_last(IDS[:2, 35:38], [3, 1])]
    return torch.cat([logits.flatten() for logits in found])


CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"num_key_value_heads": 4, "hidden_act": "quick_gelu"}),
    ("qwen3", {"attention_bias": True}),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    ("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}),
    ("gpt2", {"activation_function": "relu", "n_inner": 48, "scale_attn_weights": False}),
    ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": True, "activation_function": "gelu"}),
]


def same(model: PreTrainedModel) -> None:
    before = script(EagerReader(model))
    ours = script(LeanReader(model))
    # GPT-NeoX and GPT-2 lay their projections out in another order, so sums round otherwise
    torch.testing.assert_close(ours, before, rtol=0, atol=1e-11)
    torch.testing.assert_close(script(EagerReader(model)), before, rtol=0, atol=0)  # the model computes what it did


def test_every_family_computes_what_transformers_does(tiny: Callable[..., PreTrainedModel]) -> None:
    same(tiny(layers=3, seed=1))


@pytest.mark.parametrize(("family", "changes"), CONFIGS, ids=lambda value: str(value) if isinstance(value, str) else "")
def test_options_of_a_family(
    families: dict[str, Callable[..., PreTrainedModel]], family: str, changes: dict[str, Any]
) -> None:
    same(families[family](layers=2, seed=2, **changes))


@pytest.mark.slow
@pytest.mark.skipif(why_no_compiler() is not None, reason=str(why_no_compiler()))
# A mask for each kind of layer, and norms that are float32 in every dtype; learned positions, and no such norms.
@pytest.mark.parametrize(("family", "rounding"), [("qwen2", 1e-4), ("gpt2", 1e-11)])
def test_compiled_passes_compute_the_same(
    families: dict[str, Callable[..., PreTrainedModel]], family: str, rounding: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "WIDTHS", (1, 5))  # what the script reads, and few compilations
    model = families[family](layers=2, seed=1)
    reader = CompiledReader(model)
    torch.testing.assert_close(script(reader), script(EagerReader(model)), rtol=0, atol=rounding)
    compilations = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    script(reader)
    with torch.inference_mode():
        reader.start(3, 90)  # another capacity
        reader.feed(IDS[:, :30])
        reader.feed(IDS[:, 30:34])
        reader.start(9, 60)  # a batch that is left to the lean pass
        many = IDS[:1, :30].expand(9, 30)
        large = (reader.feed(many), reader.feed(many[:, :4]), reader.feed(many[:, :1]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compilations
    assert compilations > 0
    assert [logits.shape[:2] for logits in large] == [(9, 30), (9, 4), (9, 1)]


def test_a_reference_with_one_fault_is_told_apart(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    model = families["llama"](layers=2)
    right = script(LeanReader(model))
    model.model.layers[1].mlp.gate_proj.weight.data[0, 0] += 1e-6
    assert float((script(EagerReader(model)) - right).abs().max()) > 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_differ_by_their_rounding_only(tiny: Callable[..., PreTrainedModel], dtype: torch.dtype) -> None:
    model = tiny(layers=2, dtype=dtype, initializer_range=0.02, init_std=0.02)
    a, b = script(EagerReader(model)).double(), script(LeanReader(model)).double()
    assert float((a - b).abs().max()) < (1e-5 if dtype == torch.float32 else 0.05) * float(a.abs().max())


def test_greedy_text_in_ragged_batches_is_that_of_uncached_passes(
    target: PreTrainedModel, reference: Callable[..., list[int]], noisy: Callable[..., PreTrainedModel]
) -> None:
    prompts = [[1, 5, 9], [1, 7], [1, 11, 12, 13, 14, 15, 16, 17], [1, 20]]
    limits, noise = Limits(24, frozenset(), 160), Noise(0, range(4))
    expected = [reference(target, prompt, 24) for prompt in prompts]
    reader, drafter = LeanReader(target), ModelDrafter(LeanReader(noisy(target)))
    assert [one.tokens for one in autoregressive(reader, prompts, Sampling(), limits, noise)] == expected
    drafted = speculative(reader, drafter, prompts, 4, Sampling(), limits, noise)
    assert [one.tokens for one in drafted] == expected
    assert 0 < sum(sum(one.accepted) for one in drafted) < sum(sum(one.proposed) for one in drafted)


def test_weights_are_shared_with_the_model(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    model = families["llama"](layers=2)
    network_of(model)
    attention = model.model.layers[0].self_attn
    size = attention.q_proj.weight.numel() * attention.q_proj.weight.element_size()
    assert attention.k_proj.weight.data_ptr() == attention.q_proj.weight.data_ptr() + size


def test_other_models_are_refused_by_reason(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    opt = families["opt"](layers=1, do_layer_norm_before=False)
    assert "norms stand after" in str(why_not(opt))
    with pytest.raises(UnsupportedModel, match="norms stand after"):
        LeanReader(opt)
    replaced = families["llama"](layers=1)
    replaced.model.layers[0].mlp.down_proj = torch.nn.Sequential(replaced.model.layers[0].mlp.down_proj)
    assert "Sequential" in str(why_not(replaced))
