"""A Hub on this machine, for tests: the endpoints that huggingface_hub's real client calls, over real HTTP.

    with HubServer() as hub:
        hub.point_client(monkeypatch, home)               # this process: constants of the client are patched
        subprocess.run(..., env=hub.environment(home))    # another process: HF_ENDPOINT and the rest

The client reads HF_ENDPOINT once, when it is imported. `point_client` patches the few constants that come from it (the
client looks them up at each call) and nothing else: what talks to this server is the client as it is installed. Xet is
switched off both ways, since its protocol is not spoken here.

Who may do what: `hub.tokens` maps tokens to `User`s; a user writes in the namespaces of `writes`. A `Repository` may be
private or gated. Faults: `cut_upload` and `cut_download` break connections, `answer` gives one status to everything
whose path holds a text; `meanwhile` is called before the first request whose path holds a text is answered, as if
somebody else were at work. `hub.requests` has every request, with whether a token came along, never the token.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hub_handler import Handler
from hub_store import Blob, Commit, Repository, Request


@dataclass(frozen=True)
class User:
    """Whose token it is, and the namespaces that it may write to; `writes=()` is a token that only reads."""

    name: str
    writes: tuple[str, ...] = ()


@dataclass
class Cut:
    """Which transfers break off, counted from 1, and after how many bytes of theirs."""

    first: int
    after_bytes: int
    times: int = 10**9
    seen: int = 0

    def strikes(self) -> bool:
        """Count one transfer; whether it is to break."""
        self.seen += 1
        return self.first <= self.seen < self.first + self.times


class HubServer:
    """The server. A context manager: it listens on a free port of this machine between enter and exit."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.tokens: dict[str, User] = {}
        self.requests: list[Request] = []
        self.cut_upload: Cut | None = None
        self.cut_download: Cut | None = None
        self.answer: tuple[str, int] | None = None
        self.meanwhile: tuple[str, Callable[[], object]] | None = None
        self.lock = threading.RLock()
        self.listens = True
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> HubServer:
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Be gone, with all connections; a second time does nothing."""
        if self.listens and self._server is not None:
            self.listens = False
            self._server.shutdown()
            self._server.server_close()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes] | None = None, kind: str = "model", **facts: Any) -> Repository:
        """A repository that is there already, with a commit of files; the larger half of its facts as keywords."""
        repository = self.repositories[kind, name] = Repository(kind, name, **facts)
        if files:
            blobs = {
                path: Blob(data, repository.upload_mode(path, len(data), data[:512]) == "lfs")
                for path, data in files.items()
            }
            repository.objects |= {blob.sha256: blob.data for blob in blobs.values() if blob.lfs}
            tip = repository.refs["main"]
            repository.keep("main", Commit({**repository.files(), **blobs}, tip, "files"))
        return repository

    def repository(self, name: str, kind: str = "model") -> Repository:
        """One that must be there."""
        return self.repositories[kind, name]

    def user(self, name: str, token: str, *organizations: str, reads_only: bool = False) -> str:
        """Let a token in; it writes to the user's own namespace and those of organizations. Gives the token back."""
        self.tokens[token] = User(name, () if reads_only else (name, *organizations))
        return token

    def seen(self, method: str, text: str = "") -> list[Request]:
        """The requests of a method whose path holds a text."""
        return [one for one in self.requests if one.method == method and text in one.path]

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """What a process needs in its environment so that its client talks to this server, with a cache of its own."""
        chosen = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        return {**chosen, "HF_HUB_DISABLE_TELEMETRY": "1", **({"HF_TOKEN": token} if token else {})}

    def point_client(self, patch: Any, home: Path, token: str | None = None) -> None:
        """Make the client of this process talk to this server; `patch` is pytest's MonkeyPatch, which undoes it."""
        from huggingface_hub import close_session, constants, hf_api

        close_session()  # connections of an earlier server
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        if token:
            patch.setenv("HF_TOKEN", token)
        cache = home / "hub"
        for name, value in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(cache),
            "HUGGINGFACE_HUB_CACHE": str(cache),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            patch.setattr(constants, name, value)
        patch.setattr(hf_api.api, "endpoint", self.url)
        if "transformers.utils.hub" in sys.modules:  # it keeps its first client, of a server that is gone
            patch.setattr(sys.modules["transformers.utils.hub"], "_hf_api", None, raising=False)
