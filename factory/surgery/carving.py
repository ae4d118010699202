"""An Edit carried out, on a module in memory or on a folder of safetensors: one surgery, two ways in.

Always into a new model, never in place: a target that a compression has changed accepts everything
that its drafter says.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

from factory.anatomy.families import Config, anatomy_of, edited_config, shape_from_config
from factory.anatomy.shapes import Edit
from factory.files.atomic import write_atomically
from factory.models import loading as models
from factory.models.located import beside
from factory.models.shards import Shards, write_shards
from factory.tensors.surgery import carve


def carve_module(model: PreTrainedModel, edit: Edit) -> PreTrainedModel:
    """A new model of what stays, on the same device. Raises UnsupportedModel, ModelError."""
    config, tensors = model.config.to_dict(), model.state_dict()
    return models.new_model(
        edited_config(config, edit), _carved(tensors, tensors.__getitem__, config, edit), like=model
    )


def carve_folder(source: Path, destination: Path, config: Config, edit: Edit) -> None:
    """A new model folder of what stays, in the dtype that `config` names; memory for one shard, not for the target.

    Only tensors of which something stays are read. Raises UnsupportedModel; ModelError where a tensor is
    missing, cannot be read, or holds NaN.
    """
    shards = Shards(source, anatomy_of(config), tied=shape_from_config(config).tied)
    made = edited_config(config, edit)
    dtype = models.DTYPES[config["dtype"]]
    models.require_fit(made, write_shards(destination, _carved(shards.names, shards.read, config, edit), dtype))
    write_atomically(destination / "config.json", json.dumps(made, indent=2, sort_keys=True) + "\n")
    copy_beside(source, destination)


def copy_beside(source: Path, destination: Path) -> None:
    """The tokenizer's files and the generation settings."""
    for path in beside(source):
        shutil.copyfile(path, destination / path.name)


def _carved(
    names: Iterable[str], read: Callable[[str], torch.Tensor], config: Config, edit: Edit
) -> Iterator[tuple[str, torch.Tensor]]:
    couples = {}
    if edit.keep_ffn is not None or edit.keep_heads is not None:
        from factory.surgery.coupling import coupling  # torch-pruning: only where a width is cut

        couples = coupling(config["model_type"], heads=edit.keep_heads is not None)
    return carve(
        names,
        read,
        edit,
        layers_prefix=anatomy_of(config).layers,
        coupling=couples,
        head_dim=shape_from_config(config).head_dim,
    )
