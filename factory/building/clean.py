"""`factory clean`: remove what only costs time to make again, and nothing else.

Results of stages, written text and teacher caches serve later builds and resumed ones; artifacts and evaluations do
not need them. Artifacts that a new recipe replaced go only when asked for, since their evaluations
cannot be made again. Prompts from the Hub stay: it may not be there tomorrow.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from factory.errors import FactoryError
from factory.files.atomic import LOCK_FILE, locked
from factory.files.disk import disk_errors

_REMADE = ("stages", "text", "teacher", "assembling", "pulling")  # folders of .cache
_REPLACED = "replaced"


@dataclass(frozen=True)
class Cleaned:
    """What was removed, or would be."""

    folders: tuple[Path, ...]
    removed_bytes: int
    replaced_bytes: int  # that replaced artifacts still hold


def clean(out: Path, *, replaced: bool = False, dry_run: bool = False) -> Cleaned:
    """Remove a build folder's caches; `replaced` also the artifacts that were replaced; `dry_run` only counts.

    Raises FactoryError where the folder is none that a build made, or where a build is at work in it.
    """
    _require_build_folder(out)
    cache = out / ".cache"
    with disk_errors(out), locked(out):
        names = (*_REMADE, _REPLACED) if replaced else _REMADE
        doomed = [cache / name for name in names if (cache / name).is_dir()]
        doomed += sorted(cache.glob("*.partial"))
        removed_bytes = sum(map(_size, doomed))
        if not dry_run:
            for path in doomed:
                _remove(path)
        kept = 0 if replaced else _size(cache / _REPLACED)
        return Cleaned(tuple(doomed), removed_bytes, kept)


def _require_build_folder(out: Path) -> None:
    if not out.is_dir():
        raise FactoryError(f"{out}: no such folder; name the one that `factory build --out` wrote to")
    if (out / "manifest.json").is_file():
        raise FactoryError(f"{out}: one artifact, which holds nothing to clean; name the folder that it lies in")
    if not (out / LOCK_FILE).is_file() or not (out / ".cache").is_dir():
        raise FactoryError(f"{out}: no build wrote here; name the folder that `factory build --out` wrote to")


def _remove(path: Path) -> None:
    """Links are removed, not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _size(path: Path) -> int:
    """Bytes of the files in a folder, or of one file."""
    if path.is_symlink() or not path.exists():
        return 0
    if path.is_file():
        return path.stat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
