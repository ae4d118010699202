"""`factory publish` against a Hub on this machine, which the real client talks to over HTTP."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Cut, HubServer
from hub_store import Blob, Commit
from huggingface_hub import ModelCard, constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.artifact import Artifact
from factory.provenance import sha256_file
from factory.publishing.contents import Entry
from factory.publishing.gate import PublishError
from factory.publishing.origin import origin
from factory.publishing.running import Recommended, how_to_run
from factory.publishing.upload import Place, Sent, send, sign_in

Publish = Callable[..., tuple[int, str, str]]
TOKEN = "hf_" + "NeverToBeSeenAnywhere" * 2
REPOSITORY = "ada/tiny-drafter"


@pytest.fixture
def ada(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The Hub, with ada's token in the environment."""
    monkeypatch.setenv("HF_TOKEN", hub.user("ada", TOKEN))
    return hub


def published(publish: Publish, artifact: Artifact, *options: str) -> dict[str, Any]:
    code, out, err = publish(artifact.folder, "--to", REPOSITORY, "--json", *options)
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_a_dry_run_a_new_repository_then_nothing_then_an_update(
    hub: HubServer, publish: Publish, faster: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = published(publish, faster, "--dry-run")
    assert listed["dry_run"] and hub.requests == []  # and no token was there

    monkeypatch.setenv("HF_TOKEN", hub.user("ada", TOKEN))
    first = published(publish, faster)
    repository = hub.repository(REPOSITORY)
    history, files = repository.history(), dict(repository.files())
    assert first["changed"] and first["url"] == f"{hub.url}/{REPOSITORY}" and first["commit"] == history[0].oid
    assert len(history) == 2 and history[0].summary == "Publish the drafter tiny-drafter"  # one commit on the empty one
    sizes = {path: len(blob.data) for path, blob in files.items() if path != ".gitattributes"}
    assert {one["path"]: one["bytes"] for one in listed["files"]} == sizes
    assert (first["files"], first["bytes"]) == (len(sizes), sum(sizes.values())) and listed["bytes"] == first["bytes"]
    assert {"config.json", "tokenizer.json", "README.md", "factory/recipe.yaml", "factory/resolved.yaml"} < set(files)
    assert {f"factory/evals/{path.name}" for path in faster.eval_files()} < set(files)
    for path, digest in faster.manifest["files"].items():  # a reader can verify all of it
        there = files[path.removeprefix("model/") if path.startswith("model/") else f"factory/{path}"]
        assert there.sha256 == digest or path == "model/generation_config.json"
    assert_stock_transformers_loads(faster, tmp_path)

    code, out, _ = publish(faster.folder, "--to", REPOSITORY, "--json")
    again = json.loads(out.splitlines()[-1])
    assert code == 0 and out.startswith("nothing changed: ada/tiny-drafter holds all of it already")
    assert not again["changed"] and again["commit"] == first["commit"] and len(repository.history()) == 2
    sent = hub.seen("PUT")
    assert len(sent) == sum(blob.lfs for blob in files.values()) and len(hub.seen("POST", "/commit/")) == 1

    stale = next(iter(faster.eval_files()))
    stale.unlink()
    update = published(publish, faster, "--message", "One evaluation less", "--license", "apache-2.0")
    assert (update["removed"], update["files"]) == (1, 1) and repository.history()[0].summary == "One evaluation less"
    assert set(files) - set(repository.files()) == {f"factory/evals/{stale.name}"}
    assert all(blob == files[path] for path, blob in repository.files().items() if path != "README.md")
    assert hub.seen("PUT") == sent


def assert_stock_transformers_loads(published: Artifact, folder: Path) -> None:
    drafter = AutoModelForCausalLM.from_pretrained(REPOSITORY, cache_dir=folder / "there")
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY, cache_dir=folder / "there")
    assert drafter.generation_config.num_assistant_tokens in (2, 3) and drafter.config.num_hidden_layers == 2
    assert drafter.generation_config.num_assistant_tokens_schedule == "constant"
    own = AutoModelForCausalLM.from_pretrained(published.model_folder)
    assert all(torch.equal(a, b) for a, b in zip(drafter.parameters(), own.parameters(), strict=True))
    assert tokenizer("abc").input_ids == AutoTokenizer.from_pretrained(published.model_folder)("abc").input_ids


def sent(entries: Sequence[Entry], **place: Any) -> Sent:
    wanted = Place(**{"repository": REPOSITORY, **place})
    return send(entries, wanted, sign_in(wanted), lambda _done, _total, _what: None)


def refused(entries: Sequence[Entry], **place: Any) -> str:
    with pytest.raises(PublishError) as why:
        sent(entries, **place)
    return str(why.value)


