from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from factory.anatomy import anatomy_of, edited_config, shape_from_config
from factory.edit import Edit
from factory.errors import UnsupportedModel


def test_shape_counts_every_matrix_of_the_real_model(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny(layers=3)
    shape = shape_from_config(model.config.to_dict())
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert shape.layers == 3
    assert shape.parameters == matrices


def test_an_edit_cuts_the_layer_count_and_every_per_layer_list() -> None:
    config = {"model_type": "llama", "num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"], "hidden_size": 8}
    edited = edited_config(config, Edit(keep_layers=(0, 3)))
    assert edited == {**config, "num_hidden_layers": 2, "layer_types": ["a", "d"]}
    assert config["num_hidden_layers"] == 4


def test_what_is_not_supported_says_why() -> None:
    with pytest.raises(UnsupportedModel, match=r"'t5' is not supported; supported: gpt2, llama"):
        anatomy_of({"model_type": "t5"})
    with pytest.raises(UnsupportedModel, match="scale depends on its index"):
        anatomy_of({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True})
    with pytest.raises(UnsupportedModel, match="unquantised original"):
        anatomy_of({"model_type": "llama", "quantization_config": {"bits": 4}})
