"""Where layers, heads and widths sit in each Hugging Face architecture: knowledge as data, in one place.

Reads config dictionaries only (no torch), so that forecasts need no weights. An architecture that
is not listed here raises UnsupportedModel: a wrong guess would build a drafter that loads and lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from factory.edit import Edit, Shape
from factory.errors import UnsupportedModel


@dataclass(frozen=True)
class Anatomy:
    """One architecture: module paths, and the config keys that must follow an edit."""

    layers: str  # prefix of the layer list in the state dict
    count_key: str  # the config key that holds the number of layers
    per_layer_keys: tuple[str, ...]  # config lists with one entry a layer
    fixed_keys: dict[str, str]  # Shape field -> config key
    ffn_matrices: int
    learned_positions: bool


ANATOMIES = {
    "llama": Anatomy(
        layers="model.layers",
        count_key="num_hidden_layers",
        per_layer_keys=("layer_types",),
        fixed_keys={"hidden": "hidden_size", "heads": "num_attention_heads", "positions": "max_position_embeddings"},
        ffn_matrices=3,
        learned_positions=False,
    ),
    "gpt2": Anatomy(
        layers="transformer.h",
        count_key="n_layer",
        per_layer_keys=(),
        fixed_keys={"hidden": "n_embd", "heads": "n_head", "positions": "n_positions"},
        ffn_matrices=2,
        learned_positions=True,
    ),
}

# Attention in every layer is scaled by the layer's own index here: dropping layers would change the ones that stay.
_GPT2_INDEX_SCALING = "scale_attn_by_inverse_layer_idx"


def anatomy_of(config: dict[str, Any]) -> Anatomy:
    """The anatomy for a config.json. Raises UnsupportedModel, naming what is supported."""
    model_type = config.get("model_type")
    if model_type not in ANATOMIES:
        supported = ", ".join(sorted(ANATOMIES))
        raise UnsupportedModel(f"model type {model_type!r} is not supported; supported: {supported}")
    if config.get(_GPT2_INDEX_SCALING):
        raise UnsupportedModel(
            f"config.json sets {_GPT2_INDEX_SCALING}: a layer's scale depends on its index, so no layer can be dropped"
        )
    if config.get("quantization_config"):
        raise UnsupportedModel("the target is quantised: make the drafter from its unquantised original")
    return ANATOMIES[model_type]


def shape_from_config(config: dict[str, Any]) -> Shape:
    """The Shape that a config.json describes. Raises UnsupportedModel, also where a key is missing."""
    anatomy = anatomy_of(config)
    try:
        return _shape(config, anatomy)
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModel(f"its config.json is not complete ({error!r})") from None


def _shape(config: dict[str, Any], anatomy: Anatomy) -> Shape:
    hidden = int(config[anatomy.fixed_keys["hidden"]])
    heads = int(config[anatomy.fixed_keys["heads"]])
    ffn = config.get("n_inner") or 4 * hidden if anatomy.learned_positions else config["intermediate_size"]
    vocabulary = int(config["vocab_size"])
    return Shape(
        layers=int(config[anatomy.count_key]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        ffn=int(ffn),
        ffn_matrices=anatomy.ffn_matrices,
        embedding_rows=vocabulary,
        head_rows=vocabulary,
        positions=int(config[anatomy.fixed_keys["positions"]]) if anatomy.learned_positions else 0,
        # transformers' own defaults where the file is silent
        tied=bool(config.get("tie_word_embeddings", anatomy.learned_positions)),
        bits=16.0 if config.get("dtype", config.get("torch_dtype")) in ("float16", "bfloat16") else 32.0,
    )


def edited_config(config: dict[str, Any], edit: Edit) -> dict[str, Any]:
    """The config of what stays: the layer count, and every list with one entry a layer."""
    anatomy = anatomy_of(config)
    if edit.keep_layers is None:
        return dict(config)
    edited = {**config, anatomy.count_key: len(edit.keep_layers)}
    for key in anatomy.per_layer_keys:
        if config.get(key):
            edited[key] = [config[key][layer] for layer in edit.keep_layers]
    return edited
