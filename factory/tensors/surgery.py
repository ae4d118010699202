"""Carries an Edit out on named tensors: renames and selects, never changes a value in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch

from factory.anatomy.shapes import Edit

Role = Literal["ffn", "query", "kv"]  # what an axis counts: FFN channels, channels of query heads, of key/value heads
Coupling = dict[str, tuple[int, Role]]  # tensor name within a layer -> (axis, what it counts)


def carve(
    names: Iterable[str],
    read: Callable[[str], torch.Tensor],
    edit: Edit,
    *,
    layers_prefix: str,
    coupling: Coupling,
    head_dim: int,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors that stay, layers renumbered from 0, widths cut where they are coupled.

    A tensor is read only if something of it stays, one at a time, so that shards larger than memory can
    pass. What lies outside the layer list (embeddings, norms, head) passes unchanged.
    """
    prefix = layers_prefix + "."
    for name in names:
        if not name.startswith(prefix):
            yield name, read(name)
            continue
        index, rest = name[len(prefix) :].split(".", 1)
        old = int(index)
        if edit.keep_layers is not None and old not in edit.keep_layers:
            continue
        new = old if edit.keep_layers is None else edit.keep_layers.index(old)
        tensor = read(name)
        if rest in coupling:
            axis, role = coupling[rest]
            stays = _stays(edit, role, new, head_dim)
            if stays is not None:
                tensor = tensor.index_select(axis, torch.tensor(stays, device=tensor.device))
        yield f"{prefix}{new}.{rest}", tensor


def _stays(edit: Edit, role: Role, layer: int, head_dim: int) -> list[int] | None:
    """Indices along an axis of that role; None where it is not cut."""
    if role == "ffn":
        return None if edit.keep_ffn is None else list(edit.keep_ffn[layer])
    heads = edit.keep_heads if role == "query" else edit.keep_kv_heads
    return None if heads is None else [head * head_dim + place for head in heads[layer] for place in range(head_dim)]
