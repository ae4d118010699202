"""What is wanted of which repository; whether a text names one, or a folder that is not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from factory.errors import FactoryError, ModelError
from factory.files.nearby import meant


@dataclass(frozen=True)
class Asked:
    """What was wanted of which repository: every message about a failure begins with it."""

    repository: str
    deed: str = "download"  # a verb that the repository's name may follow
    kind: Literal["model", "dataset"] = "model"
    revision: str | None = None
    writes: bool = False
    reached: bool = False  # the Hub has answered: what fails now broke off
    partly: bool = False  # some of its files are in this machine's cache

    @property
    def head(self) -> str:
        """`cannot download user/name at revision x`."""
        kind = "dataset " if self.kind == "dataset" else ""
        return f"cannot {self.deed} {kind}{self.repository}" + (
            f" at revision {self.revision}" if self.revision else ""
        )

    @property
    def command(self) -> str:
        """What downloads it beforehand."""
        kind = " --repo-type dataset" if self.kind == "dataset" else ""
        return f"hf download {self.repository}{kind}" + (f" --revision {self.revision}" if self.revision else "")


def is_hub_name(text: str) -> bool:
    """Whether it could be `user/name` on the Hub, and nothing here says that a folder was meant.

    A path that is spelled wrongly looks like a name too: where the first part is a folder here, a path is meant.
    """
    user, _, name = text.partition("/")
    return bool(user and name) and not _like_a_path(text) and not Path(text).exists() and not Path(user).is_dir()


def require_hub_name(text: str, raises: type[FactoryError] = ModelError, what: str = "model") -> None:
    """Raises where the Hub could have no such name: a path to nothing, a file, other letters than names have."""
    path = Path(text).expanduser()
    if path.is_file():
        raise raises(f"{text}: a file, where a folder or a name on the Hub is wanted; give the folder that it lies in")
    if _like_a_path(text) and path.is_dir():
        raise raises(f"{text}: a folder here, where a name on the Hub is wanted; give the {what}'s, user/name")
    if _like_a_path(text):
        raise raises(f"{text}: no such folder{meant(text)}; give one that exists, or the {what}'s name on the Hub")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        raise raises(
            f"{text}: neither a folder here nor a name that the Hub could have; a {what} there is called user/name, "
            "in letters, digits, `-`, `_` and `.`"
        ) from None


def _like_a_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.endswith("/") or "\\" in text or text.count("/") > 1
