"""`factory publish` against a Hub on this machine, which the real client talks to over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_server import Cut, HubServer
from hub_store import Commit
from huggingface_hub import ModelCard, constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.artifact import Artifact
from factory.provenance import sha256_file

Publish = Callable[..., tuple[int, str, str]]
TOKEN = "hf_" + "NeverToBeSeenAnywhere" * 2
REPOSITORY = "ada/tiny-drafter"


@pytest.fixture
def ada(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The Hub, with ada's token in the environment."""
    monkeypatch.setenv("HF_TOKEN", hub.user("ada", TOKEN))
    return hub


def published(publish: Publish, artifact: Artifact, *options: str) -> dict[str, object]:
    code, out, err = publish(artifact.folder, "--to", REPOSITORY, "--json", *options)
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def refused(publish: Publish, artifact: Artifact, *options: str, to: str = REPOSITORY) -> str:
    code, out, err = publish(artifact.folder, "--to", to, *options)
    assert code == 2 and "Traceback" not in err and not out, (out, err)
    return " ".join(err.split())


def test_a_new_repository_then_nothing_then_an_update(ada: HubServer, publish: Publish, faster: Artifact) -> None:
    first = published(publish, faster)
    repository = ada.repository(REPOSITORY)
    files, history = repository.files(), repository.history()
    assert first["changed"] and first["url"] == f"{ada.url}/{REPOSITORY}" and first["commit"] == history[0].oid
    assert len(history) == 2 and history[0].summary == "Publish the drafter tiny-drafter"  # one commit on the empty one
    assert first["files"] == len(files) - 1 and first["bytes"] == sum(
        len(blob.data) for path, blob in files.items() if path != ".gitattributes"
    )
    assert {"config.json", "tokenizer.json", "README.md", "factory/recipe.yaml"} < set(files)
    assert {f"factory/evals/{path.name}" for path in faster.eval_files()} < set(files)
    assert (
        files["model.safetensors"].lfs
        and files["model.safetensors"].data == (faster.model_folder / "model.safetensors").read_bytes()
    )
    for path, digest in faster.manifest["files"].items():  # a reader can verify all of it
        there = files[path.removeprefix("model/") if path.startswith("model/") else f"factory/{path}"]
        assert there.sha256 == digest or path == "model/generation_config.json"
    assert json.loads(files["generation_config.json"].data)["num_assistant_tokens_schedule"] == "constant"

    again = published(publish, faster)
    assert not again["changed"] and again["commit"] == first["commit"] and len(repository.history()) == 2
    sent = ada.seen("PUT")
    assert len(sent) == sum(blob.lfs for blob in files.values()) and len(ada.seen("POST", "/commit/")) == 1
    assert "nothing changed" in publish(faster.folder, "--to", REPOSITORY)[1]

    stale = next(iter(faster.eval_files()))
    stale.unlink()
    before = dict(files)
    update = published(publish, faster, "--message", "One evaluation less", "--license", "apache-2.0")
    assert update["removed"] == 1 and update["files"] == 1 and repository.history()[0].summary == "One evaluation less"
    assert f"factory/evals/{stale.name}" not in repository.files()
    kept = {path for path in before if path != "README.md"} - {f"factory/evals/{stale.name}"}
    assert all(repository.files()[path] == before[path] for path in kept) and ada.seen("PUT") == sent


def test_what_was_published_loads_with_stock_transformers(
    ada: HubServer, publish: Publish, faster: Artifact, tmp_path: Path
) -> None:
    published(publish, faster)
    drafter = AutoModelForCausalLM.from_pretrained(REPOSITORY, cache_dir=tmp_path / "there")
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY, cache_dir=tmp_path / "there")
    assert drafter.generation_config.num_assistant_tokens in (2, 3) and drafter.config.num_hidden_layers == 2
    own = AutoModelForCausalLM.from_pretrained(faster.model_folder)
    assert all(torch.equal(a, b) for a, b in zip(drafter.parameters(), own.parameters(), strict=True))
    assert tokenizer("abc").input_ids == AutoTokenizer.from_pretrained(faster.model_folder)("abc").input_ids


