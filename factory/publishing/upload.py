"""The sending: what the repository holds already stays, what changed goes up, and all of it is one commit.

Large files go first, one by one. What arrived whole is kept on the Hub though nothing is committed yet, so the same
command goes on after a break. Files are compared by the names that the Hub has for their bytes: publishing again what
is published sends nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.hub import Asked, hub_errors
from factory.hub.writing import write_errors
from factory.progress import Progress
from factory.publishing.contents import CARD, MANIFEST, PLOTS, RECORDS, Entry, in_repository
from factory.publishing.gate import PublishError

ANSWER_S = 10.0  # what the Hub may take to say what is there
_ALONE_BYTES = 1_000_000  # a file of this size is sent by itself, and counted
_NOBODYS = (".gitattributes", ".gitignore", CARD, "LICENSE", "LICENSE.md", "LICENSE.txt")  # no sign of another model


@dataclass(frozen=True)
class Place:
    """Where a drafter is to be published, and how."""

    repository: str
    revision: str | None = None  # a branch, made where there is none; None is main
    pull_request: bool = False
    private: bool = False  # of a repository that is made for it
    message: str | None = None


@dataclass(frozen=True)
class Sent:
    """What became of it. `commit` is the newest of that place, whether it was made now or not."""

    url: str
    commit: str
    pull_request: str | None
    files: int
    bytes: int
    removed: int

    @property
    def changed(self) -> bool:
        """Whether anything was sent."""
        return bool(self.files or self.removed)

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        counts = {"files": self.files, "bytes": self.bytes, "removed": self.removed, "changed": self.changed}
        return {"url": self.url, "commit": self.commit, "pull_request": self.pull_request, **counts}


@dataclass(frozen=True)
class _There:
    """What a revision holds: the names of its files' bytes, and whether those are sha256 (of large files)."""

    commit: str
    names: Mapping[str, tuple[str, bool]]
    public: bool = False

    def has(self, entry: Entry) -> bool:
        found = self.names.get(entry.path)
        return found is not None and found[0] == (entry.sha256 if found[1] else entry.git_name)


def sign_in(place: Place) -> str:
    """The account that the token of this machine is of. Raises PublishError where there is none, or no network."""
    from huggingface_hub import HfApi

    _require_sense(place)
    with hub_errors(Asked(place.repository, deed="publish", writes=True), PublishError):
        return str(HfApi().whoami()["name"])


def send(entries: Sequence[Entry], place: Place, account: str, progress: Progress) -> Sent:
    """Publish files, as one commit. Raises PublishError, which says what is wrong and how to mend it."""
    from huggingface_hub import HfApi

    api = HfApi()
    asked = Asked(place.repository, deed="publish", writes=True, reached=True)
    with write_errors(asked, account, PublishError), _no_bars():
        there = _opened(api, place, account)
        changed = [entry for entry in entries if not there.has(entry)]
        gone = _gone(api, place, there, entries)
        if changed and place.pull_request:
            proposed = _proposed(api, place, account, entries)
            if proposed is not None:
                return proposed
        if not changed and not gone:
            return Sent(_url(api, place), there.commit, None, 0, 0, 0)
        return _commit(api, place, there, changed, gone, progress)


def _require_sense(place: Place) -> None:
    if place.pull_request and place.revision:
        raise PublishError("--pr opens a branch of its own: leave --revision out, or --pr")
    if place.message is not None and not place.message.strip():
        raise PublishError("--message: wants words; leave it out for the usual ones")


def _opened(api: Any, place: Place, account: str) -> _There:
    """The revision to commit to, made where it is not there. Raises PublishError where it holds something else."""
    there = _there(api, place, None)
    if there is None:
        if place.pull_request:
            raise PublishError(
                f"{place.repository}: no such repository to propose to, or none that {account} may see; leave --pr out "
                "to make it"
            )
        api.create_repo(place.repository, private=place.private or None, exist_ok=True)
        there = _there(api, place, None) or _There("", {})
    elif place.private and there.public:
        raise PublishError(
            f"{place.repository}: is public already, and --private is for a new one; make it private in its settings "
            "on the Hub first, or leave --private out"
        )
    if place.revision is not None:
        branch = _there(api, place, place.revision)
        if branch is None:
            _require_ours(place, there)  # which the branch begins as
            api.create_branch(place.repository, branch=place.revision, exist_ok=True)
            branch = _there(api, place, place.revision)
        there = branch or there
    _require_ours(place, there)
    return there


