"""`factory pull`: a published drafter becomes an artifact's folder again, every file compared with its manifest.

The Hub's cache holds what was downloaded, so that a pull that broke off goes on. The folder appears at once, when it
is whole; one that is there is never written over.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory import assisted
from factory.artifact import CERTIFICATE, PULLED, Artifact
from factory.errors import ArtifactError
from factory.files.atomic import write_atomically
from factory.files.disk import DiskError, disk_errors, free_bytes
from factory.hub import Asked, download, is_hub_name, require_hub_name
from factory.processes import is_alive
from factory.progress import Progress, silent
from factory.provenance import sha256_file
from factory.publishing.contents import CARD, MANIFEST, RECORDS, in_repository
from factory.publishing.received import EVALUATION, base_model, is_record_of, manifest_in
from factory.wording import size

OUT = Path("artifacts")  # where pulled drafters lie, where nothing else is said
_MOST_RECORDS_BYTES = 100_000_000  # of manifest, evaluations and card: those of a large drafter are a few megabytes


@dataclass(frozen=True)
class Pulled:
    """What a pull did. `new`: the folder was not there; `evaluations`: those that came with it, or came to it."""

    artifact: Artifact
    repository: str
    commit: str
    new: bool
    evaluations: int

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        place = {"artifact": str(self.artifact.folder), "name": self.artifact.name}
        came = {"repository": self.repository, "commit": self.commit}
        return {**place, **came, "new": self.new, "evaluations": self.evaluations}


def pull(repository: str, out: Path, progress: Progress, revision: str | None = None) -> Pulled:
    """The drafter of `user/name` as OUT/name, whole and verified.

    Done again, it brings what was measured meanwhile and nothing else. Raises ModelError for what the Hub refuses or
    cannot be asked; ArtifactError for what is no drafter of this factory, is not what its manifest says, or would
    write over another folder; DiskError.
    """
    require_hub_name(repository, ArtifactError, "drafter")
    if "/" not in repository:
        raise ArtifactError(f"{repository}: wants user/name, as the address of a drafter on the Hub ends")
    asked = Asked(repository, "pull", revision=revision)
    wanted = [f"{RECORDS}*.json", CARD, "config.json"]
    records = download(asked, wanted, progress=silent, most_bytes=_MOST_RECORDS_BYTES)
    commit = records.name
    manifest = manifest_in(records, repository)
    destination = out / repository.rpartition("/")[2]
    there = _there(destination, sha256_file(records / MANIFEST), repository, commit, progress)
    if there is None:
        wanted = [in_repository(relative) for relative in manifest["files"]]
        snapshot = download(Asked(repository, "pull", revision=commit), wanted, progress=progress)
        return _assembled(manifest, snapshot, records, destination, repository, progress)
    with disk_errors(destination):
        before = there.pulled()
        brought = _records(records, destination)
        if before is not None:
            known = [str(name) for name in before["evals"] if name not in brought]
            _keep(destination, repository, commit, base_model(records), [*known, *brought])
        if brought:
            _draw(there, destination, repository)
    return Pulled(there, repository, commit, new=False, evaluations=len(brought))


def fetched(named: Sequence[str], progress: Progress, out: Path = OUT) -> list[Path]:
    """The folders that are meant: those that are here as they are; of user/name on the Hub that in `out`, pulled."""
    return [pull(name, out, progress).artifact.folder if is_hub_name(name) else Path(name) for name in named]


def _there(destination: Path, digest: str, repository: str, commit: str, progress: Progress) -> Artifact | None:
    """The very drafter where it lies there already, sound; None where nothing does. Raises ArtifactError."""
    if not destination.exists():
        return None
    again = "move it away, or give another --out"
    if not (destination / "manifest.json").is_file():
        raise ArtifactError(f"{destination}: exists and is no artifact; {again}")
    found = Artifact.open(destination)
    if found.manifest_digest() != digest:
        before = found.pulled() or {}
        if before.get("repository") == repository:
            had = str(before["commit"])[:12]
            what = f"another version of {repository}, of commit {had} where {commit[:12]} is asked"
        else:
            what = f"another drafter, {found.name}" + (f" of {before['repository']}" if before else ", which was built")
        raise ArtifactError(f"{destination}: holds {what}; nothing is written over: {again}")
    faults = found.faults(progress)
    if faults:
        raise ArtifactError("\n".join([*faults, f"remove {destination} and run the same command again"]))
    return found


def _assembled(
    manifest: dict[str, Any], snapshot: Path, records: Path, destination: Path, repository: str, progress: Progress
) -> Pulled:
    """The folder, made beside its place and moved there when it is whole."""
    with disk_errors(destination.parent):
        _require_room(manifest, snapshot, destination)
    with disk_errors(destination.parent), _working(destination) as working:
        for relative in manifest["files"]:
            _put(snapshot / in_repository(relative), working / relative)
        _put(records / MANIFEST, working / "manifest.json")
        artifact = Artifact.open(working)
        faults = artifact.faults(progress)
        if faults:
            said = [fault.replace(f"{working}/", f"{repository}: ") for fault in faults]
            raise ArtifactError(
                "\n".join([*said, "what was published is not what its manifest says: nothing of it was kept"])
            )
        brought = _records(records, working)
        _keep(working, repository, records.name, base_model(records), brought)
        _draw(artifact, destination, repository)
        try:
            working.rename(destination)
        except OSError as error:
            if destination.exists():  # another pull was quicker
                raise ArtifactError(f"{destination}: was made meanwhile; run the same command again") from error
            raise
    return Pulled(Artifact.open(destination), repository, records.name, new=True, evaluations=len(brought))


def _records(records: Path, folder: Path) -> list[str]:
    """Copy the evaluations of this very manifest that `folder` has not, and a certificate where it has none."""
    digest, brought = sha256_file(folder / "manifest.json"), []
    for path in sorted((records / RECORDS / "evals").glob("*.json")):
        place = folder / "evals" / path.name
        if EVALUATION.fullmatch(path.name) and not place.exists() and is_record_of(path, digest):
            place.parent.mkdir(exist_ok=True)
            _put(path, place)
            brought.append(path.name)
    certificate = records / RECORDS / CERTIFICATE
    if certificate.is_file() and not (folder / CERTIFICATE).exists() and is_record_of(certificate, digest):
        _put(certificate, folder / CERTIFICATE)
    return brought


def _keep(folder: Path, repository: str, commit: str, target: str | None, evals: Sequence[str]) -> None:
    record = {"repository": repository, "commit": commit, "base_model": target, "evals": list(evals)}
    write_atomically(folder / PULLED, json.dumps(record, indent=1) + "\n")


def _draw(artifact: Artifact, named: Path, repository: str) -> None:
    """The card; and the generation settings where an evaluation added them (the manifest's own came with k)."""
    listed = f"model/{assisted.NAME}" in artifact.manifest["files"]
    try:
        settings = artifact.generation_settings()
        if settings is not None and not listed:
            write_atomically(artifact.model_folder / assisted.NAME, settings)
        artifact.write_card(named)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:
        raise ArtifactError(
            f"{repository}: its manifest or one of its evaluations is not as `factory` writes it "
            f"({type(error).__name__}: {error}); it must be published again"
        ) from error


def _put(source: Path, place: Path) -> None:
    """A copy; of weights, which nothing here changes, a second name for the same bytes where the disk allows it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_file():
        return  # the manifest's comparison tells it
    if source.suffix == ".safetensors":
        with suppress(OSError):
            os.link(source.resolve(), place)
            return
    shutil.copyfile(source, place)


def _require_room(manifest: dict[str, Any], snapshot: Path, destination: Path) -> None:
    """Raises DiskError where the weights must be copied onto another disk, and do not fit there."""
    files = [snapshot / in_repository(relative) for relative in manifest["files"]]
    place = destination.parent
    place.mkdir(parents=True, exist_ok=True)
    needed = sum(file.stat().st_size for file in files if file.is_file() and file.stat().st_dev != place.stat().st_dev)
    free = free_bytes(place)
    if free is not None and needed > free:
        raise DiskError(f"{place}: {size(needed)} are needed and {size(free)} are free; give another --out")


@contextmanager
def _working(destination: Path) -> Iterator[Path]:
    """A folder to make it in, gone afterwards; and so are those of pulls that were killed."""
    place = destination.parent / ".cache" / "pulling"
    place.mkdir(parents=True, exist_ok=True)
    for old in place.glob(f"{destination.name}.*"):
        process = old.name.rpartition(".")[2]
        if process.isdecimal() and not is_alive(int(process)):
            shutil.rmtree(old, ignore_errors=True)
    working = place / f"{destination.name}.{os.getpid()}"
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir()
    try:
        yield working
    finally:
        shutil.rmtree(working, ignore_errors=True)
