"""Safetensors folders tensor by tensor: nothing is held but the tensor at hand.

A 7B target is 13.5 GB; a drafter of two of its layers is a tenth of that, and making it should take
no more memory than it has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from factory.anatomy.families import Anatomy
from factory.errors import ModelError
from factory.files.atomic import SHARD_BYTES, write_atomically
from factory.models.located import INDEX, weight_files

HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
# Constants that old checkpoints carry and no model reads.
_IGNORED = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq")


class Shards:
    """The named tensors of a model folder, read one by one.

    Names are transformers' own, also where a checkpoint leaves the base model's name out, as many on the
    Hub do. A file is opened anew for each tensor: an open one keeps every page that was read mapped, and
    the process would grow to the size of the target after all.
    """

    def __init__(self, folder: Path, anatomy: Anatomy, *, tied: bool) -> None:
        self._files: dict[str, tuple[Path, str]] = {}
        for path in weight_files(folder):
            try:
                with safe_open(path, framework="pt") as file:
                    stored = [str(name) for name in file.keys()]  # noqa: SIM118 - no mapping, only has keys()
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path}: cannot be read ({error}); download or save the model again") from error
            for name in stored:
                if not name.endswith(_IGNORED):
                    self._files[name] = (path, name)
        if not any(name.startswith(f"{anatomy.layers}.") for name in self._files):
            inner = anatomy.layers.removeprefix(f"{anatomy.prefix}.")
            if any(name.startswith(f"{inner}.") for name in self._files):
                self._files = {
                    name if name in HEADS else f"{anatomy.prefix}.{name}": place for name, place in self._files.items()
                }
        if tied:
            self._drop_second_embedding(folder)

    def _drop_second_embedding(self, folder: Path) -> None:
        """Leave out a head that only repeats the embedding. Raises ModelError where it is another matrix."""
        head = next((name for name in HEADS if name in self._files), None)
        embedding = next((name for name in self._files if name.endswith(EMBEDDINGS)), None)
        if head is None or embedding is None:
            return
        if not torch.equal(self.read(head), self.read(embedding)):
            raise ModelError(
                f"{folder}: config.json ties head and embedding, but {head} is not {embedding}; "
                "write `tie_word_embeddings: false` into config.json, or remove the head from the weights"
            )
        del self._files[head]

    @property
    def names(self) -> list[str]:
        """Every tensor, file by file."""
        return list(self._files)

    def read(self, name: str) -> torch.Tensor:
        """A copy of one tensor. Raises ModelError where it cannot be read or holds a NaN or an infinity."""
        path, stored = self._files[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(stored).clone()
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: {stored} cannot be read ({error}); download or save the model again") from error
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{path}: {stored} holds NaN or infinite weights: the checkpoint is damaged; get it again")
        return tensor


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in that dtype. Raises ModelError where a weight is too large for it."""
    cast = tensor.to(dtype).contiguous()
    if cast.dtype != tensor.dtype and not bool(torch.isfinite(cast).all()):
        raise ModelError(f"{name}: a weight is too large for {dtype}; write another `target.dtype`, such as bfloat16")
    return cast


def write_shards(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> dict[str, list[int]]:
    """Write tensors as transformers does, one file or several with an index; returns their shapes by name."""
    shapes: dict[str, list[int]] = {}
    parts: list[tuple[Path, list[str]]] = []
    held: dict[str, torch.Tensor] = {}
    size = total = 0

    def flush() -> None:
        path = folder / f"part-{len(parts):05d}.safetensors"
        save_file(held, path, metadata={"format": "pt"})
        parts.append((path, list(held)))
        held.clear()

    for name, tensor in tensors:
        bytes_here = tensor.numel() * dtype.itemsize
        if held and size + bytes_here > SHARD_BYTES:
            flush()
            size = 0
        held[name] = _cast(name, tensor, dtype)
        shapes[name] = list(tensor.shape)
        size += bytes_here
        total += bytes_here
    flush()
    if len(parts) == 1:
        parts[0][0].rename(folder / "model.safetensors")
        return shapes
    places: dict[str, str] = {}
    for number, (path, names) in enumerate(parts, 1):
        file_name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        path.rename(folder / file_name)
        places |= dict.fromkeys(names, file_name)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_atomically(folder / INDEX, json.dumps(index, indent=2))
    return shapes
