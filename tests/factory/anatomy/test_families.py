from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoConfig, PreTrainedModel

from factory.anatomy.families import anatomy_of, edited_config, shape_from_config, stored_as
from factory.anatomy.shapes import Edit
from factory.errors import UnsupportedModel


def test_the_shape_counts_every_weight_of_the_real_model(tiny: Callable[..., PreTrainedModel]) -> None:
    for tied in (False, True):
        model = tiny(layers=3, tie_word_embeddings=tied)
        shape = shape_from_config(model.config.to_dict())
        assert (shape.layers, shape.tied) == (3, tied)
        assert shape.parameters == model.num_parameters()
        assert shape.weight_bytes == model.num_parameters() * 4


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"attention_bias": True}),
        ("gpt_neox", {"attention_bias": False}),
        ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
        ("opt", {"do_layer_norm_before": False}),
        ("gpt2", {"n_inner": 40}),
    ],
)
def test_options_that_change_what_there_is_are_counted(
    family: str, changes: dict[str, Any], families: dict[str, Callable[..., PreTrainedModel]]
) -> None:
    model = families[family](layers=2, **changes)
    assert shape_from_config(model.config.to_dict()).parameters == model.num_parameters()


def test_stored_dtype() -> None:
    assert stored_as({"torch_dtype": "bfloat16"}, "auto") == {"dtype": "bfloat16"}
    assert stored_as({"dtype": "bfloat16"}, "float32") == {"dtype": "float32"}
    assert stored_as({}, "auto") == {"dtype": "float32"}


def test_layers_with_a_window_keep_it_when_others_go() -> None:
    """An older Qwen config names no layer_types: where the window begins must follow the layers that stay."""
    old = {
        **{"model_type": "qwen2", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 6},
        **{"num_attention_heads": 2, "max_position_embeddings": 8},
        **{"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    }
    edited = edited_config(old, Edit(keep_layers=(1, 3, 5)))
    assert edited["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention"]
    assert (edited["num_hidden_layers"], edited["max_window_layers"]) == (3, 1)


@pytest.mark.parametrize("silent", ["max_window_layers", "sliding_window"])
def test_where_a_config_is_silent_about_windows_transformers_decides(silent: str) -> None:
    config: dict[str, Any] = {
        **{"model_type": "qwen2", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 30},
        **{"num_attention_heads": 2, "max_position_embeddings": 8},
        **{"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    }
    del config[silent]
    theirs = AutoConfig.for_model(**config).layer_types
    assert len(set(theirs)) == 2
    assert edited_config(config, Edit(keep_layers=(0, 5, 29)))["layer_types"] == [theirs[i] for i in (0, 5, 29)]


def test_an_edit_cuts_the_layer_count_and_every_per_layer_list() -> None:
    config: dict[str, Any] = {
        **{"model_type": "llama", "num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"], "hidden_size": 8},
        **{"vocab_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "max_position_embeddings": 8},
    }
    edited = edited_config(config, Edit(keep_layers=(0, 3)))
    assert edited == {**config, "num_hidden_layers": 2, "layer_types": ["a", "d"]}
    assert config["num_hidden_layers"] == 4


def test_what_is_not_supported_says_why() -> None:
    with pytest.raises(
        UnsupportedModel, match=r"'t5' is not supported; supported: gpt2, gpt_neox, llama, mistral, opt, qwen2, qwen3"
    ):
        anatomy_of({"model_type": "t5"})
    with pytest.raises(UnsupportedModel, match="scale depends on its index"):
        anatomy_of({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True})
    with pytest.raises(UnsupportedModel, match="unquantised original"):
        shape_from_config({"model_type": "llama", "quantization_config": {"bits": 4}})
    with pytest.raises(UnsupportedModel, match="opt-350m"):
        anatomy_of({"model_type": "opt", "hidden_size": 8, "word_embed_proj_dim": 4})
