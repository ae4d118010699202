"""`factory eval user/name`: a stranger's drafter on this machine, the published figures beside the new ones."""

import json
import re
import shlex
from pathlib import Path

import pytest
from hub_server import HubServer
from typer.testing import CliRunner

from factory import cli, load_drafter, pull
from factory.artifact import Artifact
from factory.publishing.contents import contents

PAGE = (Path(__file__).resolve().parents[3] / "docs/pulling.md").read_text(encoding="utf-8")
PLAN = """\
suites: [stories]
prompts: 2
confirm_prompts: 2
warmup_prompts: 1
max_new_tokens: 12
repeats: 1
confirm_repeats: 1
parity_prompts: 2
parity_new_tokens: 12
ks: [2, 4]
lookup_ks: [2]
temperatures: [0.0]
reader: eager
drafter_reader: eager
device: cpu
dtype: float32
threads: 1
"""


@pytest.fixture
def published(hub: HubServer, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """ada/tiny, measured on a GPU; its target was a folder of its publisher's, and is ada/target on the Hub."""
    [results] = artifact.evals()
    del results["manifest_sha256"]
    target = artifact.target_folder()
    assert target is not None
    hub.add("ada/target", {path.name: path.read_bytes() for path in target.iterdir()})
    artifact.manifest["target"]["model"] = "/publisher/target"
    (artifact.folder / "manifest.json").write_text(json.dumps(artifact.manifest))
    artifact.write_eval({**results, "hardware": {"gpu": "<i>a GPU</i> of the publisher"}})
    sent = {
        one.path: one.source if isinstance(one.source, bytes) else one.source.read_bytes()
        for one in contents(artifact, "---\nbase_model: ada/target\n---\n", [])
    }
    hub.add("ada/tiny", sent)
    (tmp_path / "reader").mkdir()
    monkeypatch.chdir(tmp_path / "reader")
    return hub


def test_a_published_drafter_is_measured_here_by_the_commands_of_the_page(published: HubServer) -> None:
    Path("plan.yaml").write_text(PLAN)
    block = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)[0].replace("user/name", "ada/tiny")
    lines = [shlex.split(line, comments=True) for line in block.replace("drafters/name", "drafters/tiny").splitlines()]
    assert [line[:2] for line in lines] == [["factory", name] for name in ("eval", "pull", "show")]
    ran, *others = (
        CliRunner().invoke(cli.app, [*line[1:], *(["--plan", "plan.yaml", "--json"] if line[1] == "eval" else [])])
        for line in lines
    )
    assert ran.exit_code == 0, ran.output
    for other, said in zip(others, ("pulled: drafters/tiny", "every file is what the manifest says"), strict=True):
        assert other.exit_code == 0 and said in other.output
    assert "Published, and measured here" in ran.stdout and "<i>a GPU</i> of the publisher" in ran.stdout
    commit = published.repository("ada/tiny").refs["main"]
    assert f"Published as ada/tiny, commit {commit[:12]}." in ran.stdout

    told = json.loads(ran.stdout.splitlines()[-1])
    results = json.loads(Path("artifacts/tiny/results.json").read_text())
    here = {row["k"]: row for row in results["candidates"] if row["prompt_set"] == "choose"}
    pairs = {pair["k"]: pair for pair in told["published"] if pair["prompt_set"] == "choose"}
    assert set(pairs) == {2, 3, 4}
    assert pairs[2]["here"]["speedup"] == here[2]["speedup"] and pairs[2]["here"]["tau"] >= 1
    assert pairs[2]["published"]["device"] == "<i>a GPU</i> of the publisher" and pairs[2]["published"]["tau"] >= 1
    assert pairs[3]["here"] is None and pairs[4]["published"] is None

    page = Path("artifacts/tiny/report.html").read_text()
    assert "Published, and measured here" in page
    assert "&lt;i&gt;a GPU&lt;/i&gt; of the publisher" in page and "<i>a GPU</i>" not in page
    made = Artifact.open("artifacts/tiny")
    assert len(made.evals()) == 2 and not any("published" in one for one in made.evals())

    again = CliRunner().invoke(cli.app, ["report", "artifacts/tiny"])  # from the files alone
    assert again.exit_code == 0 and "Published, and measured here" in Path("artifacts/tiny/report.html").read_text()


def test_a_program_and_a_conversation_take_a_name_on_the_hub(published: HubServer) -> None:
    assert pull("ada/tiny").folder == Path("artifacts/tiny")
    pair = load_drafter("ada/tiny", device="cpu", reader="eager", drafter_reader="eager")
    assert pair.artifact.folder == Path("artifacts/tiny") and pair.k in (2, 3)
    [written] = pair.generate("def main():", max_new_tokens=8)
    assert written.tokens == pair.generate("def main():", max_new_tokens=8, k=0)[0].tokens
    asked = ["chat", "ada/tiny", "--max-new-tokens", "4", "--reader", "eager", "--drafter-reader", "eager"]
    talk = CliRunner().invoke(cli.app, asked, input="def main():\n")
    assert talk.exit_code == 0 and "drafter tiny" in talk.stderr, talk.output


def test_another_target_than_its_own_is_refused(published: HubServer) -> None:
    repository = published.repository("ada/target")
    config = json.loads(repository.files()["config.json"].data)
    files = {path: blob.data for path, blob in repository.files().items() if path != ".gitattributes"}
    published.add("ada/target", {**files, "config.json": json.dumps({**config, "rms_norm_eps": 0.5}).encode()})
    Path("plan.yaml").write_text(PLAN)
    ran = CliRunner().invoke(cli.app, ["eval", "ada/tiny", "--plan", "plan.yaml"])
    assert ran.exit_code == 2
    assert "are not the same; name the right target with --target" in ran.stderr


def test_a_target_that_nobody_else_has_must_be_named(published: HubServer) -> None:
    sent = {path: blob.data for path, blob in published.repository("ada/tiny").files().items()}
    published.add("ada/tiny", {**sent, "README.md": b"# tiny\n"})
    Path("plan.yaml").write_text(PLAN)
    ran = CliRunner().invoke(cli.app, ["eval", "ada/tiny", "--plan", "plan.yaml"])
    assert ran.exit_code == 2
    assert ran.stderr.splitlines()[-1] == (
        "artifacts/tiny: its target, the folder /publisher/target, is not here; name it with --target"
    )