def test_a_cut_in_the_middle_is_told_and_the_same_command_goes_on(
    ada: HubServer, publish: Publish, faster: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # the client's waits between its six tries
    add_weights(faster)
    ada.cut_upload = Cut(first=2, after_bytes=500)
    said = refused(publish, faster)
    assert "the connection broke off on the way" in said and "run the same command again" in said
    repository = ada.repository(REPOSITORY)
    assert len(repository.history()) == 1 and len(repository.objects) == 1  # nothing committed, one file is there
    arrived = {one.path for one in ada.seen("PUT") if one.answered == 200}
    ada.cut_upload = None
    ada.requests.clear()
    assert published(publish, faster)["changed"]
    sent = {one.path for one in ada.seen("PUT")}
    assert len(arrived) == 1 and sent and not sent & arrived  # what had arrived was not sent again
    large = {blob.sha256 for blob in repository.files().values() if blob.lfs}
    assert {path.rpartition("/")[2] for path in sent | arrived} == large and len(repository.history()) == 2


def add_weights(artifact: Artifact) -> None:
    """Give the artifact a second large file, as one with two shards has, and a manifest and evaluation of it."""
    extra = artifact.model_folder / "extra.safetensors"
    extra.write_bytes(bytes(range(256)) * 4400)  # so large that it is sent by itself
    results = artifact.evals()[-1]
    artifact.manifest["files"]["model/extra.safetensors"] = sha256_file(extra)
    (artifact.folder / "manifest.json").write_text(json.dumps(artifact.manifest))
    results.pop("manifest_sha256")
    artifact.write_eval(results)


def test_branch_pull_request_and_private(
    ada: HubServer, publish: Publish, faster: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(publish, faster, "--private", "--revision", "two")
    repository = ada.repository(REPOSITORY)
    assert repository.private and "model.safetensors" in repository.files("two")
    assert "model.safetensors" not in repository.files("main")
    assert not published(publish, faster, "--revision", "two")["changed"]
    assert "leave --revision out" in refused(publish, faster, "--pr", "--revision", "two")

    repository.private = False
    monkeypatch.setenv("HF_TOKEN", ada.user("bob", "hf_bob"))
    proposed = published(publish, faster, "--pr")
    assert proposed["pull_request"] == f"{ada.url}/{REPOSITORY}/discussions/1"
    assert "model.safetensors" in repository.files("refs/pr/1") and "model.safetensors" not in repository.files("main")
    assert "no such repository to propose to" in refused(publish, faster, "--pr", to="ada/none")


def test_a_pull_request_that_holds_it_already_is_not_opened_twice(
    ada: HubServer, publish: Publish, faster: Artifact
) -> None:
    ada.add(REPOSITORY)
    first = published(publish, faster, "--pr")
    second = published(publish, faster, "--pr")
    assert not second["changed"] and second["pull_request"] == first["pull_request"]
    assert set(ada.repository(REPOSITORY).refs) == {"main", "refs/pr/1"}


def test_a_dry_run_lists_every_byte_and_asks_nobody(
    hub: HubServer, publish: Publish, faster: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = publish(faster.folder, "--to", REPOSITORY, "--dry-run", "--json")
    assert code == 0, err
    listed = json.loads(out.splitlines()[-1])
    assert hub.requests == [] and listed["dry_run"]
    assert f"{len(listed['files'])} files, {listed['bytes']:,} bytes would go to {REPOSITORY}" in out
    monkeypatch.setenv("HF_TOKEN", hub.user("ada", TOKEN))
    published(publish, faster)
    there = hub.repository(REPOSITORY).files()
    assert {one["path"]: one["bytes"] for one in listed["files"]} == {
        path: len(blob.data) for path, blob in there.items() if path != ".gitattributes"
    }


def test_who_may_not_publish_is_told_why(
    hub: HubServer, publish: Publish, faster: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no token was found; log in with `hf auth login`, or set HF_TOKEN" in refused(publish, faster)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "the Hub does not accept the token of HF_TOKEN" in refused(publish, faster)
    monkeypatch.setenv("HF_TOKEN", hub.user("bob", "hf_bob"))
    said = refused(publish, faster)
    assert "bob may not do that (You don't have the rights to create a model" in said and "under bob/" in said
    hub.add(REPOSITORY)
    assert "bob may not do that (Authorization error" in refused(publish, faster)
    monkeypatch.setenv("HF_TOKEN", hub.user("eve", "hf_eve", reads_only=True))
    assert "eve may not do that (Forbidden: you must use a write token" in refused(publish, faster)
    assert len(hub.repository(REPOSITORY).history()) == 1


def test_what_stands_in_the_way_is_named(
    ada: HubServer, publish: Publish, faster: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada.add(REPOSITORY, {"model.safetensors": b"\0 another model", "config.json": b"{}"})
    assert "holds something that was not published from here (config.json" in refused(publish, faster)
    assert "wants user/name" in refused(publish, faster, to="tiny")
    assert "user/name" in refused(publish, faster, to="ada/ti ny")
    other = ada.add("ada/other")
    ada.meanwhile = ("/commit/", lambda: other.keep("main", Commit(other.files(), other.refs["main"], "meanwhile")))
    assert "it was changed by somebody meanwhile; run the same command again" in refused(
        publish, faster, to="ada/other"
    )
    assert other.history()[0].summary == "meanwhile"
    assert "is public already, and --private is for a new one" in refused(publish, faster, "--private", to="ada/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so nothing is sent; unset it" in refused(publish, faster)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    ada.stop()
    assert "cannot be reached" in refused(publish, faster)
    (faster.model_folder / "model.safetensors").write_bytes(b"damaged")
    assert "model.safetensors: damaged" in refused(publish, faster)


def test_a_token_is_written_nowhere(ada: HubServer, publish: Publish, faster: Artifact, tmp_path: Path) -> None:
    said = [publish(faster.folder, "--to", REPOSITORY, *options) for options in ((), ("--json",), ("--dry-run",))]
    ada.answer = ("/api/", 500)
    said.append(publish(faster.folder, "--to", "ada/fails"))
    ada.answer = None
    ada.tokens.clear()
    said.append(publish(faster.folder, "--to", "ada/fails"))
    assert [code for code, _, _ in said] == [0, 0, 0, 2, 2]
    looked_at = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert looked_at and not [path for path in looked_at if TOKEN.encode() in path.read_bytes()]
    assert not [text for text in said if TOKEN in str(text)]
    for repository in ada.repositories.values():
        assert not [path for path, blob in repository.files().items() if TOKEN.encode() in blob.data]
    assert TOKEN not in str(ada.requests)


def test_the_card_is_one_that_the_hub_reads(ada: HubServer, publish: Publish, faster: Artifact) -> None:
    code, _, err = publish(faster.folder, "--to", REPOSITORY, "--base-model", "ada/big", "--license", "mit")
    assert code == 0, err
    card = ModelCard(ada.repository(REPOSITORY).files()["README.md"].data.decode())
    data = card.data
    assert (data.base_model, data.get("base_model_relation"), data.license) == ("ada/big", "finetune", "mit")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert {"speculative-decoding", "drafter-factory"} <= set(data.tags or [])
    results = {(one.dataset_name, one.metric_type): one.metric_value for one in data.eval_results or []}
    [suite] = [f"{one['name']}, version {one['version']}" for one in faster.evals()[-1]["suites"]]
    assert (results[suite, "speedup"], results[suite, "speedup_lower_bound"]) == (1.5, 1.25)
    assert data.model_name == "tiny-drafter"
    text = card.text
    assert "**1.50 times as fast as the target alone**" in text and "| 1.50x (1.25 to 1.75) |" in text
    k = json.loads((faster.model_folder / "generation_config.json").read_text())["num_assistant_tokens"]
    for part in (
        f'from_pretrained("{REPOSITORY}"',
        "assistant_model=drafter",
        f'"method": "draft_model", "model": "{REPOSITORY}", "num_speculative_tokens": {k}',
        f"--speculative-algorithm STANDALONE --speculative-draft-model-path {REPOSITORY}",
        f"--speculative-num-steps {k} --speculative-eagle-topk 1 --speculative-num-draft-tokens {k + 1}",
        f"--spec-type draft-simple --spec-draft-n-max {k}",
        f"factory pull {REPOSITORY}",
        "kind: drop_layers",
        "](plots/",
        faster.manifest["target"]["identity"],
        "no language model to use alone",
    ):
        assert part in text, part
    assert "| None |" not in text and "None," not in text
    assert str(Path(faster.manifest["target"]["path"]).parent) not in text  # where it lies is nobody's business


def test_a_slower_one_says_so_on_its_card_with_the_reason(ada: HubServer, publish: Publish, artifact: Artifact) -> None:
    code, _, err = publish(artifact.folder, "--to", REPOSITORY)
    assert code == 2 and "--even-if-slower" in err and ada.requests == []
    code, _, err = publish(artifact.folder, "--to", REPOSITORY, "--even-if-slower", "shows how a random one fares")
    assert code == 0, err
    text = ada.repository(REPOSITORY).files()["README.md"].data.decode()
    assert "**Not shown to be faster than the target alone.**" in text
    assert "It is published all the same, because: shows how a random one fares" in text
    assert (
        "base_model" not in text
        and "has no name on the Hub" in text
        and "times as fast as the target alone**" not in text
    )


def test_the_licence_is_the_targets(hub: HubServer, publish: Publish, faster: Artifact, tmp_path: Path) -> None:
    from factory.publishing.gate import PublishError
    from factory.publishing.origin import origin

    made_from = faster.manifest["target"]
    made_from["path"] = str(tmp_path / "target")
    (tmp_path / "target").mkdir()
    with pytest.raises(PublishError, match=r"no card of the target .* names a licence; give --license"):
        origin(faster, None, None, network=True)
    (tmp_path / "target" / "README.md").write_text("---\nlicense: apache-2.0\n---\nbig\n")
    assert origin(faster, None, None, network=True).license == {"license": "apache-2.0"}
    card = b"---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n"
    hub.add("ada/big", {"README.md": card})
    made_from |= {"path": None, "model": "ada/big", "revision": hub.repository("ada/big").refs["main"]}
    assert origin(faster, None, None, network=False).license == {}
    assert not hub.requests
    found = origin(faster, None, None, network=True)
    link = "https://huggingface.co/ada/big/blob/main/LICENSE"
    assert found.base_model == "ada/big" and found.license == {
        "license": "other",
        "license_name": "own",
        "license_link": link,
    }
