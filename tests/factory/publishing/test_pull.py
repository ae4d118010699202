"""A published drafter pulled with the real client: whole or not at all, and never outside its folder."""

import json
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hub_server import Cut, HubServer
from huggingface_hub import constants
from typer.testing import CliRunner

from factory import cli
from factory.anatomy.shapes import Shape
from factory.artifact import Artifact, write_manifest
from factory.errors import ArtifactError, ModelError
from factory.provenance import sha256_text
from factory.publishing.contents import contents
from factory.publishing.pull import fetched, pull

SIZES: dict[str, Any] = {**{field.name: 2 for field in fields(Shape)}, "tied": False, "fused_qkv": False}
FACTS = {
    "name": "x",
    "raw": False,
    "target": {"model": "m", "revision": None, "identity": "ab" * 32, "parameters": 10},
    "dtype": "float32",
    "parameters": 5,
    "bytes_on_disk": 20,
    "weight_format": {"format": "float32", "loader": "transformers"},
    "shape": {**SIZES, "layers": 1, "ffn": 8},
    "target_shape": {**SIZES, "layers": 4, "ffn": 16},
    "facts": [{"kind": "drop_layers", "edit": {"keep_layers": [3]}}],
}
WEIGHTS = bytes(range(256)) * 400
ROW = {"artifact": "x", "drafter": "model", "k": 2, "prompt_set": "choose", "prompts": 8, "alpha": 0.5}
BEST = {**ROW, "speedup": 1.5, "speedup_low": 1.25, "speedup_high": 1.75}
EVALUATION = {
    "verdict": {"reason": "x is 1.5 times as fast"},
    "hardware": {"gpu": "a GPU of the publisher"},
    "target": {"dtype": "float32", "reader": "eager"},
    "suites": [{"name": "code", "sha256": "c" * 64}],
    "candidates": [BEST],
}
CARD = "---\nbase_model: ada/target\n---\n# x\n"


def silent(_done: int, _total: int, _what: str) -> None:
    pass


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    """What its publisher has: an artifact with one evaluation."""
    folder = tmp_path / "made" / "x"
    (folder / "model").mkdir(parents=True)
    (folder / "stages").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "tokenizer.json").write_text('{"a": 1}')
    (folder / "stages" / "1.json").write_text('{"kind": "drop_layers"}')
    for name in ("recipe.yaml", "resolved.yaml"):
        (folder / name).write_text("name: x\n")
    artifact = write_manifest(folder, FACTS)
    artifact.write_eval(EVALUATION)
    return artifact


def files_of(artifact: Artifact) -> dict[str, bytes]:
    """What a publication of it sends."""
    entries = contents(artifact, CARD, [])
    return {one.path: one.source if isinstance(one.source, bytes) else one.source.read_bytes() for one in entries}


