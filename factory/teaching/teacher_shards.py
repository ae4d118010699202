"""The target's predictions on disk: the likeliest tokens of every answer position, written once and read by many.

    <folder>/shard-00000.safetensors    256 rows of the text: ids and log_p [M, k + m], tail [M], start [rows + 1]
             meta.json                  written last: what it is of, its sizes, what it leaves out

M is the answer positions of a shard's rows, row after row; row i has those from start[i] to start[i + 1].

What is kept of a position's p: the k likeliest tokens, their log-probabilities in float16, and the tail, the mass r of
all other tokens, in float32 and taken from these others, not from the rounded ones. Rounding to float16 moves a
log-probability by at most 2^-11 of itself, so the kept mass by at most 2^-11 of p's entropy: 1 minus that could be
negative, and would be mostly noise where r is small. So what is stored is exact where it can be, and who computes with
it makes a distribution of it: the k and the tail are divided by their sum.

With draws, m of the other tokens follow the k likeliest, drawn in proportion to p, one from each m-th part of the
tail's mass: they stand for the others, and sums over them are right in the mean (`factory/tensors/predictions.py`).

What this does to a measured overlap, the sum of min(p, q): without draws the k + 1 outcomes overstate it by at most
min(r, q's tail), since within the tail the two may share anything from nothing to that; rounding changes it by at most
half the sum of |p - stored p|, which is measured while p is at hand. The mean of both over positions is `alpha_bound`,
at the cache's temperature. With draws a mean over many positions errs by chance alone, both ways: then `alpha_bound` is
1.96 standard errors of it at most, and rounding. A mean of fewer positions errs by more: `TeacherCache.alpha_bound`.

Torch is needed by nobody who only asks whether a cache is finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from factory.errors import DataError
from factory.files.atomic import write_atomically
from factory.limits import CACHE_SHARD_ROWS
from factory.provenance import sha256_text

if TYPE_CHECKING:
    import torch

VERSION = 2  # raised by hand when what is written for equal input changes: enters the key
META = "meta.json"


def row_ranges(rows: int) -> Iterator[range]:
    """The rows of each shard."""
    for start in range(0, rows, CACHE_SHARD_ROWS):
        yield range(start, min(start + CACHE_SHARD_ROWS, rows))


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{number:05d}.safetensors"


def _digest(key: Mapping[str, Any]) -> str:
    return sha256_text(json.dumps(key, sort_keys=True))


def normalised(log_p: torch.Tensor, tail: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, k] float16 and [N] as stored -> float32, such that kept and tail sum to 1."""
    log_p = log_p.float()
    total = log_p.exp().sum(-1) + tail
    return log_p - total.log()[:, None], tail / total


def is_whole(path: Path, key: Mapping[str, Any], positions: int, kept: int) -> bool:
    """Whether a shard needs not be written. Raises DataError where it is one of another cache."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as shard:
            found = (shard.metadata() or {}).get("key")
            shape = shard.get_slice("log_p").get_shape()
    except SafetensorError:
        return False
    if found != _digest(key):
        raise DataError(f"{path}: part of a teacher cache of something else; remove {path.parent} and build again")
    return bool(shape == [positions, kept])


def write_shard(path: Path, tensors: dict[str, torch.Tensor], key: Mapping[str, Any]) -> None:
    """The whole shard or none. Written as a file, never through a mapping: there a full disk would kill the process."""
    from safetensors.torch import save_file

    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial, metadata={"key": _digest(key)})
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_meta(folder: Path, key: Mapping[str, Any], rows: int, vocabulary: int, kept: int, drawn: int) -> None:
    """Look at every shard and write down that the cache is finished. Raises DataError where one cannot be read."""
    files, positions, largest = {}, 0, 0.0
    left_out = rounding = squares = 0.0
    for number, _ in enumerate(row_ranges(rows)):
        path = shard_path(folder, number)
        shard = open_shard(path, key)
        tail = shard.get_tensor("tail")
        files[path.name] = path.stat().st_size
        positions += len(tail)
        left_out += float(tail.double().sum())
        squares += float(tail.double().square().sum())
        largest = max(largest, float(tail.max())) if len(tail) else largest
        rounding += float(shard.get_tensor("rounding"))
    size, mean = sum(files.values()), 1 / max(1, positions)
    facts = {
        "key": dict(key),
        "rows": rows,
        "positions": positions,
        "vocabulary": vocabulary,
        "kept": kept,
        "drawn": drawn,
        "bytes": size,
        "bytes_per_position": size * mean,
        "mean_tail": left_out * mean,
        "max_tail": largest,
        "mean_rounding": rounding * mean,
        "alpha_bound": (most_moved(left_out, squares, drawn) + rounding) * mean,
        "shard_rows": CACHE_SHARD_ROWS,
        "files": files,
    }
    write_atomically(folder / META, json.dumps(facts, indent=1))


def most_moved(left_out: float, squares: float, drawn: int) -> float:
    """What tails may move the sum of their positions' overlaps by; given are their sum, and that of their squares.

    Without draws the whole tail may be shared or not. With m of them the error is theirs: the share of the tail that
    they find is between 0 and 1, so its variance at most r^2 / 4 m; 1.96 standard errors are taken.
    """
    return 1.96 * (squares / (4 * drawn)) ** 0.5 if drawn else left_out


def open_shard(path: Path, key: Mapping[str, Any]) -> Any:
    """A shard, mapped into memory. Raises DataError where it is missing, damaged or another cache's."""
    try:
        shard: Any = safe_open(path, framework="pt")
        found = (shard.metadata() or {}).get("key")
    except (OSError, SafetensorError) as error:
        raise damaged(path, str(error)) from error
    if found != _digest(key):
        raise damaged(path, "part of another cache")
    return shard


def damaged(path: Path, what: str) -> DataError:
    """The error of a shard that cannot be used."""
    return DataError(f"{path}: {what}; remove this file and build again: what is missing is written, the rest is kept")


def read_meta(folder: Path) -> dict[str, Any]:
    """What a finished cache says of itself. Raises DataError where there is none, or where it cannot be read."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        return {**meta, "key": dict(meta["key"]), "files": dict(meta["files"])}
    except FileNotFoundError:
        raise DataError(f"{folder}: no finished teacher cache; build again, which goes on with it") from None
    except (ValueError, KeyError, TypeError) as error:
        path = folder / META
        raise DataError(f"{path}: damaged ({error}); remove this file and build again: the shards are kept") from error


def require_files(folder: Path, meta: Mapping[str, Any]) -> None:
    """Raises DataError unless every shard is there and as long as it was."""
    for name, size in meta["files"].items():
        path = folder / name
        if not path.is_file():
            raise damaged(path, "missing")
        if path.stat().st_size != size:
            raise damaged(path, f"{path.stat().st_size:,} bytes long instead of {size:,}")


def is_finished(folder: Path) -> bool:
    """Whether a cache is there, down to the length of its files; else what is missing is to be written."""
    try:
        require_files(folder, read_meta(folder))
    except DataError:
        return False
    return True


def lying_bytes(folder: Path) -> int:
    """Of the shards that are there."""
    return sum(path.stat().st_size for path in folder.glob("shard-*.safetensors"))


def require_key(folder: Path, found: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    """Raises DataError where the cache is of another target, text or settings: each entry of `key` must be in it."""
    differ = [name for name in sorted(key) if found.get(name) != key[name]]
    if differ:
        said = ", ".join(f"{name} is {found.get(name)} instead of {key[name]}" for name in differ)
        others = " and ".join(differ)
        raise DataError(f"{folder}: a teacher cache of another {others} ({said}); remove this folder and build again")
