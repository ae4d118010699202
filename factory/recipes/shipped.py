"""What is shipped to begin with: the demo's recipes, its prompts and its target, and recipes of large models.

In the clone they lie in `recipes/`; a wheel has them in `factory/shipped/` (setup.py puts them there), since outside
the clone there is nothing else. Python files of that folder made what lies there, and are not shipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from factory.errors import FactoryError
from factory.files.atomic import write_atomically
from factory.files.disk import disk_errors

_INSTALLED = Path(__file__).resolve().parents[1] / "shipped"
_IN_THE_CLONE = Path(__file__).resolve().parents[2] / "recipes"


def copy_shipped(folder: Path, *, force: bool = False) -> tuple[list[Path], list[Path]]:
    """Copy all of it into `folder`, the demo's recipes beside the others; returns the files written, and those there.

    A file that is there already with the same bytes is left alone. Raises FactoryError where one is there with
    others, unless they are to be replaced (`force`), before anything is written; DiskError.
    """
    contents = {folder / place: content for place, content in _contents().items()}
    same = [path for path, content in contents.items() if path.is_file() and path.read_bytes() == content]
    missing = [path for path in contents if path not in same]
    _require_free([path for path in missing if path.exists()], folder, force)
    with disk_errors(folder):
        for path in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, contents[path])
    return missing, same


def _require_free(taken: Sequence[Path], folder: Path, force: bool) -> None:
    folders = [path for path in taken if path.is_dir()]
    if folders:
        raise FactoryError(f"{', '.join(map(str, folders))}: a folder where a file belongs; give another DIR")
    if folder.exists() and not folder.is_dir():
        raise FactoryError(f"{folder}: a file; give a folder, or a name that is free")
    if taken and not force:
        said = "\n".join(f"{path}: is there already, and is not the shipped one" for path in taken)
        raise FactoryError(f"{said}\nnothing was written: give another DIR, or replace these with --force")


def _contents() -> dict[Path, bytes]:
    """Every shipped file by where it goes in a folder of the user's."""
    source = _INSTALLED if _INSTALLED.is_dir() else _IN_THE_CLONE
    found = {}
    for path in sorted(source.rglob("*")):
        place = path.relative_to(source)
        if not path.is_file() or path.suffix in (".py", ".pyc") or place == Path("README.md"):  # the clone's catalogue
            continue
        content = path.read_bytes()
        if path.suffix == ".yaml":  # commands in comments are for who stands in the clone
            content = content.replace(b"recipes/demo/", b"").replace(b"recipes/", b"")
        found[place.relative_to("demo") if place.parts[0] == "demo" else place] = content
    if not found:
        raise FactoryError(f"{source}: the shipped recipes are not there; install drafter-factory again")
    return found
