"""Walks a model and collects what the scores of structural stages are made of.

The only place that hooks into a running model. What is computed of it is in tensors/saliency.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from factory.anatomy.families import Anatomy, anatomy_of
from factory.data.blocks import TextBlocks
from factory.limits import SCORED_ROWS
from factory.tensors.saliency import channel_contribution, head_contribution, magnitude

ROWS_AT_ONCE = 4  # every layer's residual stream of that many rows is held

Progress = Callable[[int, int, str], None]
ByLayer = list[torch.Tensor]


def residual_streams(model: PreTrainedModel, text: TextBlocks, progress: Progress) -> Iterator[tuple[ByLayer, Any]]:
    """Batch by batch: the residual stream before each layer and after the last, L + 1 times [B, T, D]; mask [B, T]."""
    layers = _layers(model, anatomy_of(model.config.to_dict()))
    stream: ByLayer = []

    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        if module is layers[0]:
            stream.append(inputs[0])
        stream.append(output[0] if isinstance(output, tuple) else output)

    with _hooked([layer.register_forward_hook(record) for layer in layers]):
        for batch, mask in _batches(model, text, progress, "scoring layers"):
            stream.clear()
            model.base_model(input_ids=batch, use_cache=False)
            yield stream, mask


@torch.no_grad()
def contributions(
    model: PreTrainedModel, text: TextBlocks, progress: Progress, *, heads: bool
) -> tuple[ByLayer, ByLayer]:
    """What each FFN channel [L][F], and if asked each query head [L][H], adds to its module's output on the text."""
    anatomy = anatomy_of(model.config.to_dict())
    layers = _layers(model, anatomy)
    count = int(model.config.num_attention_heads)
    mask = torch.empty(0)
    energy: list[Any] = [0.0] * len(layers)  # [L][F]
    gram: list[Any] = [0.0] * len(layers)  # [L][H, d, d]

    def real(values: torch.Tensor) -> torch.Tensor:  # [B, T, W] -> [N, W]; OPT flattens batch and time by itself
        return values.reshape(-1, values.shape[-1])[mask.flatten()].double()

    def record_ffn(index: int) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            energy[index] = energy[index] + real(inputs[0]).square().sum(0)

        return hook

    def record_heads(index: int) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            each = real(inputs[0])
            each = each.view(each.shape[0], count, -1)  # [N, H, d]
            gram[index] = gram[index] + torch.einsum("nhi,nhj->hij", each, each)

        return hook

    hooks = []
    for index, layer in enumerate(layers):
        hooks.append(layer.get_submodule(anatomy.ffn_out).register_forward_pre_hook(record_ffn(index)))
        if heads:
            hooks.append(layer.get_submodule(anatomy.attention_out).register_forward_pre_hook(record_heads(index)))
    with _hooked(hooks):
        for batch, mask in _batches(model, text, progress, "scoring widths"):  # noqa: B007 - the hooks read it
            model.base_model(input_ids=batch, use_cache=False)
    channels = [
        channel_contribution(e, _weight(layer, anatomy.ffn_out)) for e, layer in zip(energy, layers, strict=True)
    ]
    if not heads:
        return channels, []
    out = [_weight(layer, anatomy.attention_out) for layer in layers]
    return channels, [head_contribution(g, weight) for g, weight in zip(gram, out, strict=True)]


def magnitudes(model: PreTrainedModel) -> tuple[ByLayer, ByLayer]:
    """Squared weights that make and take each FFN channel [L][F], and each query head [L][H] where heads can go.

    Keys and values, which a group of heads shares, do not tell its heads apart and are left out.
    """
    anatomy = anatomy_of(model.config.to_dict())
    count = int(model.config.num_attention_heads)
    channels, heads = [], []
    for layer in _layers(model, anatomy):
        incoming = [_weight(layer, path) for path in anatomy.ffn]  # [F, D] each
        channels.append(magnitude([*incoming, _weight(layer, anatomy.ffn_out).T]))
        if anatomy.why_no_heads is None:
            both = _weight(layer, anatomy.queries), _weight(layer, anatomy.attention_out).T  # [H * d, D] each
            heads.append(magnitude([part.reshape(count, -1) for part in both]))
    return channels, heads


def _layers(model: PreTrainedModel, anatomy: Anatomy) -> list[nn.Module]:
    return list(model.get_submodule(anatomy.layers))


def _weight(layer: nn.Module, path: str) -> torch.Tensor:  # [outputs, inputs]
    """A projection's weight; GPT-2's Conv1D stores it the other way round."""
    module = layer.get_submodule(path)
    weight: Any = module.weight
    return weight.T if type(module).__name__ == "Conv1D" else weight  # type: ignore[no-any-return]


@contextmanager
def _hooked(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _batches(
    model: PreTrainedModel, text: TextBlocks, progress: Progress, what: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids [B, T], mask of real tokens [B, T]) on the model's device."""
    rows = text.rows(range(min(len(text), SCORED_ROWS)))
    progress(0, len(rows), what)
    with torch.no_grad():
        for start in range(0, len(rows), ROWS_AT_ONCE):
            batch = rows.rows(range(start, min(start + ROWS_AT_ONCE, len(rows))))
            yield batch.ids.to(model.device), batch.token_mask.to(model.device)
            progress(start + len(batch), len(rows), what)
