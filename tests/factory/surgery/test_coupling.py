"""What is coupled, found by tracing; and that it is what torch-pruning itself removes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_pruning
from torch import nn
from transformers import PreTrainedModel

from factory.anatomy.families import ANATOMIES, anatomy_of, shape_from_config
from factory.anatomy.shapes import Edit
from factory.surgery.carving import carve_module
from factory.surgery.coupling import coupling

GATED = {"mlp.gate_proj.weight": (0, "ffn"), "mlp.up_proj.weight": (0, "ffn"), "mlp.down_proj.weight": (1, "ffn")}


def test_gated_families_couple_three_matrices_and_the_heads() -> None:
    found = coupling("qwen3", heads=True)
    heads = {
        "self_attn.q_proj.weight": (0, "query"),
        "self_attn.k_proj.weight": (0, "kv"),
        "self_attn.v_proj.weight": (0, "kv"),
        "self_attn.o_proj.weight": (1, "query"),
    }
    biases = {name.replace("weight", "bias"): (0, role) for name, (axis, role) in heads.items() if axis == 0}
    assert found == GATED | heads | biases  # and neither norm within a head


def test_gpt2_stores_its_matrices_transposed() -> None:
    assert coupling("gpt2", heads=False) == {
        "mlp.c_fc.weight": (1, "ffn"),
        "mlp.c_fc.bias": (0, "ffn"),
        "mlp.c_proj.weight": (0, "ffn"),
    }


@pytest.mark.parametrize("family", sorted(ANATOMIES))
def test_every_coupled_tensor_is_one_of_the_model(
    family: str, families: dict[str, Callable[..., PreTrainedModel]]
) -> None:
    model = families[family](layers=1)
    shape = shape_from_config(model.config.to_dict())
    widths = {"ffn": shape.ffn, "query": shape.query_width, "kv": shape.kv_width}
    layer = model.get_submodule(anatomy_of(model.config.to_dict()).layers)[0]
    tensors = layer.state_dict()
    found = coupling(family, heads=ANATOMIES[family].why_no_heads is None)
    assert {"ffn"} <= {role for _, role in found.values()}
    for name, (axis, role) in found.items():
        if name in tensors:
            assert tensors[name].shape[axis] == widths[role]
        else:
            assert name.endswith("bias")


def test_randomness_outside_is_not_touched() -> None:
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    coupling.__wrapped__("opt", heads=False)
    assert torch.equal(before, torch.rand(1))


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "mistral", "opt", "qwen2", "qwen3"])
def test_the_surgery_removes_what_torch_pruning_removes(
    family: str, families: dict[str, Callable[..., PreTrainedModel]]
) -> None:
    """torch-pruning prunes a block in place, by its own hands; every tensor must come out alike."""
    model = families[family](layers=2)
    config = model.config.to_dict()
    anatomy, shape = anatomy_of(config), shape_from_config(config)
    gone = [1, 5, 6, shape.ffn - 1]
    stays = tuple(channel for channel in range(shape.ffn) if channel not in gone)
    edit = Edit(keep_ffn=(stays, stays))
    carved = carve_module(model, edit)
    for layer in model.get_submodule(anatomy.layers):
        parent = anatomy.ffn_out.rpartition(".")[0]
        block = layer.get_submodule(parent)
        root: nn.Linear = layer.get_submodule(anatomy.ffn[-1])
        block.requires_grad_(True)
        inputs = torch.zeros(1, 3, shape.hidden, dtype=model.dtype)
        graph = torch_pruning.DependencyGraph().build_dependency(
            block, inputs, forward_fn=lambda module, x: module(x), verbose=False
        )
        graph.get_pruning_group(root, torch_pruning.prune_linear_out_channels, idxs=gone).prune()
    theirs, ours = model.state_dict(), carved.state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert torch.equal(tensor, ours[name]), name
