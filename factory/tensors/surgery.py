"""Carries an Edit out on named tensors: renames and selects, never changes a value in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from factory.edit import Edit


def carve(
    tensors: Iterable[tuple[str, torch.Tensor]], edit: Edit, layers_prefix: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors that stay, layers renumbered from 0.

    A stream in and a stream out, so that shards larger than memory can pass tensor by tensor. What
    lies outside the layer list (embeddings, norms, head) passes unchanged.
    """
    if edit.keep_layers is None:
        yield from tensors
        return
    new_index = {str(old): new for new, old in enumerate(edit.keep_layers)}
    prefix = layers_prefix + "."
    for name, tensor in tensors:
        if not name.startswith(prefix):
            yield name, tensor
            continue
        index, rest = name[len(prefix) :].split(".", 1)
        if index in new_index:
            yield f"{prefix}{new_index[index]}.{rest}", tensor
