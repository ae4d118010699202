"""A Network out of a transformers model: which of its tensors is what, by the model's anatomy.

Projections that read the same input become one product. Their weights are laid side by side once,
and the model's own parameters become views of that: nothing is held twice, and the model still
computes what it did. Quantised projections stay the modules that their kernels are loaded as: each one multiplies
by itself, and their results are laid side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from factory.anatomy.families import Anatomy, anatomy_of
from factory.decoding.network import Layer, Network, Pointwise, Product, RootMeanSquare, Rotary
from factory.errors import UnsupportedModel
from factory.models.quantized import is_kernel

Linear = tuple[torch.Tensor, torch.Tensor | None]  # weight [out, in], bias [out]
# Makes the products of all layers at once, so that it can compare kernels on weights of one shape.
ProductMaker = Callable[[Sequence[Linear]], Sequence[Product]]

_FULL = "full_attention"
_KNOWN = (nn.Linear, Conv1D)  # a class derived from one of these may hold its weights in another way (bitsandbytes)


def plain_products(linears: Sequence[Linear]) -> list[Product]:
    """torch's own product."""
    return [_plain(weight, bias) for weight, bias in linears]


def _plain(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    return lambda x, _rows: F.linear(x, weight, bias)


def why_not(model: PreTrainedModel) -> str | None:
    """Why no Network can be made of the model; None where one can."""
    config = model.config
    try:
        anatomy = anatomy_of(config.to_dict())
    except UnsupportedModel as error:
        return str(error)
    if not getattr(config, "do_layer_norm_before", True) or getattr(config, "_remove_final_layer_norm", False):
        return "its norms stand after attention and FFN"
    if getattr(config, "add_cross_attention", False):
        return "it has cross-attention"
    layers: Any = model.get_submodule(anatomy.layers)
    modules = [layer.get_submodule(path) for layer in layers for path in _projections(anatomy)]
    other = {type(module).__name__ for module in modules if not (type(module) in _KNOWN or is_kernel(module))}
    return f"its projections are of {', '.join(sorted(other))}" if other else None


def why_no_tracing(model: PreTrainedModel) -> str | None:
    """Why no compiler can trace the model's Network; None where one can."""
    if any(is_kernel(module) for module in model.modules()):
        return "its quantised weights are multiplied by gptqmodel's kernels, which are not compiled"
    return None


def network_of(model: PreTrainedModel, make: ProductMaker = plain_products) -> Network:
    """The model as a Network on the same weights. Raises UnsupportedModel, as `why_not` says."""
    reason = why_not(model)
    if reason:
        raise UnsupportedModel(f"{model.config.model_type}: {reason}")
    config = model.config
    anatomy = anatomy_of(config.to_dict())
    layers: list[nn.Module] = list(model.get_submodule(anatomy.layers))
    kv_heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    heads = int(config.num_attention_heads)
    parts: list[Linear | Product] = []
    for layer in layers:
        qkv = _part([layer.get_submodule(path) for path in _queries(anatomy)])
        parts.append(_by_kind(qkv, heads) if config.model_type == "gpt_neox" else qkv)
        parts.append(_part([layer.get_submodule(anatomy.attention_out)]))
        parts.append(_part([layer.get_submodule(path) for path in anatomy.ffn]))
        parts.append(_part([layer.get_submodule(anatomy.ffn_out)]))
    parts.append(_part([model.get_output_embeddings()]))
    made = iter(make([part for part in parts if isinstance(part, tuple)]))
    products = iter([next(made) if isinstance(part, tuple) else part for part in parts])
    kinds = getattr(config, "layer_types", None) or [_FULL] * len(layers)
    wired = tuple(_layer(layer, anatomy, products, kind) for layer, kind in zip(layers, kinds, strict=True))
    attention: Any = layers[0].get_submodule(anatomy.attention)
    table = None
    if anatomy.position_table is not None:
        table = model.get_submodule(anatomy.position_table).weight[anatomy.position_rows :]
    return Network(
        embedding=model.get_submodule(anatomy.embedding).weight,
        position_table=table,
        layers=wired,
        final_norm=_norm(model.get_submodule(anatomy.final_norm)),
        head=next(products),
        heads=heads,
        kv_heads=kv_heads,
        width=_inputs(layers[0].get_submodule(anatomy.attention_out)) // heads,
        scale=float(attention.scaling),
        activation=_activation(getattr(config, "hidden_act", None) or config.activation_function),
        gated=len(anatomy.ffn) == 2,
        parallel=bool(getattr(config, "use_parallel_residual", False)),
        traceable=why_no_tracing(model) is None,
    )


def rotary_of(model: PreTrainedModel, width: int, positions: int) -> Rotary | None:
    """The model's own rotation of its first `positions` positions, for heads of that width; None where it has none."""
    anatomy = anatomy_of(model.config.to_dict())
    if anatomy.position_table is not None:
        return None
    base: Any = model.get_submodule(anatomy.prefix)
    like = torch.zeros(1, dtype=model.dtype, device=model.device)
    cos, sin = (table[0] for table in base.rotary_emb(like, torch.arange(positions, device=model.device).unsqueeze(0)))
    rotated = cos.shape[-1]
    sign = torch.ones(rotated, dtype=model.dtype, device=model.device)
    sign[: rotated // 2] = -1
    return Rotary(F.pad(cos, (0, width - rotated), value=1.0), F.pad(sin * sign, (0, width - rotated)), rotated)


def _queries(anatomy: Anatomy) -> list[str]:
    if anatomy.fused_qkv:
        return [anatomy.queries]
    return [f"{anatomy.attention}.{name}" for name in ("q_proj", "k_proj", "v_proj")]


def _projections(anatomy: Anatomy) -> list[str]:
    return [*_queries(anatomy), anatomy.attention_out, *anatomy.ffn, anatomy.ffn_out]


def _layer(layer: nn.Module, anatomy: Anatomy, products: Iterator[Product], kind: str) -> Layer:
    attention: Any = layer.get_submodule(anatomy.attention)
    return Layer(
        attention_norm=_norm(layer.get_submodule(anatomy.norms[0])),
        qkv=next(products),
        query_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        attention_out=next(products),
        ffn_norm=_norm(layer.get_submodule(anatomy.norms[1])),
        ffn=next(products),
        ffn_out=next(products),
        kind=kind,
    )


def _part(modules: Sequence[nn.Module]) -> Linear | Product:
    """One weight for all of them, or, where one is quantised, their own products side by side."""
    if not any(is_kernel(module) for module in modules):
        return _joined(modules)
    if len(modules) == 1:
        only: Callable[[torch.Tensor], torch.Tensor] = modules[0]
        return lambda x, _rows: only(x)
    return lambda x, _rows: torch.cat([module(x) for module in modules], dim=-1)


def _inputs(module: Any) -> int:
    """Channels that a projection reads."""
    return int(module.in_features if hasattr(module, "in_features") else module.weight.shape[0])


def _joined(modules: Sequence[nn.Module]) -> Linear:
    """One weight [out, in] for all of them; where there are several, their own parameters become views of it."""
    if len(modules) == 1:
        module: Any = modules[0]
        weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
        return weight, module.bias
    joined: list[torch.Tensor | None] = []
    for name in ("weight", "bias"):
        parts = [getattr(module, name) for module in modules]
        if parts[0] is None:
            joined.append(None)
            continue
        whole = torch.cat([part.data for part in parts])
        for part, view in zip(parts, torch.split(whole, [len(part) for part in parts]), strict=True):
            part.data = view
        joined.append(whole)
    weight = joined[0]
    assert weight is not None
    return weight, joined[1]


def _by_kind(qkv: Linear | Product, heads: int) -> Linear | Product:
    """Queries, keys, values in that order, of a projection that has those three head by head (GPT-NeoX)."""
    if not isinstance(qkv, tuple):

        def product(x: torch.Tensor, rows: int) -> torch.Tensor:
            found = qkv(x, rows)
            return found.view(*found.shape[:-1], heads, 3, -1).transpose(-3, -2).reshape(found.shape)

        return product
    weight, bias = qkv
    order = torch.arange(len(weight), device=weight.device).view(heads, 3, -1).transpose(0, 1).reshape(-1)
    return weight[order], None if bias is None else bias[order]


def _norm(module: Any) -> Pointwise:
    """What the norm module computes."""
    if isinstance(module, nn.LayerNorm):
        shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
        return lambda x: F.layer_norm(x, shape, weight, bias, eps)
    weight, eps = module.weight, float(module.variance_epsilon)
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        return RootMeanSquare(weight, eps)
    # x w / sqrt(|x|^2 / D + eps) in four operations: half the time of torch's own on a CPU at few rows
    channels = weight.numel()
    scaled = weight * math.sqrt(channels)
    floor = torch.tensor(math.sqrt(channels * eps), dtype=weight.dtype, device=weight.device)
    norm, hypot = torch.linalg.vector_norm, torch.hypot
    return lambda x: (x * scaled).div_(hypot(norm(x, 2, -1, True), floor))


def _activation(name: str) -> Pointwise:
    """torch's own function where it computes the same, else transformers' module."""
    if name in ("silu", "swish"):
        return F.silu
    if name == "relu":
        return torch.relu
    if name == "gelu":
        return F.gelu
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        return lambda x: F.gelu(x, approximate="tanh")
    module: Pointwise = ACT2FN[name]
    return module
