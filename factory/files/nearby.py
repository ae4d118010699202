"""What a path to nothing was meant to be: its parts may be misspelt, and what lies there is known."""

from __future__ import annotations

import difflib
from pathlib import Path


def meant(text: str | Path, *, folder: bool = True) -> str:
    """`; did you mean x?` where a folder, or a file, of nearly that path lies there; else nothing."""
    parts = Path(text).parts
    found = Path()
    for place, part in enumerate(parts):
        if not _exists(found / part):
            is_folder = folder or place < len(parts) - 1
            try:
                beside = [each for each in found.expanduser().iterdir() if each.is_dir() == is_folder]
            except OSError:
                return ""
            # Without its ending: else all files of one kind are alike.
            names = {each.name if is_folder else each.stem: each.name for each in beside}
            close = difflib.get_close_matches(part if is_folder else Path(part).stem, names, n=1)
            if not close:
                return ""
            part = names[close[0]]
        found /= part
    return f"; did you mean {'the folder ' if folder else ''}{found}?"


def _exists(path: Path) -> bool:
    try:
        return path.expanduser().exists()
    except (OSError, RuntimeError):  # a name that is too long, or the home of nobody
        return False