def test_a_cut_in_the_middle_is_told_and_the_same_command_goes_on(
    ada: HubServer, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # the client's waits between its six tries
    large = [Entry("extra.safetensors", bytes(range(256)) * 4400), *entries]  # so large that it is sent by itself
    ada.cut_upload = Cut(first=2, after_bytes=500)
    assert "the connection broke off on the way" in (said := refused(large)) and "run the same command again" in said
    repository = ada.repository(REPOSITORY)
    assert len(repository.history()) == 1 and len(repository.objects) == 1  # nothing committed, one file is there
    arrived = {one.path for one in ada.seen("PUT") if one.answered == 200}
    ada.cut_upload = None
    ada.requests.clear()
    assert sent(large).changed and len(repository.history()) == 2
    afterwards = {one.path for one in ada.seen("PUT")}
    assert len(arrived) == 1 and afterwards and not afterwards & arrived  # what had arrived was not sent again
    names = {blob.sha256 for blob in repository.files().values() if blob.lfs}
    assert {path.rpartition("/")[2] for path in afterwards | arrived} == names


def test_branch_pull_request_and_private(ada: HubServer, entries: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    sent(entries, private=True, revision="two")
    repository = ada.repository(REPOSITORY)
    assert repository.private and "model.safetensors" in repository.files("two")
    assert "model.safetensors" not in repository.files("main")
    assert not sent(entries, revision="two").changed
    assert "leave --revision out" in refused(entries, pull_request=True, revision="two")

    repository.private = False
    monkeypatch.setenv("HF_TOKEN", ada.user("bob", "hf_bob"))
    proposed = sent(entries, pull_request=True)
    assert proposed.pull_request == f"{ada.url}/{REPOSITORY}/discussions/1"
    assert "model.safetensors" in repository.files("refs/pr/1") and "model.safetensors" not in repository.files("main")
    again = sent(entries, pull_request=True)
    assert not again.changed and again.pull_request == proposed.pull_request and "refs/pr/2" not in repository.refs
    assert "no such repository to propose to" in refused(entries, pull_request=True, repository="ada/none")


def test_who_may_not_publish_is_told_why(hub: HubServer, entries: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no token was found; log in with `hf auth login`, or set HF_TOKEN" in refused(entries)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "the Hub does not accept the token of HF_TOKEN" in refused(entries)
    monkeypatch.setenv("HF_TOKEN", hub.user("bob", "hf_bob"))
    said = refused(entries)
    assert "bob may not do that (You don't have the rights to create a model" in said and "under bob/" in said
    hub.add(REPOSITORY)
    assert "bob may not do that (Authorization error" in refused(entries)
    monkeypatch.setenv("HF_TOKEN", hub.user("eve", "hf_eve", reads_only=True))
    assert "eve may not do that (Forbidden: you must use a write token" in refused(entries)
    assert len(hub.repository(REPOSITORY).history()) == 1


def test_what_stands_in_the_way_is_named(ada: HubServer, entries: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    ada.add(REPOSITORY, {"model.safetensors": b"\0 another model", "config.json": b"{}"})
    assert "holds something that was not published from here (config.json" in refused(entries)
    other = ada.add("ada/other")
    ada.meanwhile = ("/commit/", lambda: other.keep("main", Commit(other.files(), other.refs["main"], "meanwhile")))
    assert "was changed by somebody meanwhile; run the same command again" in refused(entries, repository="ada/other")
    assert other.history()[0].summary == "meanwhile"
    assert "is public already, and --private is for a new one" in refused(entries, repository="ada/other", private=True)
    other.keep("theirs", Commit({"config.json": Blob(b"{}")}, None, "another model"))
    said = refused(entries, repository="ada/other", revision="theirs")
    assert "ada/other, branch theirs: holds something that was not published from here (config.json" in said
    card = [Entry("README.md", b"---\nlicense: mine\n---\n")]
    assert 'the Hub refuses the card\'s metadata: - "license" must be one of [apache-2.0' in refused(
        card, repository="ada/other"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so nothing is sent; unset it" in refused(entries)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    ada.stop()
    assert "cannot be reached" in refused(entries)


def test_a_wrong_name_and_a_damaged_file_are_refused_before_anything_is_asked(
    ada: HubServer, publish: Publish, artifact: Artifact
) -> None:
    for name in ("tiny", "ada/ti ny"):
        code, _, err = publish(artifact.folder, "--to", name)
        assert code == 2 and "user/name" in err
    (artifact.model_folder / "model.safetensors").write_bytes(b"damaged")
    code, _, err = publish(artifact.folder, "--to", REPOSITORY)
    assert code == 2 and "model.safetensors: damaged" in err and ada.requests == []


def test_a_token_is_written_nowhere(ada: HubServer, publish: Publish, faster: Artifact, tmp_path: Path) -> None:
    said = [publish(faster.folder, "--to", REPOSITORY, "--json")]
    ada.answer = ("/api/", 500)
    said.append(publish(faster.folder, "--to", REPOSITORY))
    ada.answer = None
    ada.tokens.clear()
    said.append(publish(faster.folder, "--to", REPOSITORY))
    assert [code for code, _, _ in said] == [0, 2, 2]
    looked_at = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert looked_at and not [path for path in looked_at if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in str(said) and TOKEN not in str(ada.requests)
    for repository in ada.repositories.values():
        assert not [path for path, blob in repository.files().items() if TOKEN.encode() in blob.data]


def test_the_card_is_one_that_the_hub_reads_and_its_code_runs(
    ada: HubServer, publish: Publish, faster: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
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
    target = faster.target_folder()
    assert target is not None
    assert str(target.parent) not in text  # where it lies is nobody's business

    ada.add("ada/big", {path.name: path.read_bytes() for path in target.iterdir()})
    found: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], found)  # as a reader would run it, out of this Hub
    assert capsys.readouterr().out.startswith("def main():") and found["tokens"].shape[1] > len("def main():")
    assert ada.seen("GET", f"/{REPOSITORY}/resolve") and ada.seen("GET", "/ada/big/resolve")


def test_no_folder_of_this_machine_is_published_but_one_that_was_typed(
    hub: HubServer, publish: Publish, artifact: Artifact, evaluated: Path, entries: list[Entry]
) -> None:
    place = str(evaluated.parents[1])  # that holds the target, which the recipe names relatively
    assert not [one.path for one in entries if place.encode() in one.source]  # type: ignore[operator]
    assert (
        artifact.target_folder() == evaluated.parents[1] / "target" and "local.json" not in artifact.manifest["files"]
    )
    resolved = artifact.folder / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace("model: target", "model: /home/ada/target"))
    made_from = {**artifact.manifest["target"], "path": "/home/ada/target"}  # as earlier versions had it
    files = {**artifact.manifest["files"], "resolved.yaml": sha256_file(resolved)}
    changed = {**artifact.manifest, "target": made_from, "files": files}
    (artifact.folder / "manifest.json").write_text(json.dumps(changed))
    Artifact.open(artifact.folder).write_eval(Artifact.open(evaluated).evals()[-1])
    note = "note: /home/ada/target is a place on this machine, and becomes public: it stands in "
    note += "manifest.json, resolved.yaml"
    excused = ("--even-if-slower", "to see what becomes public")
    code, _, err = publish(artifact.folder, "--to", REPOSITORY, "--dry-run", *excused)
    assert code == 0 and err.splitlines() == [note]
    code, _, err = publish(
        artifact.folder, "--to", REPOSITORY, *excused
    )  # without a token: said before it is asked for
    assert code == 2 and err.splitlines()[0] == note and "no token was found" in err and hub.requests == []


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
    made_from = faster.manifest["target"]
    faster.write_target_folder(tmp_path / "target")
    (tmp_path / "target").mkdir()
    with pytest.raises(PublishError, match=r"no card of the target .* names a licence; give --license"):
        origin(faster, None, None, network=True)
    with pytest.raises(PublishError, match="--license: wants an identifier"):
        origin(faster, " ", None, network=True)
    (tmp_path / "target" / "README.md").write_text("---\nlicense: apache-2.0\n---\nbig\n")
    assert origin(faster, None, None, network=True).license == {"license": "apache-2.0"}
    (tmp_path / "target" / "README.md").write_text("---\nlicense: [a\n---\na card with a broken head\n")
    with pytest.raises(PublishError, match="names a licence; give --license"):
        origin(faster, None, None, network=True)
    (faster.folder / "local.json").unlink()
    card = b"---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n"
    hub.add("ada/big", {"README.md": card})
    made_from |= {"model": "ada/big", "revision": hub.repository("ada/big").refs["main"]}
    assert origin(faster, None, None, network=False).license == {}
    assert not hub.requests
    found = origin(faster, None, None, network=True)
    link = "https://huggingface.co/ada/big/blob/main/LICENSE"
    assert found.base_model == "ada/big" and found.license == {
        "license": "other",
        "license_name": "own",
        "license_link": link,
    }
    made_from["model"] = "ada/bigger"
    hub.stop()
    with pytest.raises(
        PublishError, match=r"cannot read the card of ada/bigger .*cannot be reached"
    ):  # and not that there is no card
        origin(faster, None, None, network=True)


def test_the_page_says_what_the_commands_do(publish: Publish, artifact: Artifact) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "publishing.md").read_text(encoding="utf-8")
    commands = [line.partition(" #")[0] for line in page.splitlines() if line.startswith("factory publish")]
    plain, sending, excused = (
        shlex.split(one.replace("artifacts/demo/quick", str(artifact.folder))) for one in commands
    )
    assert [publish(*one[2:])[0] for one in (plain, sending, excused)] == [2, 2, 0]
    listed = set(re.findall(r"--[a-z-]+", publish("--help")[1]))
    assert set(re.findall(r"`(--[a-z-]+)", page)) <= listed


def test_weights_that_only_gptqmodel_loads_say_so() -> None:
    stored = {"format": "gptq", "loader": "gptqmodel", "why_loader": "its heads are pruned"}
    text = "\n".join(how_to_run(Recommended("ada/tiny", "ada/big", "c0ffee", 3, False, stored)))
    assert "**Stock transformers cannot load it**: its heads are pruned" in text
    assert 'GPTQModel.load("ada/tiny").model' in text and 'revision="c0ffee"' in text
    assert "num_assistant_tokens = 3" in text and "nor its GPTQ weights" in text and "convert_hf_to_gguf" not in text
