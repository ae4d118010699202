"""The tests' own Hub answers the real client as the Hub does: what other tests stand on."""

from pathlib import Path

import pytest
from hub_server import Cut, HubServer
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

WEIGHTS = bytes(range(256)) * 400  # binary, so LFS


def filled(hub: HubServer, **files: bytes) -> HfApi:
    """A repository ada/x with two files, and the client of its owner."""
    api = HfApi(token=hub.user("ada", "hf_ada"))
    api.create_repo("ada/x", private=False)
    adds = {"config.json": b"{}", "model.safetensors": WEIGHTS, **files}
    operations = [CommitOperationAdd(name, data) for name, data in adds.items()]
    api.create_commit("ada/x", operations, commit_message="first")
    return api


def test_files_go_up_and_come_down_again(hub: HubServer, tmp_path: Path) -> None:
    api = filled(hub)
    assert api.whoami()["name"] == "ada"
    assert hub.repository("ada/x").files()["model.safetensors"].lfs
    folder = Path(snapshot_download("ada/x"))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    info = api.model_info("ada/x", files_metadata=True)
    sizes = {one.rfilename: (one.size, one.lfs.sha256 if one.lfs else None) for one in info.siblings or []}
    assert sizes["config.json"] == (2, None) and sizes["model.safetensors"][1] is not None
    assert api.get_paths_info("ada/x", ["config.json", "none"])[0].path == "config.json"
    assert {one.path for one in api.list_repo_tree("ada/x")} == {".gitattributes", "config.json", "model.safetensors"}
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("ada/x", "none.json")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("ada/x", "config.json", revision="none")
    again = api.create_commit("ada/x", [CommitOperationAdd("config.json", b"{}")], commit_message="same")
    assert again.oid == info.sha and len(hub.repository("ada/x").history()) == 2
    assert not any("hf_ada" in str(one) for one in hub.requests) and any(one.authorized for one in hub.requests)


def test_branches_pull_requests_and_parents(hub: HubServer) -> None:
    api = filled(hub)
    api.create_branch("ada/x", branch="two", exist_ok=True)
    api.create_branch("ada/x", branch="two", exist_ok=True)
    api.create_commit("ada/x", [CommitOperationDelete("config.json")], commit_message="less", revision="two")
    assert "config.json" in hub.repository("ada/x").files() and "config.json" not in hub.repository("ada/x").files(
        "two"
    )
    other = HfApi(token=hub.user("bob", "hf_bob"))
    made = other.create_commit("ada/x", [CommitOperationAdd("a/b.txt", b"b")], commit_message="mine", create_pr=True)
    assert made.pr_revision == "refs/pr/1" and [one.name for one in api.list_repo_refs("ada/x").branches] == [
        "main",
        "two",
    ]
    assert [one.num for one in api.get_repo_discussions("ada/x")] == [1]
    with pytest.raises(HfHubHTTPError) as stale:
        parent = hub.repository("ada/x").history()[1].oid
        api.create_commit("ada/x", [CommitOperationAdd("c", b"c")], commit_message="late", parent_commit=parent)
    assert stale.value.response.status_code == 412


def test_who_may_not_is_told_so_in_the_hubs_way(hub: HubServer) -> None:
    api = filled(hub)
    bob = HfApi(token=hub.user("bob", "hf_bob"))
    with pytest.raises(HfHubHTTPError) as forbidden:
        bob.create_commit("ada/x", [CommitOperationAdd("c", b"c")], commit_message="no")
    assert forbidden.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError) as unknown:
        HfApi(token="hf_nobody").create_repo("ada/y")
    assert unknown.value.response.status_code == 401
    hub.repository("ada/x").gated = True
    for token, status in ((False, 401), ("hf_bob", 403)):
        with pytest.raises(GatedRepoError) as gated:
            hf_hub_download("ada/x", "config.json", token=token)
        assert gated.value.response.status_code == status
    hub.repository("ada/x").private = True
    for token, status in ((False, 401), ("hf_bob", 404)):
        with pytest.raises(RepositoryNotFoundError) as missing:
            api.model_info("ada/x", token=token)
        assert missing.value.response.status_code == status


def test_a_download_that_breaks_off_goes_on_where_it_was(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(hub)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # the client counts whole chunks only, of 10 MB
    hub.cut_download = Cut(first=1, after_bytes=70_000, times=1)
    path = hf_hub_download("ada/x", "model.safetensors", local_dir=tmp_path / "there")
    assert Path(path).read_bytes() == WEIGHTS
    assert [one.answered for one in hub.seen("GET", "model.safetensors")] == [0, 206]
