"""A trained model made as large as a benchmark needs, without changing what it computes.

What a drafter is worth depends on acceptance, which needs trained weights, and on cost, which needs
a target of billions of them. An enlarged model has both: the acceptance of the small one, the bytes
and operations of the large. Its channels, heads and FFN channels are copies (`tensors.enlarging`),
its further layers random but for the two projections that write, which are zero.

What it does not know: head_dim stays, since attention divides by its root, and the root of 128 / 64
is no power of two; 64 heads of 64 read as many bytes as 32 of 128. Nor can a vocabulary be padded
(a row of zeros has the logit 0, not minus infinity): the head is as cheap as it was per channel.
Whatever is measured with such a model must be labelled with `enlarged_from`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from factory.anatomy.families import Anatomy, Config, anatomy_of, layer_types, shape_from_config
from factory.errors import UnsupportedModel
from factory.tensors.enlarging import Spread, in_turn, spread, spread_heads, weighted, widened

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
NOTE = "enlarged_from"  # the key of config.json that says so


@dataclass(frozen=True, slots=True)
class Sizes:
    """What an enlarged model is to have: layers, and widths in channels or heads."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int


# (layers, hidden, FFN, channels of all query heads, of all key heads) of models that people serve
SHAPES = {
    "7b": (32, 4096, 11008, 4096, 4096),  # Llama 2 7B
    "1b": (22, 2048, 5632, 2048, 256),  # TinyLlama 1.1B
    "tiny": (24, 512, 1376, 512, 256),  # for trying it out
}


def sizes_of(config: Config) -> Sizes:
    """A model's own sizes. Raises UnsupportedModel."""
    shape = shape_from_config(config)
    return Sizes(shape.layers, shape.hidden, shape.ffn, shape.heads, shape.kv_heads)


