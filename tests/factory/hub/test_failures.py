"""What the real client meets on its way, over HTTP, and the one line that a user reads of it."""

import errno
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_server import Cut, HubServer
from huggingface_hub import constants, hf_api
from typer.testing import CliRunner

from factory import cli
from factory.data.rows import dataset_rows
from factory.errors import DataError, ModelError
from factory.files.disk import DiskError
from factory.hub import Asked, download, failure, hub_errors, is_hub_name, without_token
from factory.models.located import locate

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 400, "tokenizer.json": b"{}"}
SECRET = "hf_" + "s3cr3tS3cr3tS3cr3t"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass
class World:
    """The Hub of a test, its client's environment, and what a test may do to both."""

    hub: HubServer
    patch: pytest.MonkeyPatch

    def log_in(self, token: str) -> None:
        self.patch.setenv("HF_TOKEN", token)

    def go_offline(self) -> None:
        self.patch.setattr(constants, "HF_HUB_OFFLINE", True)

    def lose(self, endpoint: str = "http://127.0.0.1:9") -> None:  # nothing listens there
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        self.patch.setattr(constants, "ENDPOINT", endpoint)
        self.patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        self.patch.setattr(hf_api.api, "endpoint", endpoint)

    def cut(self) -> None:
        self.patch.setattr(time, "sleep", lambda _seconds: None)  # the client waits between its tries
        self.hub.cut_download = Cut(1, 1000)


