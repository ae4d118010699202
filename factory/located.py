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
from factory.files import write_atomically
from factory.provenance import sha256_file, sha256_text


@dataclass(frozen=True)
class Located:
    """A model's files on this machine."""

    folder: Path
    revision: str | None  # the commit on the Hub; None for a folder of the user's own


def locate(source: str, revision: str | None = None) -> Located:
    """The folder of a model: itself, or a Hub snapshot (downloaded once). Raises ModelError."""
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise ModelError(f"{source} has no config.json: give the folder that transformers' save_pretrained wrote")
        return Located(Path(source).resolve(), None)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(source, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"])
        )
    except Exception as error:  # the client raises a dozen kinds; each is "could not get it" here
        raise load_failure(source, error) from error
    return Located(folder, folder.name)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands. Raises ModelError."""
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError) as error:
        raise load_failure(str(folder), error) from error


def weights_identity(folder: Path, cache_file: Path | None = None) -> str:
    """sha256 over the names and sha256s of a folder's safetensors: what "the same target" means.

    Hashing reads every byte, so a file's sum is kept in `cache_file`, keyed by size and mtime.
    Raises ModelError where there is no safetensors file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} has no .safetensors file: save the model with transformers' save_pretrained")
    known: dict[str, str] = {}
    if cache_file is not None and cache_file.is_file():
        with contextlib.suppress(ValueError):  # a damaged cache is only a cache
            known = json.loads(cache_file.read_text())
    sums: dict[str, str] = {}
    for file in files:
        stat = file.resolve().stat()
        key = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        sums[file.name] = known.setdefault(key, "") or sha256_file(file)
        known[key] = sums[file.name]
    if cache_file is not None:
        with contextlib.suppress(OSError):  # a read-only folder is hashed anew each time
            cache_file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cache_file, json.dumps(known, indent=1))
    return sha256_text("\n".join(f"{name} {digest}" for name, digest in sums.items()))


def load_failure(source: str, error: Exception) -> ModelError:
    """The error to raise where a model's files cannot be had or read."""
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(source).is_dir():
        remedy = "the folder must hold config.json, *.safetensors and the tokenizer's files"
    else:
        remedy = "give a folder that exists, or a name on the Hub that this machine can reach"
    return ModelError(f"cannot load {source}: {first_line} ({remedy})")
