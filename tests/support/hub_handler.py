"""The HTTP of the tests' Hub: what each endpoint answers. `hub_server.py` says who it is for and how to use it."""

from __future__ import annotations

import base64
import json
import re
import socket
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_store import Blob, MalformedError, MovedError, RefusalError, Repository, Request, front_matter

if TYPE_CHECKING:
    from hub_server import HubServer, User

LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "other")  # some of those that the Hub knows
PREFIXES = {"models": "model", "datasets": "dataset", "spaces": "space"}


class Handler(BaseHTTPRequestHandler):
    """One connection. Routes are regular expressions over the path, in the order of `ROUTES`."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Nothing is printed: `hub.requests` has it."""

    def _handle(self) -> None:
        self.read_bytes = 0
        if not self.hub.listens:  # a connection that was kept alive
            self._cut()
            return
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.body: bytes | None = None
        matched = (
            (route, found)
            for method, pattern, route in ROUTES
            if self.command in method.split("|") and (found := re.fullmatch(pattern, parts.path))
        )
        route, found = next(matched, ("", None))
        if found is None:
            self._body()
            self._refuse(RefusalError(404, f"no route for {self.command} {parts.path}"))
            return
        try:
            if route != "upload":  # that one may break off while it reads
                self._body()
            if self.hub.meanwhile and self.hub.meanwhile[0] in self.path:
                happens, self.hub.meanwhile = self.hub.meanwhile[1], None
                happens()
            if self.hub.answer and self.hub.answer[0] in self.path:
                raise RefusalError(self.hub.answer[1], "said by the test")
            groups = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
            with self.hub.lock:
                self.user = self._user()
                getattr(self, f"_{route}")(**groups)
        except RefusalError as refusal:
            self._refuse(refusal)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _handle  # noqa: N815 - the names that http.server calls

    # -- what requests have in common

    def _body(self, limit: int | None = None) -> bytes:
        """The whole body; of a limit only so many bytes."""
        if self.body is None:
            length = int(self.headers.get("Content-Length") or 0)
            pieces = []
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                while (size := int(self.rfile.readline().split(b";")[0], 16)) > 0:
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
            else:
                pieces.append(self.rfile.read(length if limit is None else min(length, limit)))
            self.body = b"".join(pieces)
            self.read_bytes = len(self.body)
        return self.body

    def _object(self) -> dict[str, Any]:
        found = json.loads(self._body() or b"{}")
        assert isinstance(found, dict)
        return found

    def _log(self, status: int) -> None:
        authorized = "Authorization" in self.headers
        self.hub.requests.append(Request(self.command, self.path, authorized, self.read_bytes, status))

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self._log(status)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, refusal: RefusalError) -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": refusal.message}
        headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
        headers |= {"X-Repo-Commit": refusal.commit} if refusal.commit else {}
        self._send(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)

    def _cut(self) -> None:
        """End the connection in the middle, as a network does."""
        self._log(0)
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    # -- who may

    def _user(self) -> User | None:
        """Whose request it is. A token that nobody has is refused everywhere, as on the Hub."""
        given = self.headers.get("Authorization")
        if given is None:
            return None
        user = self.hub.tokens.get(given.removeprefix("Bearer "))
        if user is None:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return user

    def _find(self, kind: str, name: str) -> Repository:
        repository = self.hub.repositories.get((kind, name))
        mine = self.user is not None and repository is not None and self._may_read(self.user, repository)
        if repository is None or (repository.private and not mine):
            status, said = (
                (401, "Invalid username or password.") if self.user is None else (404, "Repository not found")
            )
            raise RefusalError(status, said, "RepoNotFound")
        return repository

    def _may_read(self, user: User, repository: Repository) -> bool:
        return repository.name.split("/")[0] in (user.name, *user.writes) or user.name in repository.readers

    def _writable(self, kind: str, name: str, pull_request: bool = False) -> Repository:
        repository = self._find(kind, name)
        if self.user is None:
            raise RefusalError(401, "Invalid username or password.")
        if not self.user.writes:
            raise RefusalError(403, "Forbidden: you must use a write token to upload to a repository.")
        if not pull_request and name.split("/")[0] not in self.user.writes:
            raise RefusalError(403, f"Authorization error: you don't have write access to {name}")
        return repository

    def _tip(self, repository: Repository, revision: str) -> str:
        found = repository.find(revision)
        if found is None:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # -- accounts and repositories

    def _root(self) -> None:
        self._send(200, b"", {})

    def _whoami(self) -> None:
        if self.user is None:
            raise RefusalError(401, "Invalid username or password.")
        organizations = [{"name": name} for name in self.user.writes if name != self.user.name]
        access = {"accessToken": {"role": "write" if self.user.writes else "read"}}
        self._json({"type": "user", "name": self.user.name, "orgs": organizations, "auth": access})

    def _create(self) -> None:
        asked = self._object()
        kind = asked.get("type") or "model"
        if self.user is None:
            raise RefusalError(401, "Invalid username or password.")
        owner = asked.get("organization") or self.user.name
        name = f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if owner not in self.user.writes:
            raise RefusalError(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        if (kind, name) in self.hub.repositories:
            self._json({"error": f"You already created this {kind} repo", "url": url}, 409)
            return
        self.hub.add(name, kind=kind, private=asked.get("visibility") == "private")
        self._json({"url": url, "name": name})

    def _info(self, kind: str, name: str, revision: str = "main") -> None:
        repository = self._find(PREFIXES[kind], name)
        self._tip(repository, revision)
        self._json(repository.record(revision, "blobs" in self.query))

    def _tree(self, kind: str, name: str, revision: str, path: str = "") -> None:
        repository = self._find(PREFIXES[kind], name)
        files = repository.commits[self._tip(repository, revision)].files
        under = f"{path}/" if path else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for file, blob in sorted(files.items()):
            if not file.startswith(under):
                continue
            steps = file[len(under) :].split("/")
            for depth in range(1, len(steps)):
                folder = under + "/".join(steps[:depth])
                if recursive or depth == 1:
                    entries.setdefault(folder, {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0})
            if recursive or len(steps) == 1:
                entries[file] = blob.entry(file)
        if path and not entries:
            raise RefusalError(404, f"{path} does not exist", "EntryNotFound")
        self._json(list(entries.values()))

    def _paths(self, kind: str, name: str, revision: str) -> None:
        repository = self._find(PREFIXES[kind], name)
        files = repository.commits[self._tip(repository, revision)].files
        asked = parse_qs(self._body().decode()).get("paths", [])
        self._json([files[path].entry(path) for path in asked if path in files])

    def _refs(self, kind: str, name: str) -> None:
        repository = self._find(PREFIXES[kind], name)
        listed = [
            {"name": ref, "ref": ref if ref.startswith("refs/") else f"refs/heads/{ref}", "targetCommit": oid}
            for ref, oid in repository.refs.items()
        ]
        branches = [one for one in listed if one["ref"].startswith("refs/heads/")]
        pulls = [one for one in listed if one not in branches]
        self._json({"branches": branches, "converts": [], "tags": [], "pullRequests": pulls})

    def _branch(self, kind: str, name: str, branch: str) -> None:
        repository = self._writable(PREFIXES[kind], name)
        if branch in repository.refs:
            raise RefusalError(409, f"Reference already exists: refs/heads/{branch}")
        repository.refs[branch] = self._tip(repository, self._object().get("startingPoint") or "main")
        self._json({"success": True})

    def _discussions(self, kind: str, name: str) -> None:
        repository = self._find(PREFIXES[kind], name)
        pulls = [ref for ref in repository.refs if ref.startswith("refs/pr/")]
        listed = [self._discussion(repository, int(ref.rsplit("/", 1)[1])) for ref in pulls]
        self._json({"discussions": listed, "count": len(listed), "start": 0})

    def _discussion_details(self, kind: str, name: str, number: str) -> None:
        repository = self._find(PREFIXES[kind], name)
        if f"refs/pr/{number}" not in repository.refs:
            raise RefusalError(404, f"no discussion {number}")
        changes = {"base": "refs/heads/main", "mergeCommitId": None}
        self._json({**self._discussion(repository, int(number)), "changes": changes, "filesWithConflicts": []})

    def _discussion(self, repository: Repository, number: int) -> dict[str, Any]:
        summary = repository.commits[repository.refs[f"refs/pr/{number}"]].summary
        facts = {"title": summary, "num": number, "status": "open", "createdAt": "2026-01-01T00:00:00.000Z"}
        named = {"name": repository.name, "type": repository.kind}
        return {
            **facts,
            "isPullRequest": True,
            "author": {"name": repository.authors[number]},
            "repo": named,
            "events": [],
        }

    # -- files out

    def _resolve(self, name: str, revision: str, path: str, kind: str = "models") -> None:
        repository = self._find(PREFIXES[kind], name)
        if repository.gated and not (self.user and self._may_read(self.user, repository)):
            said = f"Access to model {name} is restricted."
            raise RefusalError(401 if self.user is None else 403, said, "GatedRepo")
        tip = self._tip(repository, revision)
        blob = repository.commits[tip].files.get(path)
        if blob is None:
            raise RefusalError(404, "Entry not found", "EntryNotFound", tip)
        headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": tip, "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        data, status, total = blob.data, 200, len(blob.data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            begin, end = int(asked[1]), int(asked[2]) if asked[2] else total - 1
            if begin >= total:
                raise RefusalError(416, "Range not satisfiable")
            data, status = data[begin : end + 1], 206
            headers["Content-Range"] = f"bytes {begin}-{min(end, total - 1)}/{total}"
        cut = self.hub.cut_download
        if self.command == "GET" and cut and len(data) > cut.after_bytes and cut.strikes():
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data[: cut.after_bytes])
            self._cut()
            return
        self._send(status, data, headers)

    # -- files in

    def _validate_yaml(self) -> None:
        content = self._object()["content"]
        try:
            found = front_matter(content)
        except yaml.YAMLError as error:
            self._json({"errors": [{"message": f"YAML: {error}"}], "warnings": []}, 400)
            return
        licence = (found or {}).get("license")
        if licence is not None and licence not in LICENCES:
            known = ", ".join(LICENCES)
            self._json({"errors": [{"message": f'"license" must be one of [{known}]'}], "warnings": []}, 400)
            return
        warned = [] if found else [{"message": "empty or missing yaml metadata in repo card"}]
        self._json({"errors": [], "warnings": warned})

    def _preupload(self, kind: str, name: str, revision: str) -> None:
        repository = self._writable(PREFIXES[kind], name, "create_pr" in self.query)
        files = repository.commits[self._tip(repository, revision)].files
        answers = []
        for file in self._object()["files"]:
            path, sample = file["path"], base64.b64decode(file["sample"])
            known = files.get(path)
            mode = repository.upload_mode(path, file["size"], sample)
            answers.append(
                {"path": path, "uploadMode": mode, "shouldIgnore": False, **({"oid": known.etag} if known else {})}
            )
        self._json({"files": answers})

    def _batch(self, name: str) -> None:
        repository = self._writable("model", name, pull_request=True)  # whoever may propose may upload
        asked = self._object()
        answers = []
        for one in asked["objects"]:
            if one["oid"] in repository.objects:
                answers.append({"oid": one["oid"], "size": one["size"]})  # no action: it is there
                continue
            upload = {"href": f"{self.hub.url}/_lfs/upload/{name}/{one['oid']}", "header": {}}
            verify = {"href": f"{self.hub.url}/_lfs/verify/{name}/{one['oid']}", "header": {}}
            actions = {"upload": upload, "verify": verify}
            answers.append({"oid": one["oid"], "size": one["size"], "actions": actions})
        self._json({"transfer": "basic", "objects": answers, "hash_algo": "sha256"})

    def _upload(self, name: str, oid: str) -> None:
        cut = self.hub.cut_upload
        if cut and cut.strikes():
            self._body(cut.after_bytes)
            self._cut()
            return
        blob = Blob(self._body(), lfs=True)
        if blob.sha256 != oid:
            raise RefusalError(400, "the bytes are not those that were announced")
        self.hub.repository(name).objects[oid] = blob.data
        self._send(200, b"", {"ETag": f'"{oid}"'})

    def _verify(self, name: str, oid: str) -> None:
        there = self.hub.repository(name).objects.get(oid)
        if there is None or len(there) != self._object()["size"]:
            raise RefusalError(404, "no such object")
        self._json({"success": True})

    def _commit(self, kind: str, name: str, revision: str) -> None:
        pull_request = "create_pr" in self.query
        repository = self._writable(PREFIXES[kind], name, pull_request)
        self._tip(repository, revision)
        lines = [json.loads(line) for line in self._body().splitlines() if line]
        try:
            oid, ref = repository.commit(revision, lines, pull_request)
        except MovedError:
            raise RefusalError(412, "A commit has happened since. Please refresh and try again.") from None
        except MalformedError as error:
            raise RefusalError(400, str(error)) from None
        made = {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "hookOutput": ""}
        number = int(ref.rsplit("/", 1)[1]) if ref else 0
        if ref and self.user:
            repository.authors[number] = self.user.name
        self._json({**made, "pullRequestUrl": f"{self.hub.url}/{name}/discussions/{number}" if ref else None})


_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
ROUTES = (
    ("GET|HEAD", r"/", "root"),
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", _API + r"/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", _API + r"/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", _API + r"/branch/(?P<branch>[^/]+)", "branch"),
    ("POST", _API + r"/paths-info/(?P<revision>[^/]+)", "paths"),
    ("GET", _API + r"/refs", "refs"),
    ("GET", _API + r"/discussions", "discussions"),
    ("GET", _API + r"/discussions/(?P<number>\d+)", "discussion_details"),
    ("GET", _API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("GET", _API + r"/revision/(?P<revision>[^/]+)", "info"),
    ("GET", _API, "info"),
    ("POST", r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/_lfs/upload/(?P<name>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})", "upload"),
    ("POST", r"/_lfs/verify/(?P<name>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})", "verify"),
    (
        "GET|HEAD",
        r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        "resolve",
    ),
)
