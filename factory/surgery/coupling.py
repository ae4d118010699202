"""Which tensors lose rows or columns together when an FFN channel or an attention head goes.

Found, not listed: torch-pruning's dependency graph (DepGraph, arXiv 2301.12900) is traced through one
block of a miniature of the architecture, a few dozen wide. Only which tensor and which axis is taken
from it; that holds for every size. The graph is built per block because the whole model does not
trace everywhere (GPT-2, GPT-NeoX) and because the rotation of queries and keys, which mixes channels
within a head only, makes the search for a group's members take minutes: it stands aside while the
attention is traced.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from factory.anatomy.families import ANATOMIES, Anatomy, shape_from_config
from factory.anatomy.shapes import Shape
from factory.errors import FactoryError
from factory.tensors.surgery import Coupling, Role

# All widths differ, so that a coupled axis tells by its length what it counts.
_HEADS, _KV_HEADS, _HEAD_DIM, _HIDDEN, _FFN = 4, 2, 8, 40, 56
_ROTATION = "apply_rotary_pos_emb"


@cache
def coupling(model_type: str, *, heads: bool) -> Coupling:
    """Tensor name within a layer -> (axis, what the axis counts), for FFN channels and, if `heads`, attention heads.

    Optional biases are traced as present: a checkpoint without them has no such name to look up.
    Raises FactoryError where torch-pruning is not installed.
    """
    anatomy = ANATOMIES[model_type]
    model = _miniature(model_type, anatomy)
    layer = model.get_submodule(anatomy.layers)[0]
    shape = shape_from_config(model.config.to_dict())
    found = _traced(layer, _parent(anatomy.ffn_out), anatomy.ffn[-1], shape, {})
    if heads:
        inputs = torch.zeros(1, 4, _HIDDEN)
        rotation = model.get_submodule(anatomy.prefix).rotary_emb(inputs, torch.arange(4).unsqueeze(0))
        given = {"position_embeddings": rotation, "attention_mask": None}
        with _unrotated(type(model).__module__):
            found |= _traced(layer, anatomy.attention, anatomy.queries, shape, given)
    return found


def _miniature(model_type: str, anatomy: Anatomy) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 8,
        anatomy.count_key: 1,
        anatomy.hidden_key: _HIDDEN,
        anatomy.heads_key: _HEADS,
        anatomy.ffn_key: _FFN,
        anatomy.context_key: 16,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if anatomy.why_no_heads is None:
        sizes |= {"num_key_value_heads": _KV_HEADS, "head_dim": _HEAD_DIM}
    sizes |= {key: True for key in ("attention_bias", "mlp_bias") if hasattr(AutoConfig.for_model(model_type), key)}
    with torch.random.fork_rng(devices=[]):  # its random weights must not move the caller's randomness
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes), dtype=torch.float32).eval()


def _traced(layer: nn.Module, block: str, root: str, shape: Shape, given: dict[str, Any]) -> Coupling:
    """The group that the root's first output channel belongs to."""
    try:
        import torch_pruning
    except ImportError as error:
        raise FactoryError("prune_width needs torch-pruning: pip install 'torch-pruning>=1.6'") from error
    traced = copy.deepcopy(layer.get_submodule(block))
    transposed = _linear_everywhere(traced)
    names = {module: name for name, module in traced.named_modules()}
    inside = root.removeprefix(f"{block}.") if block else root
    graph = torch_pruning.DependencyGraph().build_dependency(
        traced,
        example_inputs=torch.zeros(1, 4, _HIDDEN, requires_grad=True),
        forward_fn=lambda module, inputs: _first(module(inputs, **given)),
        verbose=False,
    )
    pruner = graph.get_pruner_of_module(traced.get_submodule(inside))
    group = graph.get_pruning_group(traced.get_submodule(inside), pruner.prune_out_channels, idxs=[0])
    found: Coupling = {}
    for dependency, _ in group:
        module = dependency.target.module
        if module not in names or not isinstance(module, nn.Linear):
            continue  # elementwise operations, and norms within a head, which keep their width
        path = ".".join(part for part in (block, names[module]) if part)
        out = dependency.handler.__name__ == "prune_out_channels"
        role = _role(module.out_features if out else module.in_features, shape)
        found[f"{path}.weight"] = (int(out == (names[module] in transposed)), role)
        if out and module.bias is not None:
            found[f"{path}.bias"] = (0, role)
    return found


def _role(width: int, shape: Shape) -> Role:
    roles: dict[int, Role] = {shape.ffn: "ffn", shape.query_width: "query", shape.kv_width: "kv"}
    return roles[width]


def _linear_everywhere(block: nn.Module) -> set[str]:
    """Replace GPT-2's Conv1D, a linear layer stored transposed, which the graph does not know; returns where."""
    found = {name: module for name, module in block.named_modules() if isinstance(module, Conv1D)}
    for name, module in found.items():
        inputs, outputs = module.weight.shape
        block.set_submodule(name, nn.Linear(inputs, outputs))
    return set(found)


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _first(output: Any) -> torch.Tensor:
    chosen: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return chosen


@contextmanager
def _unrotated(module_name: str) -> Iterator[None]:
    module: Any = sys.modules[module_name]
    rotation = getattr(module, _ROTATION)
    setattr(module, _ROTATION, lambda queries, keys, *_: (queries, keys))
    try:
        yield
    finally:
        setattr(module, _ROTATION, rotation)