def named_sizes(name: str, head_dim: int) -> Sizes:
    """A shape of `SHAPES` in heads of that width. Raises UnsupportedModel."""
    if name not in SHAPES:
        raise UnsupportedModel(f"no shape is named {name!r}: say {', '.join(SHAPES)}, or give sizes")
    layers, hidden, ffn, query, kv = SHAPES[name]
    if query % head_dim or kv % head_dim:
        raise UnsupportedModel(f"the shape {name} has {query} and {kv} channels of heads: no whole heads of {head_dim}")
    return Sizes(layers, hidden, ffn, query // head_dim, kv // head_dim)


def sizes_alike(drafter: Sizes, target: Sizes, enlarged: Sizes) -> Sizes:
    """The sizes of a drafter that is enlarged as its target is: by the same factors in width, by none in depth.

    Without that the ratio of their costs is a fiction. Raises UnsupportedModel where a factor gives no
    whole number of heads.
    """
    if drafter.hidden != target.hidden:
        raise UnsupportedModel(
            f"a drafter of width {drafter.hidden} is not cut out of a target of width {target.hidden}: give its sizes"
        )
    heads = drafter.heads * Fraction(enlarged.heads, target.heads)
    kv_heads = drafter.kv_heads * Fraction(enlarged.kv_heads, target.kv_heads)
    if heads.denominator > 1 or kv_heads.denominator > 1 or heads % kv_heads:
        raise UnsupportedModel(
            f"the target's {target.heads} heads on {target.kv_heads} keys become {enlarged.heads} on "
            f"{enlarged.kv_heads}; so {drafter.heads} on {drafter.kv_heads} would be {heads} on {kv_heads}: give sizes"
        )
    ffn = math.ceil(drafter.ffn * Fraction(enlarged.ffn, target.ffn))
    return Sizes(drafter.layers, enlarged.hidden, ffn, int(heads), int(kv_heads))


def enlarge(model: PreTrainedModel, sizes: Sizes, device: str | None = None, seed: int = 0) -> PreTrainedModel:
    """A new model of those sizes that computes what `model` does, in its dtype, on that device (else on the model's).

    The large weights are made on the device: only the small model travels. Exact but for the order in
    which sums are rounded. `seed` draws the weights of further layers, which nothing depends on.
    Raises UnsupportedModel for other families, float16, quantised models, and sizes that do not fit.
    """
    config = model.config.to_dict()
    anatomy = _require(model, config)
    own = sizes_of(config)
    spreads = _spreads(own, sizes, shape_from_config(config).head_dim)
    where = torch.device(device) if device is not None else model.device
    spreads = {name: each.to(where) for name, each in spreads.items()}
    generator: torch.Generator | None = None
    if sizes.layers > own.layers:
        generator = torch.Generator(where).manual_seed(seed)
    deviation = float(config["initializer_range"])

    def weight(name: str, empty: torch.Tensor) -> torch.Tensor:
        layer = _layer_of(name, anatomy)
        if layer is None or layer < own.layers:
            return _enlarged(name, model.get_parameter(name).detach().to(where), spreads, anatomy)
        return _further(name, torch.empty_like(empty, device=where), anatomy, deviation, generator)

    with torch.no_grad():
        return _made(model, enlarged_config(config, sizes), weight, where)


def enlarged_config(config: Config, sizes: Sizes) -> Config:
    """The config of the enlarged model; `enlarged_from` in it says what it was made of."""
    own, shape = sizes_of(config), shape_from_config(config)
    made = {
        **config,
        "num_hidden_layers": sizes.layers,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ffn,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": shape.head_dim,
        NOTE: config.get(NOTE) or asdict(own),
    }
    kinds = layer_types(config)
    if kinds is not None:
        made["layer_types"] = kinds + kinds[-1:] * (sizes.layers - own.layers)
    return made


def enlarged_from(config: Config) -> str | None:
    """What must stand beside every figure of an enlarged model, as a phrase; None for any other model."""
    was = config.get(NOTE)
    if not was:
        return None
    layers, hidden, ffn = (config[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    return (
        f"enlarged from {was['layers']} layers x {was['hidden']} (FFN {was['ffn']}) to {layers} x {hidden} (FFN {ffn}) "
        "without changing what it says: the acceptance is the small model's, the cost the large one's"
    )


def zero_share(model: PreTrainedModel) -> float:
    """The share of the weights that are 0: products of those take less power, and may run faster."""
    zeros = sum(int((weight == 0).sum()) for weight in model.parameters())
    return zeros / int(sum(weight.numel() for weight in model.parameters()))


def _require(model: PreTrainedModel, config: Config) -> Anatomy:
    if config.get("model_type") not in FAMILIES:
        raise UnsupportedModel(
            f"model type {config.get('model_type')!r} cannot be enlarged; {', '.join(FAMILIES)} can: RMS norms, gated "
            "FFN, query, key and value each a projection"
        )
    shape_from_config(config)  # refuses quantised models
    if model.dtype == torch.float16:
        raise UnsupportedModel("float16 has too small exponents for exact shares: load the model in bfloat16 or wider")
    return anatomy_of(config)


def _spreads(own: Sizes, sizes: Sizes, head_dim: int) -> dict[str, Spread]:
    """How each width grows. Raises UnsupportedModel for what would shrink, or not come out exactly."""
    smaller = [name for name, size in asdict(own).items() if asdict(sizes)[name] < size]
    if smaller:
        told = ", ".join(f"{name} {asdict(own)[name]} to {asdict(sizes)[name]}" for name in smaller)
        raise UnsupportedModel(f"enlarging cannot shrink: {told}")
    if sizes.hidden % own.hidden:
        raise UnsupportedModel(
            f"hidden size {sizes.hidden} is no multiple of {own.hidden}: a norm's mean stays only where every channel "
            "has as many copies"
        )
    if sizes.hidden % sizes.heads:  # though head_dim is given; transformers would say so in many more words
        raise UnsupportedModel(
            f"hidden size {sizes.hidden} is no multiple of {sizes.heads} heads: transformers asks it"
        )
    try:
        queries, keys = spread_heads(own.heads, own.kv_heads, sizes.heads, sizes.kv_heads)
    except ValueError as error:
        raise UnsupportedModel(str(error)) from None
    return {
        "hidden": spread(in_turn(own.hidden, sizes.hidden)),
        "query": queries.channels(head_dim),
        "kv": keys.channels(head_dim),
        "ffn": spread(in_turn(own.ffn, sizes.ffn)),
    }


def _made(
    model: PreTrainedModel, config: Config, weight: Callable[[str, torch.Tensor], torch.Tensor], device: torch.device
) -> PreTrainedModel:
    """A model of that config with the weights that `weight` gives to each name; tied ones are asked for once."""
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(type(model.config).from_dict(config), dtype=model.dtype)
    given: dict[nn.Parameter, nn.Parameter] = {}
    for path, module in made.named_modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            if empty not in given:
                given[empty] = nn.Parameter(weight(f"{path}.{name}", empty), requires_grad=False)
            setattr(module, name, given[empty])
    base: Any = made.base_model
    with device:  # its rotation holds no weight, and heads are as wide as they were
        base.rotary_emb = type(base.rotary_emb)(made.config)
    made.generation_config = copy.deepcopy(model.generation_config)
    return made.eval()


def _layer_of(name: str, anatomy: Anatomy) -> int | None:
    return int(name[len(anatomy.layers) + 1 :].split(".", 1)[0]) if name.startswith(anatomy.layers + ".") else None


def _enlarged(name: str, weight: torch.Tensor, spreads: dict[str, Spread], anatomy: Anatomy) -> torch.Tensor:
    """A parameter of the small model as it is in the large one.

    A norm before a projection gives the shares to what all its readers read; the projections that read
    heads and FFN channels, which no norm stands before, hold the shares themselves.
    """
    module, kind = name.rsplit(".", 1)
    last = module.rsplit(".", 1)[-1]
    hidden = spreads["hidden"]
    if module == anatomy.final_norm or last in anatomy.norms:
        return weighted(widened(weight, hidden, None), hidden)
    if last in ("q_norm", "k_norm"):
        return weight.clone()  # of one head
    if module == anatomy.embedding or last == "lm_head":
        return widened(weight, None, hidden)
    written = {"q_proj": "query", "k_proj": "kv", "v_proj": "kv", "gate_proj": "ffn", "up_proj": "ffn"}.get(last)
    if written is not None:
        return widened(weight, spreads[written], hidden if kind == "weight" else None)
    read = spreads[{"o_proj": "query", "down_proj": "ffn"}[last]]
    if kind == "bias":
        return widened(weight, hidden, None)
    return weighted(widened(weight, hidden, read), read)


def _further(
    name: str, empty: torch.Tensor, anatomy: Anatomy, deviation: float, generator: torch.Generator | None
) -> torch.Tensor:
    """A parameter of a further layer: random, norms 1, and 0 where the layer writes into the residual stream."""
    inside = name[len(anatomy.layers) + 1 :].split(".", 1)[1]
    if inside.startswith((anatomy.attention_out, anatomy.ffn_out)):
        return empty.zero_()
    return empty.fill_(1.0) if "norm" in inside else empty.normal_(0.0, deviation, generator=generator)
