"""A model's files on this machine: where they are, what their config says, which weights they hold.

No torch here: whether a build has anything left to do must be known at once.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.errors import ModelError
from factory.files.atomic import write_atomically
from factory.files.json_reading import NotJsonError, parse_json, read_json
from factory.hub import Asked, download, require_hub_name
from factory.progress import Progress, bytes_shown
from factory.provenance import sha256_file, sha256_text


@dataclass(frozen=True)
class Located:
    """A model's files on this machine."""

    folder: Path
    revision: str | None  # the commit on the Hub; None for a folder of the user's own


def locate(source: str, revision: str | None = None, progress: Progress | None = None) -> Located:
    """The folder of a model: itself, or a Hub snapshot (downloaded once). Raises ModelError, DiskError."""
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise ModelError(f"{source} has no config.json: give the folder that transformers' save_pretrained wrote")
        return Located(Path(source).resolve(), None)
    require_hub_name(source)
    folder = download(
        Asked(source, revision=revision),
        [*BESIDE, "config.json", "*.safetensors*"],
        without=["consolidated*"],  # Mistral's weights again, in another layout
        progress=progress,
    )
    return Located(folder, folder.name)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands. Raises ModelError."""
    try:
        config = read_json(folder / "config.json")
    except NotJsonError as error:
        raise load_failure(str(folder), ValueError(f"config.json: {error}")) from error
    if not isinstance(config, dict):
        raise load_failure(str(folder), ValueError("its config.json holds no object"))
    return config


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads: model.safetensors, else those of the index, else every one there is.

    A folder may hold the same weights a second time in another layout (Mistral's consolidated.safetensors).
    """
    whole, index = folder / "model.safetensors", folder / INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted({folder / str(name) for name in places.values()})
    return sorted(folder.glob("*.safetensors"))


def model_identity(folder: Path, cache_file: Path | None = None, progress: Progress | None = None) -> str:
    """sha256 over all that decides what a model says: weights, config, generation settings, tokenizer.

    Hashing reads every byte, so a file's sum is kept in `cache_file`, keyed by size and mtime. Who
    saved a config with which version does not count. Raises ModelError where there is no safetensors file.
    """
    files = weight_files(folder)
    if not files:
        raise ModelError(_no_weights(folder))
    known: dict[str, str] = {}
    if cache_file is not None and cache_file.is_file():
        with contextlib.suppress(ValueError):  # a damaged cache is only a cache
            known = json.loads(cache_file.read_text())
    keys = {file: _key(file) for file in files}
    unknown = [file for file in files if keys[file] not in known]
    total = sum(file.stat().st_size for file in unknown)
    more = bytes_shown(progress, "hashing the target", total) if progress is not None and unknown else None
    known |= {keys[file]: sha256_file(file, more) for file in unknown}
    sums = {file.name: known[keys[file]] for file in files}
    if cache_file is not None:
        with contextlib.suppress(OSError):  # a read-only folder is hashed anew each time
            cache_file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cache_file, json.dumps(known, indent=1))
    settings = {"config.json": _settings(read_config(folder)), **_beside_sums(folder)}
    return sha256_text(json.dumps({"weights": sums, **settings}, sort_keys=True))


def _key(file: Path) -> str:
    """What a file's sum is kept under: whoever changes it changes one of these."""
    stat = file.resolve().stat()
    return f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"


def _beside_sums(folder: Path) -> dict[str, Any]:
    """What lies beside the weights, by name: settings as such, the tokenizer's files by their sums."""
    found: dict[str, Any] = {}
    for path in beside(folder):
        if path.name == "generation_config.json":
            with contextlib.suppress(ValueError):  # transformers will say what is wrong with it
                found[path.name] = _settings(json.loads(path.read_text(encoding="utf-8")))
        else:
            found[path.name] = sha256_file(path)
    return found


def _settings(settings: Any) -> Any:
    """Without what only says who saved it."""
    if not isinstance(settings, dict):
        return settings
    return {key: value for key, value in settings.items() if key not in ("transformers_version", "_name_or_path")}


INDEX = "model.safetensors.index.json"
# What a model folder holds besides config and weights: the tokenizer's files and the generation settings.
BESIDE = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.jinja"),
    "generation_config.json",
)