@pytest.fixture
def published(hub: HubServer, made: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """ada/tiny, as `factory publish` would have sent it; the reader works in a folder of their own."""
    hub.add("ada/tiny", files_of(made))
    (tmp_path / "reader").mkdir()
    monkeypatch.chdir(tmp_path / "reader")
    return hub


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pulled_drafter_is_the_artifact_that_was_published(published: HubServer, made: Artifact) -> None:
    pulled = pull("ada/tiny", Path("out"), silent)
    assert (pulled.new, pulled.evaluations) == (True, 1)
    assert pulled.commit == published.repository("ada/tiny").refs["main"]
    theirs, mine = everything(made.folder), everything(Path("out/tiny"))
    record = json.loads(mine.pop("pulled.json"))
    assert record["repository"] == "ada/tiny" and record["commit"] == pulled.commit
    assert record["base_model"] == "ada/target" and record["evals"] == [path.name for path in made.eval_files()]
    assert {**theirs, "README.md": b""} == {**mine, "README.md": b""}
    card = mine["README.md"].decode()
    assert "a GPU of the publisher" in card and "factory eval out/tiny --certify" in card  # this folder's, not theirs
    pulled.artifact.verify()
    assert not list(Path("out/.cache/pulling").iterdir())


def test_pulled_again_there_is_nothing_to_do(published: HubServer) -> None:
    pull("ada/tiny", Path("out"), silent)
    before = {path: path.stat().st_mtime_ns for path in Path("out/tiny").rglob("*") if path.name != "pulled.json"}
    asked = len(published.seen("GET", "/resolve/"))
    again = pull("ada/tiny", Path("out"), silent)
    assert (again.new, again.evaluations) == (False, 0)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(published.seen("GET", "/resolve/")) == asked


def test_what_was_measured_meanwhile_comes_with_the_next_pull(published: HubServer, made: Artifact) -> None:
    first = pull("ada/tiny", Path("out"), silent)
    first.artifact.write_eval({**EVALUATION, "hardware": {"gpu": "a GPU of the reader"}})
    made.write_eval({**EVALUATION, "hardware": {"gpu": "a third GPU"}})
    published.add("ada/tiny", files_of(made))
    again = pull("ada/tiny", Path("out"), silent)
    assert (again.new, again.evaluations) == (False, 1) and again.commit != first.commit
    devices = {one["hardware"]["gpu"] for one in again.artifact.evals()}
    assert devices == {"a GPU of the publisher", "a GPU of the reader", "a third GPU"}
    record = again.artifact.pulled()
    assert record is not None and len(record["evals"]) == 2 and record["commit"] == again.commit  # not the reader's own


def test_what_was_measured_here_is_the_last_word_whatever_a_publisher_s_clock_says(
    published: HubServer, made: Artifact
) -> None:
    ahead = {"manifest_sha256": made.manifest_digest(), "kept_at": "9999", **EVALUATION}
    published.add("ada/tiny", {**files_of(made), f"factory/evals/{'9' * 12}.json": json.dumps(ahead).encode()})
    artifact = pull("ada/tiny", Path("out"), silent).artifact
    artifact.write_eval({**EVALUATION, "hardware": {"gpu": "mine"}, "candidates": [{**BEST, "k": 5}]})
    assert artifact.evals()[-1]["hardware"] == {"gpu": "mine"}
    best = artifact.best_row()
    assert best is not None and best["k"] == 5 and "mine; float32" in (artifact.folder / "README.md").read_text()


def test_records_larger_than_anybody_s_are_not_fetched(
    published: HubServer, made: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.publishing.pull._MOST_RECORDS_BYTES", 50_000)
    published.add("ada/tiny", {**files_of(made), "factory/evals/large.json": b" " * 60_000})
    with pytest.raises(ModelError, match=r"factory/\*\.json and README\.md and .* more than anybody's; nothing of it"):
        pull("ada/tiny", Path("out"), silent)
    assert not published.seen("GET", "/resolve/")


def test_without_a_network_a_pull_takes_what_the_cache_has(
    published: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull("ada/tiny", Path("out"), silent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not pull("ada/tiny", Path("out"), silent).new
    assert pull("ada/tiny", Path("elsewhere"), silent).new
    with pytest.raises(ModelError, match="cannot pull ada/other: HF_HUB_OFFLINE is set, and it is not in this machine"):
        pull("ada/other", Path("out"), silent)


def test_a_revision_is_pulled_as_it_was(published: HubServer, made: Artifact) -> None:
    first = published.repository("ada/tiny").refs["main"]
    made.write_eval({**EVALUATION, "hardware": {"gpu": "a third GPU"}})
    published.add("ada/tiny", files_of(made))
    repository = published.repository("ada/tiny")
    repository.commits[first] = repository.commits.get(first) or repository.commits[repository.refs["main"]]
    assert pull("ada/tiny", Path("new"), silent, "main").evaluations == 2
    with pytest.raises(ModelError, match="cannot pull ada/tiny at revision v9: it has no such revision"):
        pull("ada/tiny", Path("old"), silent, "v9")


def test_a_pull_that_broke_off_goes_on(published: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # the client waits between its tries
    published.cut_download = Cut(1, 50_000)  # only the weights are longer
    with pytest.raises(ModelError, match=r"the connection broke off on the way .* run the same command again"):
        pull("ada/tiny", Path("out"), silent)
    assert not Path("out/tiny").exists()
    published.cut_download, before = None, len(published.requests)
    assert pull("ada/tiny", Path("out"), silent).new
    got = [one.path.rpartition("/")[2] for one in published.requests[before:] if one.method == "GET"]
    assert "model.safetensors" in got and "tokenizer.json" not in got and "manifest.json" not in got


def test_one_break_is_gone_on_from_where_it_was(published: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    published.cut_download = Cut(1, 50_000, times=1)
    pull("ada/tiny", Path("out"), silent).artifact.verify()


def test_a_damaged_folder_is_told_and_left(published: HubServer) -> None:
    pull("ada/tiny", Path("out"), silent)
    weights = Path("out/tiny/model/model.safetensors")
    weights.unlink()
    weights.write_bytes(b"damaged")
    again = "remove out/tiny and run the same command again"
    with pytest.raises(ArtifactError, match=rf"(?s)model\.safetensors: damaged.*{again}"):
        pull("ada/tiny", Path("out"), silent)
    assert weights.read_bytes() == b"damaged"
    with pytest.raises(ArtifactError, match="remove out/tiny and run `factory pull ada/tiny` again"):
        Artifact.open("out/tiny").verify()


def _other(folder: Path) -> str:
    artifact = pull("ada/tiny", folder, silent).artifact
    (artifact.folder / "manifest.json").write_text(json.dumps({**artifact.manifest, "raw": True}))
    return r"holds another version of ada/tiny, of commit \w{12} where \w{12} is asked; nothing is written over"


def _built(folder: Path) -> str:
    artifact = pull("ada/tiny", folder, silent).artifact
    (artifact.folder / "manifest.json").write_text(json.dumps({**artifact.manifest, "raw": True}))
    (artifact.folder / "pulled.json").unlink()
    return "holds another drafter, x, which was built; nothing is written over"


def _notes(folder: Path) -> str:
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny" / "notes.txt").write_text("mine")
    return "exists and is no artifact"


@pytest.mark.parametrize("lies_there", [_other, _built, _notes])
def test_nothing_is_written_over(published: HubServer, lies_there: Callable[[Path], str]) -> None:
    said = lies_there(Path("out"))
    before = everything(Path("out"))
    with pytest.raises(ArtifactError, match=rf"out/tiny: {said}[:;] move it away, or give another --out"):
        pull("ada/tiny", Path("out"), silent)
    assert everything(Path("out")) == before


def test_what_is_not_what_its_manifest_says_is_not_kept(published: HubServer, made: Artifact) -> None:
    published.add("ada/tiny", {**files_of(made), "model.safetensors": WEIGHTS[::-1]})
    with pytest.raises(
        ArtifactError, match=r"ada/tiny: model/model\.safetensors: damaged .*\n.*nothing of it was kept"
    ):
        pull("ada/tiny", Path("out"), silent)
    files = files_of(made)
    files.pop("tokenizer.json")
    published.add("ada/tiny", files)
    with pytest.raises(ArtifactError, match=r"ada/tiny: model/tokenizer\.json: missing"):
        pull("ada/tiny", Path("out"), silent)
    assert everything(Path("out")) == {}


def test_a_model_that_is_no_drafter_of_ours_is_told_with_what_to_do(published: HubServer) -> None:
    published.add("ada/model", {"config.json": b"{}", "model.safetensors": WEIGHTS})
    with pytest.raises(ArtifactError) as caught:
        pull("ada/model", Path("out"), silent)
    assert str(caught.value) == (
        "ada/model: no drafter that `factory publish` published: it holds no factory/manifest.json. To make a drafter "
        "for that model: `factory build --target ada/model`"
    )
    assert not published.seen("GET", "model.safetensors")  # nothing large is fetched to find that out


def _planted(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["files"].update({name: "0" * 64})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_planted("../../escaped.json"), r"'\.\./\.\./escaped\.json' is no place within an artifact"),
        (_planted("/tmp/escaped.json"), r"'/tmp/escaped\.json' is no place within an artifact"),
        (_planted("model/../../../escaped.json"), "is no place within an artifact"),
        (_planted("model\\..\\escaped.json"), "is no place within an artifact"),
        (_planted("model/.hidden.json"), "is no place within an artifact"),
        (_planted("model/a/b/c.json"), "is no place within an artifact"),
        (_planted("model//x.json"), "is no place within an artifact"),
        (_planted("model/pytorch_model.bin"), r"pytorch_model\.bin: pickled, which can run code .*; refused"),
        (_planted("model/modeling_x.py"), r"modeling_x\.py: no file that an artifact has; refused"),
        (_planted("pulled.json"), r"pulled\.json: no file that an artifact has; refused"),
        (_planted("manifest.json"), r"manifest\.json: no file that an artifact has; refused"),
        (lambda manifest: manifest["files"].update({"model/config.json": 5}), "its sha256 is none"),
        (lambda manifest: manifest.update(files=["model/config.json"]), "it lists no files"),
        (lambda manifest: manifest["files"].pop("recipe.yaml"), "lists no model/config.json, recipe.yaml or"),
        (lambda manifest: manifest["files"].pop("model/model.safetensors"), "lists no weights"),
        (lambda manifest: manifest.update(name="../x"), "a name that no drafter has"),
        (lambda manifest: manifest.update(name="<b>x</b>"), "a name that no drafter has"),
        (lambda manifest: manifest.update(dtype="\x1b[2J"), "what would not be shown as it is"),
        (lambda manifest: manifest["facts"].append({"\u009b2J": 1}), "what would not be shown as it is"),
        (lambda manifest: manifest.update(dtype="\ud800"), "what would not be shown as it is"),
        (lambda manifest: manifest.update(dtype="a\u202eb"), "what would not be shown as it is"),
        (_planted("model/adapter_config.json"), r"adapter_config\.json: no file that an artifact has; refused"),
        (lambda manifest: manifest["target"].pop("identity"), r"it is without target\.identity, which every"),
        (lambda manifest: manifest["target"].update(revision=7), r"it is without target\.revision, which every"),
        (lambda manifest: manifest["shape"].pop("layers"), "it is without the sizes of shape, which every"),
        (lambda manifest: manifest["target_shape"].update(ffn=10**400), "it is without the sizes of target_shape"),
        (lambda manifest: manifest.update(schema_version=1), "is not one of version 2"),
        (lambda manifest: manifest.pop("shape"), "it is without shape, which every artifact's has"),
        (
            lambda manifest: manifest.pop("facts") and manifest.update(facts=[5]),
            "its manifest or one of its evaluations is not as `factory`",
        ),
    ],
)
def test_a_stranger_s_manifest_reaches_no_place_but_its_own(
    published: HubServer, made: Artifact, tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    manifest = json.loads((made.folder / "manifest.json").read_text())
    change(manifest)
    published.add("ada/tiny", {**files_of(made), "factory/manifest.json": json.dumps(manifest).encode()})
    before = {path for path in tmp_path.rglob("*") if "hf" not in path.relative_to(tmp_path).parts}
    with pytest.raises(ArtifactError, match=said):
        pull("ada/tiny", Path("out"), silent)
    after = {path for path in tmp_path.rglob("*") if "hf" not in path.relative_to(tmp_path).parts}
    assert {path.name for path in after - before} <= {"out", ".cache", "pulling"}


@pytest.mark.parametrize("manifest", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_none(published: HubServer, made: Artifact, manifest: bytes) -> None:
    published.add("ada/tiny", {**files_of(made), "factory/manifest.json": manifest})
    with pytest.raises(ArtifactError, match=r"ada/tiny: its factory/manifest\.json (cannot be read|is not one of)"):
        pull("ada/tiny", Path("out"), silent)


def test_records_of_another_manifest_and_of_other_names_stay_behind(published: HubServer, made: Artifact) -> None:
    mine = {"manifest_sha256": made.manifest_digest(), **EVALUATION}
    strange = {
        f"{'0' * 12}.json": {**mine, "manifest_sha256": sha256_text("another")},
        "notes.json": mine,
        f"{'1' * 12}.json": [mine],
        f"{'2' * 12}.json": {**mine, "hardware": {"gpu": "\x1b[2J"}},
    }
    more = {f"factory/evals/{name}": json.dumps(record).encode() for name, record in strange.items()}
    published.add("ada/tiny", {**files_of(made), **more, "factory/certificate.json": b'{"manifest_sha256": "0"}'})
    assert pull("ada/tiny", Path("out"), silent).evaluations == 1
    assert not Path("out/tiny/certificate.json").exists()


def test_names_that_mean_folders_are_left_as_they_are(published: HubServer) -> None:
    Path("mine/x").mkdir(parents=True)
    assert fetched(["mine/x", "ada/tiny", "mine/y"], silent) == [Path("mine/x"), Path("artifacts/tiny"), Path("mine/y")]
    assert not published.seen("GET", "mine")


def test_the_command(published: HubServer) -> None:
    token = published.user("bob", "hf_" + "b0b" * 8)
    run = CliRunner(env={"HF_TOKEN": token}).invoke
    first = run(cli.app, ["pull", "ada/tiny", "--out", "out", "--json"])
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout.splitlines()[-1])
    commit = published.repository("ada/tiny").refs["main"]
    assert told == {
        **{"artifact": "out/tiny", "name": "x", "repository": "ada/tiny", "commit": commit, "new": True},
        "evaluations": 1,
    }
    again = run(cli.app, ["pull", "ada/tiny", "--out", "out"])
    assert again.stdout.splitlines() == [
        f"it was here already: out/tiny, ada/tiny at commit {commit[:12]}, and 0 new evaluations",
        "all 6 files are what its manifest says",
        "next: factory eval out/tiny",
    ]
    for name, said in {
        "tiny": "tiny: wants user/name",
        "./tiny": "no such folder",
        "ada/none": "no such model",
    }.items():
        wrong = run(cli.app, ["pull", name, "--out", "out"])
        assert wrong.exit_code == 2 and said in wrong.stderr and "Traceback" not in wrong.output
    written = b"".join(path.read_bytes() for path in Path.cwd().parent.rglob("*") if path.is_file())
    assert token.encode() not in written
