"""Where layers, heads and widths sit in each Hugging Face architecture: knowledge as data, in one place.

Reads config dictionaries only (no torch), so that forecasts need no weights. An architecture that
is not listed here raises UnsupportedModel: a wrong guess would build a drafter that loads and lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from factory.anatomy.shapes import Edit, Shape
from factory.errors import UnsupportedModel

Config = dict[str, Any]

TIED_HEAD_DIM = "transformers derives its head_dim as hidden size / heads, so a model with fewer heads cannot be loaded"
QWEN_WINDOW, QWEN_FULL_LAYERS = 4096, 28  # transformers' own, where a Qwen config that uses windows does not say
BITS = {"float16": 16.0, "bfloat16": 16.0, "float32": 32.0, "float64": 64.0}


@dataclass(frozen=True)
class Vectors:
    """How many biases and norm weights of each width one layer has; `final`: of the hidden width, after the layers."""

    hidden: int
    query: int = 0
    kv: int = 0  # key and value counted each
    head: int = 0
    ffn: int = 0
    final: int = 1


@dataclass(frozen=True)
class Anatomy:
    """One architecture: module paths, and the config keys that must follow an edit. Paths are relative to a layer."""

    layers: str  # prefix of the layer list in the state dict
    attention: str  # the attention module
    queries: str  # the projection that makes the queries
    attention_out: str  # the projection that takes the heads' outputs
    ffn: tuple[str, ...]  # the projections that make the FFN's channels; the last one is a root of the coupling
    ffn_out: str  # the projection that takes them
    norms: tuple[str, str]  # the norms before attention and before the FFN
    final_norm: str  # from the model, as the tables
    embedding: str
    vectors: Callable[[Config], Vectors]
    position_table: str | None = None  # learned positions; None: rotary
    count_key: str = "num_hidden_layers"
    hidden_key: str = "hidden_size"
    heads_key: str = "num_attention_heads"
    ffn_key: str = "intermediate_size"
    context_key: str = "max_position_embeddings"
    position_rows: int | None = None  # rows of a learned position table beyond the context; None: rotary
    tied_by_default: bool = False  # transformers' own default where config.json is silent
    why_no_heads: str | None = None  # why attention heads cannot be removed
    why_gptqmodel: str | None = None  # why a quantised folder loads through gptqmodel only

    @property
    def prefix(self) -> str:
        """The base model's name, which some checkpoints on the Hub leave out: `transformer`, `model`."""
        return self.layers.split(".", 1)[0]

    @property
    def fused_qkv(self) -> bool:
        """Query, key and value are one matrix."""
        return "q_proj" not in self.queries


def _llama_vectors(config: Config) -> Vectors:
    attention, ffn = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    return Vectors(hidden=2 + attention + ffn, query=attention, kv=2 * attention, ffn=2 * ffn)


def _qwen3_vectors(config: Config) -> Vectors:
    attention = bool(config.get("attention_bias"))
    return Vectors(hidden=2 + attention, query=attention, kv=2 * attention, head=2)


def _gpt_neox_vectors(config: Config) -> Vectors:
    attention = bool(config.get("attention_bias", True))
    return Vectors(hidden=5 + attention, query=attention, kv=2 * attention, ffn=1, final=2)


def _opt_vectors(config: Config) -> Vectors:
    bias = bool(config.get("enable_bias", True))
    norm = 2 * bool(config.get("layer_norm_elementwise_affine", True))
    final = norm if config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm") else 0
    return Vectors(hidden=2 * norm + 2 * bias, query=bias, kv=2 * bias, ffn=bias, final=final)


def _llama_like(vectors: Callable[[Config], Vectors]) -> Anatomy:
    return Anatomy(
        layers="model.layers",
        attention="self_attn",
        queries="self_attn.q_proj",
        attention_out="self_attn.o_proj",
        ffn=("mlp.gate_proj", "mlp.up_proj"),
        ffn_out="mlp.down_proj",
        norms=("input_layernorm", "post_attention_layernorm"),
        final_norm="model.norm",
        embedding="model.embed_tokens",
        vectors=vectors,
    )


ANATOMIES = {
    "llama": _llama_like(_llama_vectors),
    "mistral": _llama_like(lambda config: Vectors(hidden=2)),
    "qwen2": _llama_like(lambda config: Vectors(hidden=2, query=1, kv=2)),
    "qwen3": _llama_like(_qwen3_vectors),
    "gpt2": Anatomy(
        layers="transformer.h",
        attention="attn",
        queries="attn.c_attn",
        attention_out="attn.c_proj",
        ffn=("mlp.c_fc",),
        ffn_out="mlp.c_proj",
        norms=("ln_1", "ln_2"),
        final_norm="transformer.ln_f",
        embedding="transformer.wte",
        position_table="transformer.wpe",
        vectors=lambda config: Vectors(hidden=6, query=1, kv=2, ffn=1, final=2),
        count_key="n_layer",
        hidden_key="n_embd",
        heads_key="n_head",
        ffn_key="n_inner",
        context_key="n_positions",
        position_rows=0,
        tied_by_default=True,
        why_no_heads=TIED_HEAD_DIM,
        why_gptqmodel="transformers builds GPT-2 out of Conv1D modules, which its GPTQ loader does not replace",
    ),
    "gpt_neox": Anatomy(
        layers="gpt_neox.layers",
        attention="attention",
        queries="attention.query_key_value",
        attention_out="attention.dense",
        ffn=("mlp.dense_h_to_4h",),
        ffn_out="mlp.dense_4h_to_h",
        norms=("input_layernorm", "post_attention_layernorm"),
        final_norm="gpt_neox.final_layer_norm",
        embedding="gpt_neox.embed_in",
        vectors=_gpt_neox_vectors,
        why_no_heads=TIED_HEAD_DIM,
    ),
    "opt": Anatomy(
        layers="model.decoder.layers",
        attention="self_attn",
        queries="self_attn.q_proj",
        attention_out="self_attn.out_proj",
        ffn=("fc1",),
        ffn_out="fc2",
        norms=("self_attn_layer_norm", "final_layer_norm"),
        final_norm="model.decoder.final_layer_norm",
        embedding="model.decoder.embed_tokens",
        position_table="model.decoder.embed_positions",
        vectors=_opt_vectors,
        ffn_key="ffn_dim",
        position_rows=2,  # OPT's table begins at position 2
        tied_by_default=True,
        why_no_heads=TIED_HEAD_DIM,
    ),
}