def beside(folder: Path) -> list[Path]:
    """The tokenizer's files and the generation settings that are there."""
    return sorted({path for pattern in BESIDE for path in folder.glob(pattern) if path.is_file()})


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
PICKLES = ("*.bin", "*.pt", "*.pth")
_LARGEST_HEADER = 100_000_000  # bytes; the format's own bound


def require_complete(folder: Path) -> None:
    """Raises ModelError, with all faults, where weights are missing, cut short or pickled, or there is no tokenizer.

    Reads the headers alone, so that it is over at once whatever the model's size: a damaged download
    is told before hours of work, not after.
    """
    faults = _weights_faults(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        faults.append(f"{folder} has no tokenizer: save it there too, with its save_pretrained, or copy its files")
    if faults:
        raise ModelError("\n".join(faults))


def pickles(folder: Path) -> list[Path]:
    """Weights in a format that can run code when it is loaded (optimizer states and the like left out)."""
    found = {path for pattern in PICKLES for path in folder.glob(pattern)}
    return sorted(
        path for path in found if not path.name.startswith(("training_args", "optimizer", "scheduler", "rng"))
    )


def _weights_faults(folder: Path) -> list[str]:
    index, whole = folder / INDEX, folder / "model.safetensors"
    if index.is_file() and whole.is_file():
        return [
            f"{folder} holds both {whole.name} and {index.name}, which may differ: remove the one that is not meant"
        ]
    if index.is_file():
        return _shard_faults(folder, index)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return [_no_weights(folder)]
    faults = [fault for file in files if (fault := header_fault(file))]
    if not (folder / "model.safetensors").is_file():
        names = ", ".join(file.name for file in files[:3])
        faults.append(
            f"{folder} has neither model.safetensors nor {index.name}, only {names}: "
            "copy the missing file, or save the model again"
        )
    return faults


def _shard_faults(folder: Path, index: Path) -> list[str]:
    try:
        tensors = dict(read_json(index)["weight_map"])
        shards = sorted({str(name) for name in tensors.values()})
    except NotJsonError as error:
        return [f"{index}: damaged ({error}); download or copy it again"]
    except (ValueError, KeyError, TypeError):
        return [f"{index}: damaged (it holds no weight_map); download or copy it again"]
    missing = [name for name in shards if not (folder / name).is_file()]
    faults = []
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        count = f"{len(missing)} of {len(shards)} shards"
        faults.append(f"{folder}: {count} that {index.name} lists are missing: {names}; download or copy them")
    present = [folder / name for name in shards if name not in missing]
    return faults + [fault for file in present if (fault := header_fault(file))]


def header_fault(file: Path) -> str:
    """What is wrong with a safetensors file as far as its header and size tell, or nothing."""
    again = "download or copy it again"
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            return f"{file}: a Git LFS pointer and not the weights; fetch them with `git lfs pull`"
        if len(start) < 8 or length > min(_LARGEST_HEADER, size - 8):
            return f"{file}: cut short or no safetensors file ({size:,} bytes, its header is not all there); {again}"
        try:
            header = parse_json(opened.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return f"{file}: damaged: its header cannot be read; {again}"
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        return f"{file}: cut short: {size:,} of {expected:,} bytes; {again}"
    if size > expected:
        return f"{file}: damaged: {size - expected:,} bytes more than its header tells of; {again}"
    return ""


def _no_weights(folder: Path) -> str:
    found = pickles(folder)
    if found:
        names = ", ".join(path.name for path in found[:3]) + (", ..." if len(found) > 3 else "")
        return (
            f"{folder} has only pickled weights ({names}), which can run code when they are loaded and are refused: "
            f"make safetensors of them with `factory convert {folder} OUT`"
        )
    return f"{folder} has no .safetensors file: save the model with transformers' save_pretrained"


def load_failure(source: str, error: Exception) -> ModelError:
    """The error to raise where a model's files cannot be had or read."""
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(source).is_dir():
        remedy = "the folder must hold config.json, *.safetensors and the tokenizer's files"
    else:
        remedy = "give a folder that exists, or a name on the Hub that this machine can reach"
    return ModelError(f"cannot load {source}: {first_line} ({remedy})")