@pytest.fixture
def world(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """A model for all, a gated one, a private one; bob has a token that reaches neither."""
    monkeypatch.chdir(tmp_path)
    hub.add("ada/x", FILES)
    hub.add("ada/gated", FILES, gated=True)
    hub.add("ada/secret", FILES, private=True)
    hub.user("bob", SECRET)
    return World(hub, monkeypatch)


CASES: dict[str, tuple[Callable[[World], object], str, str | None, str]] = {
    "no such model": (
        lambda world: None,
        "ada/none",
        None,
        "no such model on the Hub, or a private one and no token is set "
        f"({LOG_IN}); check the name at URL, or give a folder that exists",
    ),
    "no such model, logged in": (
        lambda world: world.log_in(SECRET),
        "ada/none",
        None,
        "no such model on the Hub, or a private one and the token of HF_TOKEN does not reach it; check the name at URL",
    ),
    "private": (lambda world: world.log_in(SECRET), "ada/secret", None, "no such model on the Hub, or a private one"),
    "gated": (
        lambda world: None,
        "ada/gated",
        None,
        "it is gated: only those who accepted its terms may have it, and no token is set; "
        f"accept them at URL/ada/gated, then {LOG_IN}",
    ),
    "gated, logged in": (
        lambda world: world.log_in(SECRET),
        "ada/gated",
        None,
        "it is gated, and the account of the token of HF_TOKEN has no access; ask for it at URL/ada/gated",
    ),
    "wrong token": (
        lambda world: world.log_in(SECRET + "x"),
        "ada/x",
        None,
        f"the Hub does not accept the token of HF_TOKEN; make one at URL/settings/tokens and {LOG_IN}",
    ),
    "no token at all": (
        lambda world: world.log_in(SECRET + "ü"),
        "ada/x",
        None,
        f"the token of HF_TOKEN holds characters that no token has; {LOG_IN}",
    ),
    "no such revision": (
        lambda world: None,
        "ada/x",
        "v9",
        "it has no such revision; URL/ada/x/commits/main lists them, or leave the revision out for the newest",
    ),
    "offline": (
        World.go_offline,
        "ada/x",
        None,
        "HF_HUB_OFFLINE is set, and it is not in this machine's cache; unset it, or download it where there is a "
        "network: `hf download ada/x`",
    ),
    "no network": (
        World.lose,
        "ada/x",
        "main",
        "http://127.0.0.1:9 cannot be reached ([Errno 111] Connection refused); it is not in this machine's cache: "
        "check the network, or download it where there is one: `hf download ada/x --revision main`",
    ),
    "no address": (
        lambda world: world.lose("hub.example"),
        "ada/x",
        None,
        "HF_ENDPOINT is hub.example, which is no address; unset it, or write https:// before it",
    ),
    "broken off": (
        World.cut,
        "ada/x",
        None,
        "the connection broke off on the way (RemoteProtocolError); run the same command again, which goes on: files "
        "that are whole are kept",
    ),
    "its own trouble": (
        lambda world: setattr(world.hub, "answer", ("ada/x", 503)),
        "ada/x",
        None,
        "the Hub answers 503, which is its own trouble; try again in some minutes",
    ),
    "too many requests": (
        lambda world: setattr(world.hub, "answer", ("ada/x", 429)),
        "ada/x",
        None,
        "too many requests; wait some minutes, or log in, which allows more",
    ),
    "forbidden": (
        lambda world: (world.log_in(SECRET), setattr(world.hub, "answer", ("ada/x", 403))),
        "ada/x",
        None,
        "the token of HF_TOKEN may not read it; give it that right at URL/settings/tokens",
    ),
    "anything else": (
        lambda world: setattr(world.hub, "answer", ("ada/x", 418)),
        "ada/x",
        None,
        "the Hub answers 418 (said by the test); see URL/ada/x",
    ),
}


@pytest.mark.parametrize(("happens", "name", "revision", "said"), CASES.values(), ids=CASES)
def test_each_failure_has_its_own_words(
    world: World, happens: Callable[[World], object], name: str, revision: str | None, said: str
) -> None:
    happens(world)
    with pytest.raises(ModelError) as caught:
        locate(name, revision)
    text = str(caught.value)
    head = f"cannot download {name}" + (f" at revision {revision}: " if revision else ": ")
    assert text.startswith(head + said.replace("URL", world.hub.url))
    assert "\n" not in text and SECRET not in text
    assert caught.value.__cause__ is None  # which may hold what was sent


def test_the_page_quotes_them() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/pulling.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `(.+?)` \|", page.split("## When the Hub")[1], re.MULTILINE)
    known = [said for _, _, _, said in CASES.values()] + [os.strerror(errno.ENOSPC)]
    assert len(quoted) == 8
    assert [quote for quote in quoted if not any(quote in said for said in known)] == []


def test_what_is_whole_is_kept_and_the_next_try_goes_on(world: World) -> None:
    world.cut()
    with pytest.raises(ModelError, match="broke off"):
        locate("ada/x")
    world.hub.cut_download = None
    before = len(world.hub.requests)
    folder = locate("ada/x").folder
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    asked = [one.path for one in world.hub.requests[before:] if one.method == "GET" and "/resolve/" in one.path]
    assert [path.rpartition("/")[2] for path in asked] == ["model.safetensors"]  # and no other file again


def test_what_lies_in_the_cache_needs_no_network(world: World) -> None:
    found = locate("ada/x")
    world.lose()
    assert locate("ada/x") == found
    world.go_offline()
    assert locate("ada/x") == found
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set, and only a part of it is in this machine's cache"):
        download(Asked("ada/x"), ["*"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/nonexistent", "/nonexistent: no such folder; give one that exists, or the model's name on the Hub"),
        ("./x", "./x: no such folder; give one that exists"),
        ("models/tiny/v1", "models/tiny/v1: no such folder; give one that exists"),
        ("./tinny", "./tinny: no such folder; did you mean the folder tiny?; give one that exists"),
        ("notes.txt", "notes.txt: a file, where a folder or a name on the Hub is wanted"),
        ("my model", "my model: neither a folder here nor a name that the Hub could have; a model there is called"),
        ("ada/tinny", "cannot download ada/tinny: no such model on the Hub, or a private one and no token is set"),
    ],
)
def test_a_path_to_nothing_is_no_name_on_the_hub(world: World, name: str, said: str) -> None:
    Path("tiny").mkdir()
    Path("ada/tiny").mkdir(parents=True)
    Path("notes.txt").touch()
    with pytest.raises(ModelError) as caught:
        locate(name)
    assert str(caught.value).startswith(said)
    if name.startswith("ada"):
        assert str(caught.value).endswith("; did you mean the folder ada/tiny?")


def test_what_means_a_folder_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("artifacts/x").mkdir(parents=True)
    meant = {"ada/x": True, "artifacts/x": False, "artifacts/y": False, "./ada/x": False, "x": False, "/ada/x": False}
    assert {name: is_hub_name(name) for name in meant} == meant


def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(DiskError) as caught, hub_errors(Asked("ada/x")), full.open("wb", buffering=0) as opened:
        opened.write(b"x")
    assert "cannot download ada/x: " in str(caught.value) and os.strerror(errno.ENOSPC) in str(caught.value)
    assert "let HF_HOME name a folder on a larger disk" in str(caught.value)


def test_what_cannot_fit_is_not_begun(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.hub.fetching.free_bytes", lambda _folder: 1000)
    with pytest.raises(DiskError, match=r"cannot download ada/x: it needs 102.4 kB of disk, and 1.0 kB are free"):
        locate("ada/x")
    assert not world.hub.seen("GET", "/resolve/")


def test_no_token_stands_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "unusual-token")
    assert without_token("Bearer unusual-token and " + SECRET) == "Bearer <token> and <token>"
    error = failure(RuntimeError(f"could not send 'Bearer {SECRET}'"), Asked("ada/x", "publish"), DataError)
    assert str(error) == "cannot publish ada/x: RuntimeError: could not send 'Bearer <token>'"


def test_progress_counts_bytes_of_all_files(world: World) -> None:
    told: list[tuple[int, int, str]] = []
    locate("ada/x", progress=lambda *one: told.append(one))
    assert told[-1] == (102, 102, "downloading ada/x, kB")
    told.clear()
    locate("ada/x", progress=lambda *one: told.append(one))
    assert not told


@pytest.fixture
def datasets_world(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", world.hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    rows = {"README.md": b"a card", "a.jsonl": b'{"prompt": "one"}\n{"prompt": "two"}\n'}
    world.hub.add("ada/d", rows, kind="dataset")
    world.hub.add("ada/gd", rows, kind="dataset", gated=True)
    return world


def test_a_dataset_streams_from_the_hub(datasets_world: World) -> None:
    assert [row.values for row in dataset_rows("ada/d", None, "train", ["prompt"])] == [
        {"prompt": "one"},
        {"prompt": "two"},
    ]
    with pytest.raises(DataError, match=r"dataset ada/d \(test\): Bad split: test. Available splits: \['train'\]"):
        list(dataset_rows("ada/d", None, "test", ["prompt"]))


@pytest.mark.parametrize(
    ("name", "happens", "said"),
    [
        ("ada/none", None, "cannot read dataset ada/none: no such dataset on the Hub, or a private one"),
        ("ada/gd", None, "cannot read dataset ada/gd: it is gated: only those who accepted its terms may have it"),
        ("./d", None, "./d: no such folder; give one that exists, or the dataset's name on the Hub"),
        ("ada/d", World.lose, "cannot read dataset ada/d: http://127.0.0.1:9 cannot be reached"),
        ("ada/d", World.go_offline, "cannot read dataset ada/d: HF_HUB_OFFLINE is set, and it is not in this machine"),
    ],
)
def test_a_dataset_that_cannot_be_had(
    datasets_world: World, name: str, happens: Callable[[World], object] | None, said: str
) -> None:
    if happens:
        happens(datasets_world)
    with pytest.raises(DataError) as caught:
        list(dataset_rows(name, None, "train", ["prompt"]))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("command", ["check", "build"])
def test_a_recipe_with_no_such_target_is_wrong_at_its_line(world: World, command: str) -> None:
    Path("r.yaml").write_text("name: x\ntarget:\n  model: ada/none\nstages:\n  - {kind: drop_layers, keep: 1}\n")
    result = CliRunner().invoke(cli.app, [command, "r.yaml"])
    assert result.exit_code == 2
    assert "r.yaml:3: target.model: cannot " in result.stderr and "no such model on the Hub" in result.stderr


def test_a_check_without_a_network_says_why_there_is_no_forecast(world: World) -> None:
    Path("r.yaml").write_text("name: x\ntarget: {model: ada/other}\nstages:\n  - {kind: drop_layers, keep: 1}\n")
    world.lose()
    result = CliRunner().invoke(cli.app, ["check", "r.yaml"])
    assert result.exit_code == 0
    assert "    cannot read config.json of ada/other: http://127.0.0.1:9 cannot be reached" in result.stdout
