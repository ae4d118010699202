"""A device and a model whose costs can be reckoned by hand."""

from factory.anatomy.families import shape_from_config
from factory.anatomy.shapes import Shape
from factory.forecasting.profile import DeviceProfile

# A device of round figures: reading 1000 bytes/s, 10,000 FLOP/s, 0.5 s of host time a layer.
DEVICE = DeviceProfile("round", "cuda", False, "this test", 10**9, None, 1e3, {"float32": 1e4, "bfloat16": 1e4})


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
