"""What the tests' Hub keeps: repositories with commits, branches, pull requests and LFS objects. No HTTP here."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

# As the Hub's own .gitattributes has it, for what a drafter's repository can hold.
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".gz", ".zip", ".parquet")
LFS_FROM_BYTES = 10_000_000  # the Hub takes what is larger as LFS, whatever its name


def git_oid(data: bytes, kind: str = "blob") -> str:
    """The name that git gives to bytes."""
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(data)) + data).hexdigest()


@dataclass(frozen=True)
class Request:
    """One request that arrived."""

    method: str
    path: str
    authorized: bool
    body_bytes: int
    answered: int  # the status; 0 where the connection was cut


@dataclass(frozen=True)
class Blob:
    """One file of one commit."""

    data: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git itself holds of an LFS file."""
        version = "https://git-lfs.github.com/spec/v1"
        return f"version {version}\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @property
    def oid(self) -> str:
        """The git name: of the pointer where the file is LFS."""
        return git_oid(self.pointer if self.lfs else self.data)

    @property
    def etag(self) -> str:
        """What `resolve` answers: the sha256 of an LFS file, the git name of another."""
        return self.sha256 if self.lfs else self.oid

    def entry(self, path: str) -> dict[str, Any]:
        """As `tree` and `paths-info` list it."""
        lfs = {"oid": self.sha256, "size": len(self.data), "pointerSize": len(self.pointer)}
        return {
            "type": "file",
            "path": path,
            "oid": self.oid,
            "size": len(self.data),
            **({"lfs": lfs} if self.lfs else {}),
        }


@dataclass(frozen=True)
class Commit:
    """A tree and where it came from."""

    files: Mapping[str, Blob]
    parent: str | None
    summary: str
    description: str = ""

    @property
    def oid(self) -> str:
        listing = [f"{path} {blob.oid}" for path, blob in sorted(self.files.items())]
        return git_oid("\n".join([str(self.parent), self.summary, self.description, *listing]).encode(), "commit")


class MovedError(Exception):
    """The branch has a commit that the writer did not know of."""


class MalformedError(Exception):
    """A commit that the Hub refuses, with the reason."""


class RefusalError(Exception):
    """An answer that is an error, with the headers that the client tells errors apart by."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit


@dataclass
class Repository:
    """One repository. It begins with a commit that holds .gitattributes, as the Hub's do."""

    kind: str
    name: str
    private: bool = False
    gated: bool = False  # then only `readers` get files
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branch, or refs/pr/1, to commit
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS objects that arrived, committed or not
    authors: dict[int, str] = field(default_factory=dict)  # of pull requests

    def __post_init__(self) -> None:
        lines = [f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES]
        self.keep("main", Commit({".gitattributes": Blob("".join(lines).encode())}, None, "initial commit"))

    def keep(self, ref: str, commit: Commit) -> str:
        """Put a commit at the tip of a branch."""
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit.oid

    def find(self, revision: str) -> str | None:
        """The commit that a branch, a pull request or the beginning of a name means."""
        if revision in self.refs:
            return self.refs[revision]
        return next((oid for oid in self.commits if len(revision) >= 7 and oid.startswith(revision)), None)

    def files(self, revision: str = "main") -> Mapping[str, Blob]:
        """The tree of a revision, for a test to look into."""
        found = self.find(revision)
        assert found is not None, f"{self.name} has no revision {revision}"
        return self.commits[found].files

    def history(self, revision: str = "main") -> list[Commit]:
        """Newest first."""
        found, commits = self.find(revision), []
        while found is not None:
            commits.append(self.commits[found])
            found = commits[-1].parent
        return commits

    def upload_mode(self, path: str, size: int, sample: bytes) -> str:
        """`lfs` or `regular`. Binary files are LFS on the Hub too, where they are not tiny."""
        binary = b"\0" in sample and size > 0
        return "lfs" if path.endswith(LFS_SUFFIXES) or size > LFS_FROM_BYTES or binary else "regular"

    def commit(self, base: str, lines: list[dict[str, Any]], pull_request: bool) -> tuple[str, str | None]:
        """Carry out a commit's lines: its name, and the ref of the pull request where one was opened.

        Raises MovedError where the header names another parent than the tip, MalformedError for a line that cannot be.
        """
        header = lines[0]["value"]
        parent = self.find(base)
        assert parent is not None
        if header.get("parentCommit") not in (None, parent):
            raise MovedError
        files = dict(self.commits[parent].files)
        for line in lines[1:]:
            key, value = line["key"], line["value"]
            path = value["path"]
            if key == "file":
                files[path] = Blob(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.objects:
                    raise MalformedError(f"LFS pointer of {path} points to a file that does not exist")
                files[path] = Blob(self.objects[value["oid"]], lfs=True)
            elif key == "deletedFile":
                if files.pop(path, None) is None:
                    raise MalformedError("A file with this name doesn't exist")
            elif key == "deletedFolder":
                files = {name: blob for name, blob in files.items() if not name.startswith(path.rstrip("/") + "/")}
            else:
                raise MalformedError(f"unknown operation {key}")
        made = Commit(files, parent, header["summary"], header.get("description", ""))
        ref = f"refs/pr/{sum(name.startswith('refs/pr/') for name in self.refs) + 1}" if pull_request else None
        return self.keep(ref or base, made), ref

    def record(self, revision: str, blobs: bool) -> dict[str, Any] | None:
        """As the API describes the repository at a revision; None where there is no such."""
        found = self.find(revision)
        if found is None:
            return None
        siblings = []
        for path, blob in sorted(self.commits[found].files.items()):
            entry: dict[str, Any] = {"rfilename": path}
            if blobs:
                listed = blob.entry(path)
                entry |= {"size": listed["size"], "blobId": listed["oid"]}
                if blob.lfs:
                    lfs = listed["lfs"]
                    entry["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
            siblings.append(entry)
        readme = self.commits[found].files.get("README.md")
        card = front_matter(readme.data.decode()) if readme else None
        return {
            "_id": git_oid(self.name.encode())[:24],
            "id": self.name,
            "modelId": self.name,
            "sha": found,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "tags": list((card or {}).get("tags") or []),
            "siblings": siblings,
            **({"cardData": card} if card else {}),
        }


def front_matter(text: str) -> dict[str, Any] | None:
    """The YAML at the head of a card; None where there is none. Raises yaml.YAMLError."""
    if not text.startswith("---\n") or "\n---\n" not in text[4:]:
        return None
    found = yaml.safe_load(text[4 : text.index("\n---\n", 3)])
    return found if isinstance(found, dict) else None
