"""`factory convert`: a pickled checkpoint becomes safetensors, without its code ever being run.

A pickle is a program; torch reads one with `weights_only`, which knows tensors and plain containers
and refuses everything else. Tensors are mapped from the file and written in parts, so that memory
holds one part at a time.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.errors import ModelError
from factory.files.atomic import readable
from factory.files.disk import disk_errors
from factory.files.json_reading import NotJsonError, read_json
from factory.models.located import pickles, read_config

if TYPE_CHECKING:
    import torch

PART_BYTES = 2 << 30  # of one file; what is held in memory at once
_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.md", "LICENSE*", "NOTICE*")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # keys that training scripts save a model under

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Converted:
    """What was written."""

    folder: Path
    files: int
    tensors: int
    weight_bytes: int
    left_out: tuple[str, ...]  # names that only repeat another tensor, which transformers ties to it again


def convert(folder: Path, out: Path, progress: Progress, part_bytes: int = PART_BYTES) -> Converted:
    """Write the model of `folder` into `out` (new), with its config and tokenizer, weights as safetensors.

    `out` appears only when it is complete. Raises ModelError where there is nothing to convert, where a
    pickle holds more than weights, or where it is damaged; DiskError where the disk is full.
    """
    if out.exists():
        raise ModelError(f"{out}: exists already; name a folder that does not")
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; name the one that holds config.json and the pickled weights")
    config = read_config(folder)
    sources = _sources(folder)
    tied = _tied(config)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        try:
            names = {name for source in sources for name in _state(source)}
            left_out = {name for name in names if tied.get(name) in names}
            parts = _write(sources, left_out, working, part_bytes, progress)
            _copy(folder, working)
            working.chmod(0o755)  # mkdtemp's are private
            working.rename(out)
        except BaseException:
            shutil.rmtree(working, ignore_errors=True)
            raise
    weight_bytes = sum((out / name).stat().st_size for name in parts)
    return Converted(out, len(parts), len(names) - len(left_out), weight_bytes, tuple(sorted(left_out)))


def _sources(folder: Path) -> list[Path]:
    """The pickles that make up the model, in their order. Raises ModelError."""
    if any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has safetensors already: nothing is to be converted; use it as it is")
    index = folder / "pytorch_model.bin.index.json"
    if index.is_file():
        try:
            names = sorted({str(name) for name in read_json(index)["weight_map"].values()})
        except NotJsonError as error:
            raise ModelError(f"{index}: damaged ({error}); copy it again") from error
        except (KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index}: damaged (it holds no weight_map); copy it again") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"{folder}: {index.name} lists shards that are missing: {', '.join(missing)}; copy them")
        return [folder / name for name in names]
    if (folder / "pytorch_model.bin").is_file():
        return [folder / "pytorch_model.bin"]
    found = pickles(folder)
    if not found:
        raise ModelError(f"{folder} has no pickled weights (pytorch_model.bin, *.pt or *.pth)")
    if len(found) > 1:
        names = [path.name for path in found]
        raise ModelError(f"{folder} has several pickles, {', '.join(names)}: leave only the model's there")
    return found


def _state(source: Path) -> dict[str, torch.Tensor]:
    """The tensors of one pickle by name, mapped from the file. Raises ModelError."""
    import torch

    def load(mmap: bool) -> Any:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)

    try:
        try:
            found = load(mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            found = load(mmap=False)  # torch before 1.6 wrote a format that cannot be mapped
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it wants to call {code[1]}" if code else "it holds more than tensors"
        raise ModelError(
            f"{source}: refused: {what}, and a pickle that does may run any code; nothing of it was run. "
            "Ask its author for safetensors, or save the state_dict alone"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{source}: damaged or cut short ({first_line}); copy it again") from error
    while isinstance(found, dict) and not any(isinstance(value, torch.Tensor) for value in found.values()):
        inner = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), dict)), None)
        if inner is None:
            break
        found = inner
    tensors = found if isinstance(found, dict) else {}
    tensors = {str(name): value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ModelError(f"{source}: holds no named tensors; save the model's state_dict, or use save_pretrained")
    if all(name.startswith("module.") for name in tensors):  # what DistributedDataParallel adds
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _tied(config: dict[str, Any]) -> dict[str, str]:
    """Names that transformers ties to another one for that config; empty where it does not know the model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from factory.models import loading as models  # noqa: F401 - silences transformers before it is first used

    try:
        known = AutoConfig.for_model(**config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(known, trust_remote_code=False)
        return {str(name): str(to) for name, to in model.all_tied_weights_keys.items()}
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError):
        return {}  # both names are written then, each a tensor of its own


def _write(
    sources: list[Path], left_out: set[str], working: Path, part_bytes: int, progress: Progress
) -> dict[str, list[str]]:
    """Write the parts and their index; returns the names in each file."""
    from safetensors.torch import save_file

    written: list[tuple[Path, list[str]]] = []
    total_bytes = 0
    megabytes = sum(source.stat().st_size for source in sources) // 1_000_000
    progress(0, megabytes + 1, "converting, MB")
    for source in sources:
        for part in _parts(_state(source), left_out, part_bytes):
            file = working / f"part-{len(written)}"
            save_file(part, file, metadata={"format": "pt"})
            readable(file)
            written.append((file, list(part)))
            total_bytes += sum(tensor.nbytes for tensor in part.values())
            progress(min(total_bytes // 1_000_000, megabytes), megabytes + 1, "converting, MB")
    progress(megabytes + 1, megabytes + 1, "converting, MB")
    if len(written) == 1:
        written[0][0].rename(working / "model.safetensors")
        return {"model.safetensors": written[0][1]}
    parts = {}
    for number, (file, names) in enumerate(written, 1):
        name = f"model-{number:05d}-of-{len(written):05d}.safetensors"
        file.rename(working / name)
        parts[name] = names
    weight_map = {name: file for file, names in parts.items() for name in names}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (working / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return parts


def _parts(state: dict[str, torch.Tensor], left_out: set[str], part_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors in parts of at most so many bytes, none sharing memory with another."""
    part: dict[str, torch.Tensor] = {}
    size = 0
    seen: set[int] = set()  # storages
    for name, tensor in state.items():
        if name in left_out:
            continue
        if part and size + tensor.nbytes > part_bytes:
            yield part
            part, size, seen = {}, 0, set()
        storage = tensor.untyped_storage().data_ptr()
        part[name] = tensor.clone(memory_format=_contiguous()) if storage in seen else tensor.contiguous()
        seen.add(storage)
        size += tensor.nbytes
    if part:
        yield part


def _contiguous() -> torch.memory_format:
    import torch

    return torch.contiguous_format


def _copy(folder: Path, working: Path) -> None:
    for pattern in _COPIED:
        for file in folder.glob(pattern):
            if file.is_file() and not file.name.endswith(".index.json"):
                shutil.copyfile(file, working / file.name)
