"""Files of a repository into the Hub's cache on this machine, whole ones once; or, without a network, out of it.

The Hub is asked first, and once, what there is: so that a network that is gone, a token that is wrong, or a name that
does not exist is known within seconds. The client itself waits without end there (its `timeout` is None).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from factory.errors import FactoryError, ModelError
from factory.files.disk import DiskError, free_bytes
from factory.hub.failures import hub_errors, told, without_token
from factory.hub.names import Asked
from factory.progress import Progress
from factory.wording import size

_LOG = logging.getLogger(__name__)
ANSWER_S = 10.0  # what the Hub may take to say what it has


def download(
    asked: Asked,
    patterns: Sequence[str],
    *,
    without: Sequence[str] = (),
    progress: Progress | None = None,
    most_bytes: int | None = None,
    raises: type[FactoryError] = ModelError,
) -> Path:
    """The folder of the Hub's cache that holds the files of those patterns; it is named as the commit is.

    Where the Hub cannot be had the cache is used, if it holds them. A download that broke off goes on with the files
    that are not whole yet. Raises `raises` with what is wrong and how to mend it, or where more than `most_bytes` would
    have to be fetched; DiskError where it does not fit.
    """
    from huggingface_hub import HfApi, snapshot_download

    where: dict[str, Any] = {"repo_id": asked.repository, "repo_type": asked.kind, "revision": asked.revision}
    wanted: dict[str, Any] = {"allow_patterns": list(patterns), "ignore_patterns": list(without)}
    try:
        info = HfApi().repo_info(**where, timeout=ANSWER_S, files_metadata=True)
    except Exception as error:
        cached, partly = (None, False) if _is_known(error) else _cached(where, wanted)
        if cached is not None:
            if type(error).__name__ != "OfflineModeIsEnabled":  # which is what was asked for
                why = without_token(told(error, asked))
                _LOG.warning("%s: %s; its copy in this machine's cache is used", asked.repository, why)
            return cached
        with hub_errors(replace(asked, partly=partly), raises):
            raise
    missing = _missing_bytes(asked, info, wanted)
    if most_bytes is not None and missing > most_bytes:
        named = " and ".join(patterns)
        raise raises(f"{asked.head}: {named} there are {size(missing)}, more than anybody's; nothing of it was fetched")
    _require_room(asked, missing)
    with hub_errors(replace(asked, reached=True), raises):
        bars = _bars(progress, f"downloading {asked.repository}", missing) if progress is not None else None
        return Path(snapshot_download(**where, **wanted, tqdm_class=bars))


def diagnose(asked: Asked, raises: type[FactoryError]) -> None:
    """Raises what is wrong with a repository that another library is to read; nothing where the Hub gives it out.

    What a gated repository holds may be listed by everyone, so one of its files is asked for too.
    """
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    with hub_errors(asked, raises):
        info: Any = HfApi().repo_info(asked.repository, repo_type=asked.kind, revision=asked.revision, timeout=ANSWER_S)
        names = sorted(
            (file.rfilename for file in info.siblings or []), key=lambda name: name.startswith((".", "README"))
        )
        for name in names[:1]:
            url = hf_hub_url(asked.repository, name, repo_type=asked.kind, revision=asked.revision)
            get_hf_file_metadata(url, timeout=ANSWER_S)


def _is_known(error: Exception) -> bool:
    """Whether the Hub's answer holds whatever lies in the cache."""
    return type(error).__name__ in ("RevisionNotFoundError", "HFValidationError")


def _cached(where: dict[str, Any], wanted: dict[str, Any]) -> tuple[Path | None, bool]:
    """What the cache holds of it; or None, and whether it holds a part."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(**where, **wanted, local_files_only=True)), True
    except LocalEntryNotFoundError as error:
        return None, type(error) is not LocalEntryNotFoundError  # the other kind: a snapshot that is not whole
    except ValueError:  # no name that the Hub could know
        return None, False


def _missing_bytes(asked: Asked, info: Any, wanted: dict[str, Any]) -> int:
    """Bytes of the wanted files that the cache has not."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils._paths import filter_repo_objects

    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return sum(
        sizes[name]
        for name in filter_repo_objects(sizes, **wanted)
        if not isinstance(try_to_load_from_cache(asked.repository, name, revision=info.sha, repo_type=asked.kind), str)
    )


def _require_room(asked: Asked, missing: int) -> None:
    from huggingface_hub import constants

    free = free_bytes(Path(constants.HF_HUB_CACHE))
    if free is not None and missing > free:
        raise DiskError(
            f"{asked.head}: it needs {size(missing)} of disk, and {size(free)} are free in {constants.HF_HUB_CACHE}; "
            "make room there, or let HF_HOME name a folder on a larger disk"
        )


def _bars(progress: Progress, what: str, total: int) -> type:
    """A tqdm that draws nothing and tells `progress` how many bytes there are, of all files together."""
    from tqdm.std import tqdm

    unit, divisor = ("MB", 1_000_000) if total >= 10_000_000 else ("kB", 1_000)
    lock, done = threading.Lock(), 0

    class Bars(tqdm):  # type: ignore[misc,type-arg,unused-ignore]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            # Of the two counts of bytes, received and written, the latter is there for every kind of storage.
            self._counts = settings.get("unit") == "B" and settings.get("desc") != "Downloading bytes"
            super().__init__(*arguments, **{**settings, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal done
            if self._counts:
                with lock:  # files are fetched by several threads
                    done += int(n or 0)
                    progress(min(done, total) // divisor, max(total, done) // divisor, f"{what}, {unit}")

    return Bars
