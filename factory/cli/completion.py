"""What a shell offers for the values of arguments, by what lies on this machine. Instant: nothing is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import resources
from pathlib import Path

MOST = 200  # offered at once
RECIPES = (".yaml", ".yml")


def recipe_files(incomplete: str) -> list[str]:
    """YAML files, and folders on the way to some."""
    return _paths(incomplete, lambda path: path.suffix in RECIPES)


def plans(incomplete: str) -> list[str]:
    """The shipped plans by name, and YAML files."""
    names = sorted(file.name.removesuffix(".yaml") for file in (resources.files("eval") / "plans").iterdir())
    return [name for name in names if name.startswith(incomplete)] + recipe_files(incomplete)


def devices(incomplete: str) -> list[str]:
    """What `--device` knows."""
    from factory.forecasting.profile import BUILT_IN

    return [name for name in ("here", *BUILT_IN) if name.startswith(incomplete)]


def artifact_folders(incomplete: str) -> list[str]:
    """Folders, and first those that hold a finished drafter, which need no more letters."""
    found = [*_paths(incomplete, _no_file), *_inside(Path("artifacts"), incomplete)]
    return sorted(dict.fromkeys(found), key=lambda text: not _is_artifact(Path(text)))[:MOST]


def _inside(folder: Path, incomplete: str) -> Iterator[str]:
    """What `factory build` made where nothing else was said, before a letter is typed."""
    if not incomplete:
        with suppress(OSError):
            yield from (f"{path}/" for path in sorted(folder.iterdir()) if _is_artifact(path))


def _is_artifact(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def _no_file(_path: Path) -> bool:
    return False


def _paths(incomplete: str, fits: Callable[[Path], bool]) -> list[str]:
    """What begins so: folders with a slash behind, files that fit."""
    head, slash, start = incomplete.rpartition("/")
    found = []
    with suppress(OSError):  # no such folder, or none to be read
        for path in sorted(Path(head + slash or ".").expanduser().iterdir()):
            hidden = path.name.startswith(".") and not start.startswith(".")
            if path.name.startswith(start) and not hidden and (path.is_dir() or fits(path)):
                found.append(f"{head}{slash}{path.name}" + ("/" if path.is_dir() else ""))
    return found[:MOST]