def _require_ours(place: Place, there: _There) -> None:
    """Raises PublishError where a revision holds what was not published from here."""
    others = sorted(set(there.names) - set(_NOBODYS))
    if MANIFEST not in there.names and others:
        where = f"{place.repository}, branch {place.revision}" if place.revision else place.repository
        raise PublishError(
            f"{where}: holds something that was not published from here ({others[0]} and no {MANIFEST}), which "
            "would be overwritten; give another name, or remove its files first"
        )


def _there(api: Any, place: Place, revision: str | None) -> _There | None:
    """What is there; None where there is no such repository, or no such revision of it."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.model_info(place.repository, revision=revision, files_metadata=True, timeout=ANSWER_S)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:  # to whom it knows, the Hub says 404
            raise
        return None
    except RevisionNotFoundError:
        return None
    names = {
        file.rfilename: (file.lfs.sha256, True) if file.lfs else (file.blob_id, False) for file in info.siblings or []
    }
    return _There(info.sha or "", names, public=info.private is False)


def _gone(api: Any, place: Place, there: _There, entries: Sequence[Entry]) -> list[str]:
    """What an earlier publication brought and this one no longer has. Files of other origin stay."""
    kept = {entry.path for entry in entries}
    candidates = [path for path in there.names if path not in kept]
    if not candidates:
        return []
    brought = _brought(api, place, there)
    return [path for path in sorted(candidates) if path.startswith((RECORDS, PLOTS)) or path in brought]


def _brought(api: Any, place: Place, there: _There) -> set[str]:
    """The files that the manifest there lists, as they stand in the repository."""
    if MANIFEST not in there.names:
        return set()
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(place.repository, MANIFEST, revision=there.commit, local_dir=folder)
        with suppress(ValueError, KeyError, TypeError, AttributeError):  # what lies there may be anybody's
            return {in_repository(name) for name in json.loads(Path(path).read_text(encoding="utf-8"))["files"]}
    return set()


def _proposed(api: Any, place: Place, account: str, entries: Sequence[Entry]) -> Sent | None:
    """An open pull request of this account that already holds just that."""
    found = api.get_repo_discussions(place.repository, discussion_type="pull_request", discussion_status="open")
    for one in found:
        if one.author == account:
            there = _there(api, place, one.git_reference)
            if there is not None and all(there.has(entry) for entry in entries):
                return Sent(_url(api, place), there.commit, one.url, 0, 0, 0)
    return None


def _commit(
    api: Any, place: Place, there: _There, changed: Sequence[Entry], gone: Sequence[str], progress: Progress
) -> Sent:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    where: dict[str, Any] = {"repo_id": place.repository, "revision": place.revision, "create_pr": place.pull_request}
    adds = {entry.path: CommitOperationAdd(entry.path, entry.source) for entry in changed}
    total = sum(entry.size for entry in changed)
    unit, divisor = ("MB", 1_000_000) if total >= 10 * _ALONE_BYTES else ("kB", 1_000)
    done = 0
    for entry in changed:
        if entry.size >= _ALONE_BYTES:
            progress(done // divisor, total // divisor, f"sending to {place.repository} ({unit}), {entry.path}")
            api.preupload_lfs_files(**where, additions=[adds[entry.path]], free_memory=False)
        done += entry.size
    progress(done // divisor, total // divisor, f"sending to {place.repository} ({unit})")
    made = api.create_commit(
        **where,
        operations=[*adds.values(), *(CommitOperationDelete(path, is_folder=False) for path in gone)],
        commit_message=place.message or f"Publish the drafter {place.repository.partition('/')[2]}",
        parent_commit=there.commit or None,
    )
    return Sent(_url(api, place), str(made.oid), made.pr_url, len(changed), total, len(gone))


def _url(api: Any, place: Place) -> str:
    return f"{api.endpoint}/{place.repository}" + (f"/tree/{place.revision}" if place.revision else "")


@contextmanager
def _no_bars() -> Iterator[None]:
    """The client's own bars are off meanwhile: progress has one display."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()