def anatomy_of(config: Config) -> Anatomy:
    """The anatomy for a config.json. Raises UnsupportedModel, naming what is supported."""
    model_type = config.get("model_type")
    if model_type not in ANATOMIES:
        supported = ", ".join(sorted(ANATOMIES))
        raise UnsupportedModel(f"model type {model_type!r} is not supported; supported: {supported}")
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise UnsupportedModel(
            "config.json sets scale_attn_by_inverse_layer_idx: a layer's scale depends on its index, "
            "so no layer can be dropped"
        )
    if config.get("word_embed_proj_dim") not in (None, config.get("hidden_size")):
        raise UnsupportedModel(
            "config.json sets word_embed_proj_dim: its embeddings have another width than its layers (opt-350m), "
            "which no stage knows"
        )
    return ANATOMIES[model_type]


def stored_dtype(config: Config) -> str:
    """What the weights are stored in; transformers' own default where the file is silent."""
    return str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")


def stored_as(config: Config, dtype: str) -> Config:
    """The config of a copy stored in that dtype; `auto` keeps the checkpoint's own."""
    known = {key: value for key, value in config.items() if key != "torch_dtype"}
    return {**known, "dtype": stored_dtype(config) if dtype == "auto" else dtype}


def shape_from_config(config: Config) -> Shape:
    """The Shape that a config.json describes. Raises UnsupportedModel, also where a key is missing."""
    anatomy = anatomy_of(config)
    if config.get("quantization_config"):
        raise UnsupportedModel("the target is quantised: make the drafter from its unquantised original")
    try:
        return _shape(config, anatomy)
    except KeyError as error:
        raise UnsupportedModel(f"its config.json is not complete: {error.args[0]} is missing; copy it again") from None
    except (TypeError, ValueError, ArithmeticError):
        raise UnsupportedModel("its config.json holds sizes that are no whole numbers above 0; copy it again") from None


def _shape(config: Config, anatomy: Anatomy) -> Shape:
    hidden, heads = int(config[anatomy.hidden_key]), int(config[anatomy.heads_key])
    ffn = config.get("n_inner") or 4 * hidden if anatomy.ffn_key == "n_inner" else config[anatomy.ffn_key]
    vocabulary, context = int(config["vocab_size"]), int(config[anatomy.context_key])
    vectors = anatomy.vectors(config)
    bits = BITS[stored_dtype(config)]
    return Shape(
        layers=int(config[anatomy.count_key]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        ffn=int(ffn),
        ffn_matrices=len(anatomy.ffn) + 1,
        fused_qkv=anatomy.fused_qkv,
        embedding_rows=vocabulary,
        head_rows=vocabulary,
        positions=0 if anatomy.position_rows is None else context + anatomy.position_rows,
        context=context,
        tied=bool(config.get("tie_word_embeddings", anatomy.tied_by_default)),
        hidden_vectors=int(vectors.hidden),
        query_vectors=int(vectors.query),
        kv_vectors=int(vectors.kv),
        head_vectors=int(vectors.head),
        ffn_vectors=int(vectors.ffn),
        final_vectors=int(vectors.final),
        bits=bits,
        table_bits=bits,
    )


def edited_config(config: Config, edit: Edit) -> Config:
    """The config of what stays: the layer count, every list with one entry a layer, and the widths."""
    anatomy, shape = anatomy_of(config), shape_from_config(config)
    edited = dict(config)
    if edit.keep_layers is not None:
        edited[anatomy.count_key] = len(edit.keep_layers)
        kinds = layer_types(config)
        if kinds is not None:
            edited["layer_types"] = [kinds[layer] for layer in edit.keep_layers]
        if config.get("max_window_layers") is not None:
            edited["max_window_layers"] = sum(layer < config["max_window_layers"] for layer in edit.keep_layers)
    if edit.keep_ffn is not None:
        edited[anatomy.ffn_key] = len(edit.keep_ffn[0])
    if edit.keep_heads is not None and edit.keep_kv_heads is not None:
        if anatomy.why_no_heads:
            raise UnsupportedModel(f"{config['model_type']}: {anatomy.why_no_heads}")
        edited[anatomy.heads_key] = len(edit.keep_heads[0])
        edited["num_key_value_heads"] = len(edit.keep_kv_heads[0])
        edited["head_dim"] = shape.head_dim  # else it would be taken for hidden size / heads
    return edited


def layer_types(config: Config) -> list[str] | None:
    """The kind of attention of each layer where the config has one for each; None where all are alike.

    Older files of Qwen name no `layer_types`: there the layers from `max_window_layers` on have a window.
    """
    if config.get("layer_types"):
        return list(config["layer_types"])
    if config.get("use_sliding_window") and config.get("sliding_window", QWEN_WINDOW):
        first = int(config.get("max_window_layers", QWEN_FULL_LAYERS))
        count = int(config["num_hidden_layers"])
        return ["sliding_attention" if layer >= first else "full_attention" for layer in range(count)]
    return None
