"""Whole certificates of tiny artifacts: what they hold, where they lie, and what makes them say no."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedModel
from typer.testing import CliRunner

from eval.lossless import certify as certification
from eval.lossless import witness
from eval.lossless.certificate import terminal, verdict
from eval.lossless.certify import certify
from eval.lossless.witness import Scale
from eval.plan import EvalPlan, load_plan
from factory import cli
from factory.artifact import Artifact
from factory.decoding import decoder
from factory.decoding.rejection import Draft, accept
from factory.decoding.sampling import Distribution, PointMasses
from factory.errors import ArtifactError, DataError, FactoryError, UnsupportedModel
from factory.models.located import model_identity

SMALL = Scale(new_tokens=8, draws=200, law_prompts=2)
FEW = Scale(prompts=12, new_tokens=6, draws=200, law_prompts=1)  # never lossless: too few prompts for that


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def certified(*artifacts: Artifact, scale: Scale = SMALL, target: str | None = None, **changes: Any) -> Any:
    plan = EvalPlan.model_validate({**load_plan("smoke").model_dump(), **changes})
    return certify(artifacts, plan, target=target, prompts_file=None, progress=silent, scale=scale)


def shown(certificate: dict[str, Any]) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(terminal(certificate))
    return capture.get()


def test_a_certificate_is_complete_stored_and_on_the_card(built: Artifact) -> None:
    (made,) = certified(built)
    assert made["verdict"] == {"lossless": True, "reason": "every check that was run passed", "not_run": None}
    assert made["prompts"]["distinct"] == 200 == sum(made["prompts"]["sources"].values())
    assert made["ks"] == [1, 3]

    exact, served, sampling = made["float64"], made["served"], made["sampling"]
    readers = {row["reader"] for row in exact["rows"]}
    assert "eager" in readers
    assert [row["k"] for row in exact["rows"]] == [None, 1, 3] * len(readers)
    assert all(row["outputs"] == 200 and row["divergences"] == 0 for row in exact["rows"])
    assert all(row["near_tie_bound"] is None and row["passed"] for row in exact["rows"])
    assert [row["k"] for row in served["rows"]] == [None, 1, 3]
    assert all(0 < row["near_tie_bound"] < 0.01 and row["passed"] for row in served["rows"])
    assert served["dtype"] == "float32"
    assert [(row["k"], row["temperature"]) for row in sampling["rows"]] == [(1, 1.0), (3, 1.0), (1, 0.8), (3, 0.8)] * 2
    for row in sampling["rows"]:
        assert 0 <= row["p"] <= row["p_adjusted"] <= 1
        assert row["draws"] == 200
        assert row["cells"] > 1
        assert row["tokens"] == row["k"] + 2
        assert 0 < row["accepted"] < row["proposed"]  # both branches of the rule
        assert 0 < row["total_variation_expected"] < 1
    assert sampling["reference"] == "float64"
    assert [suite["name"] for suite in made["suites"]] == ["stories"]
    assert len(made["suites"][0]["sha256"]) == 64
    assert made["target"]["identity"] == built.manifest["target"]["identity"]
    assert made["seed"] == 0
    assert made["versions"]["torch"] == version("torch")

    stored = built.certificate()
    assert stored is not None
    assert stored.pop("current") is True
    assert stored.pop("manifest_sha256") == built.manifest_digest()
    assert len(stored.pop("digest")) == 64
    assert stored == json.loads(json.dumps(made))
    built.verify()
    assert built.evals() == []
    card = (built.folder / "README.md").read_text()
    assert "Lossless at k = 1, 3: every check that was run passed." in card
    assert "200 distinct prompts" in card
    assert made["suites"][0]["sha256"][:12] in card
    assert "k = 3" in shown(made)


def test_the_same_command_finds_the_same(built: Artifact) -> None:
    (first,), (second,) = (certified(built, scale=FEW) for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_a_certificate_of_an_older_manifest_is_shown_as_such(built: Artifact) -> None:
    certified(built, scale=FEW)
    path = built.folder / "manifest.json"
    path.write_text(path.read_text() + "\n")
    again = Artifact.open(built.folder)
    stored = again.certificate()
    assert stored is not None
    assert not stored["current"]
    again.write_card()
    card = (built.folder / "README.md").read_text()
    assert "is of an older build, and says nothing about this one" in card
    assert "ossless at k" not in card


def test_a_certificate_that_was_altered_counts_for_nothing(built: Artifact) -> None:
    certified(built, scale=FEW)
    path = built.folder / "certificate.json"
    for altered in (path.read_text().replace('"lossless": false', '"lossless": true'), "{", "[]", "{}"):
        path.write_text(altered)
        assert built.certificate() is None
    built.write_card()
    assert "Not certified: `factory eval" in (built.folder / "README.md").read_text()


def keeps_a_wrong_guess(
    draft: Draft, p: Distribution, u: torch.Tensor | None, last: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Under greedy, the first guess stands whatever the target says."""
    tokens, count = accept(draft, p, u, last)
    if isinstance(p, PointMasses) and draft.tokens.shape[1]:
        tokens = torch.cat([draft.tokens[:, :1], tokens[:, 1:]], dim=1)
    return tokens, count


def accepts_half_as_often(
    draft: Draft, p: Distribution, u: torch.Tensor | None, last: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Only above temperature 0: greedy output stays right."""
    return accept(draft, p, None if u is None else (u * 2).clamp(max=1 - 2**-24), last)


def test_greedy_output_that_is_not_the_targets_is_named(built: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "accept", keeps_a_wrong_guess)
    (made,) = certified(built, scale=FEW)
    assert not made["verdict"]["lossless"]
    assert made["verdict"]["reason"].startswith("float64, reader eager: k = 1 differs from the target alone in ")
    assert "NOT lossless" in (built.folder / "README.md").read_text()
    assert "NOT lossless" in shown(made)


def test_texts_that_do_not_follow_the_law_are_named(built: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "accept", accepts_half_as_often)
    (made,) = certified(built, scale=Scale(prompts=12, new_tokens=4, draws=1000, law_prompts=2))
    assert not made["verdict"]["lossless"]
    assert "the texts do not follow the target's law, chi-square" in made["verdict"]["reason"]
    assert all(row["passed"] for row in made["float64"]["rows"])
    widest = max(made["sampling"]["rows"], key=lambda row: row["total_variation"] - row["total_variation_expected"])
    assert widest["total_variation"] > 2 * widest["plain_total_variation"]


def test_a_target_too_large_for_float64_is_said_and_audited_as_served(
    built: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness, "LARGEST_EXACT", 1000)
    (made,) = certified(built, scale=FEW)
    assert (made["float64"]["ran"], made["float64"]["rows"]) == (False, [])
    assert all(row["passed"] for row in made["served"]["rows"])
    assert made["verdict"]["reason"].startswith("only 12 distinct prompts")
    assert made["verdict"]["not_run"].startswith("float64 parity was not run, because the target has ")
    assert made["sampling"]["reference"] == "float32"
    assert "Float64 parity was not run, because" in (built.folder / "README.md").read_text()
    assert "not run" in shown(made)


def test_bfloat16_is_held_against_its_own_law_and_float64_all_the_same(built: Artifact) -> None:
    (made,) = certified(built, scale=FEW, dtype="bfloat16")
    assert (made["served"]["dtype"], made["sampling"]["reference"]) == ("bfloat16", "bfloat16")
    assert made["float64"]["ran"]
    assert all(row["near_tie_bound"] == 0 or row["near_tie_bound"] > 1e-3 for row in made["served"]["rows"])


def test_a_k_chosen_each_round_and_the_plans_own_processors_are_certified_too(built: Artifact) -> None:
    own = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "no_repeat_ngram_size": 2, "min_p": 0.02, "top_p": 0.95}
    (made,) = certified(built, scale=FEW, ks=(2,), auto_k=True, temperatures=(0.0, 0.7), **own)
    assert made["ks"] == [2, "auto"]
    for row in (*made["float64"]["rows"], *made["served"]["rows"]):
        assert row["passed"]
        assert row["outputs"] == (12 if row["k"] is None else 24)  # with the processors and without
    rows = made["sampling"]["rows"]
    assert [row["k"] for row in rows] == [2, "auto"] * 3
    assert [row["temperature"] for row in rows] == [1.0, 1.0, 0.8, 0.8, 0.7, 0.7]
    assert all(rows[-1][name] == value for name, value in own.items())
    assert all(row["p_adjusted"] > 0.01 and row["impossible"] == 0 for row in rows)
    assert all(0 < row["accepted"] < row["proposed"] for row in rows)
    assert made["verdict"]["reason"].startswith("only 12 distinct prompts")
    assert "at k = 2, auto" in (built.folder / "README.md").read_text()


def test_each_reason_for_no_is_said_in_turn(built: Artifact) -> None:
    (made,) = certified(built, scale=FEW)

    def reason(change: Callable[[dict[str, Any]], Any]) -> str:
        record = copy.deepcopy(made)
        record["prompts"]["distinct"] = 200
        assert verdict(record)["lossless"]
        change(record)
        said = verdict(record)
        assert not said["lossless"]
        return str(said["reason"])

    def fail(part: str, row: int) -> Callable[[dict[str, Any]], Any]:
        return lambda record: record[part]["rows"][row].update(passed=False, divergences=2, detail=["token 3: ..."])

    assert "only 37 distinct prompts" in reason(lambda record: record["prompts"].update(distinct=37))
    assert reason(fail("float64", 0)).startswith(
        "float64, reader eager: plain decoding differs from transformers' uncached forward pass in 2 of 12 outputs"
    )
    assert reason(fail("served", 2)).startswith("float32, reader ")
    assert "k = 3 differs from the target alone" in reason(fail("served", 2))
    sampled = lambda record: record["sampling"]["rows"][2]  # noqa: E731 - a name for one expression
    assert "4 of 200 texts are such as the target never writes" in reason(
        lambda record: sampled(record).update(impossible=4)
    )
    assert "temperature 0.8, top k 20, top p 0.9, k = 1: the texts do not follow" in reason(
        lambda record: sampled(record).update(p_adjusted=0.01)
    )
    assert "nothing was tested" in reason(
        lambda record: [row.update(cells=1) for row in record["sampling"]["rows"]],
    )


def test_an_interruption_keeps_what_is_complete(built: Artifact) -> None:
    raw = Artifact.open(built.folder.with_name("tiny--raw"))

    def interrupted(_done: int, _total: int, what: str) -> None:
        if what.endswith("tiny--raw"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        certify([built, raw], load_plan("smoke"), target=None, prompts_file=None, progress=interrupted, scale=FEW)
    assert built.certificate() is not None
    assert raw.certificate() is None
    (alone,) = certified(raw, scale=FEW)
    assert (alone["artifact"], alone["ks"]) == ("tiny--raw", [2])


def test_a_file_of_few_prompts_is_filled_up_by_the_target(built: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("One two\n")
    (made,) = certify(
        [built],
        load_plan("smoke"),
        target=None,
        prompts_file=file,
        progress=silent,
        scale=Scale(prompts=40, new_tokens=2, draws=60, law_prompts=1),
    )
    assert made["prompts"]["distinct"] == 40
    assert made["prompts"]["sources"] == {"suite": 1, "cut": 3, "written_by_target": 36}
    assert "36 written by the target" in (built.folder / "README.md").read_text()
    assert (made["suites"][0]["name"], made["suites"][0]["version"]) == ("mine", None)


def test_what_cannot_be_certified_is_refused_before_the_work(
    built: Artifact, tmp_path: Path, families: dict[str, Callable[..., PreTrainedModel]]
) -> None:
    with pytest.raises(DataError, match="leaves no room for a prompt"):
        certified(built, scale=Scale(new_tokens=200))
    with pytest.raises(ArtifactError, match="no artifact"):
        certified()

    other = tmp_path / "other"
    families["llama"](vocabulary=128, dtype=torch.float32, seed=1).save_pretrained(other)
    tokenizer = built.load_tokenizer()
    tokenizer.add_tokens(["unheard"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ArtifactError, match="not the same"):
        certified(built, target=str(other))
    with pytest.raises(UnsupportedModel, match=r"another vocabulary than the target.*'unheard'"):
        certified(as_if_made_from(other, built))


def as_if_made_from(target: Path, artifact: Artifact) -> Artifact:
    """Put together by hand: the manifest names another target."""
    manifest = json.loads((artifact.folder / "manifest.json").read_text())
    manifest["target"] |= {"identity": model_identity(target)}
    (artifact.folder / "manifest.json").write_text(json.dumps(manifest))
    artifact.write_target_folder(target)
    (artifact.folder.with_name("tiny--raw") / "manifest.json").unlink()
    return Artifact.open(artifact.folder)


def test_prompts_of_tokens_that_the_target_has_no_row_for_are_left_out(
    built: Artifact, tmp_path: Path, families: dict[str, Callable[..., PreTrainedModel]]
) -> None:
    other = tmp_path / "other"
    families["llama"](vocabulary=96, dtype=torch.float32).save_pretrained(other)
    built.load_tokenizer().save_pretrained(other)  # it knows 128: the stories' later letters are among the rest
    (made,) = certified(as_if_made_from(other, built), scale=FEW)
    assert made["prompts"]["sources"] == {"suite": 0, "cut": 0, "written_by_target": 12}
    assert all(row["passed"] for row in (*made["float64"]["rows"], *made["served"]["rows"]))


def test_an_artifact_that_cannot_be_written_is_refused_before_the_work(built: Artifact) -> None:
    (built.folder / "certificate.json").mkdir()
    with pytest.raises(FactoryError, match=r"certificate\.json: is a folder"):
        certified(built)
    with pytest.raises(FactoryError, match="mend that and run the same command again"):
        built.write_certificate({})


@pytest.mark.slow
@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_the_command_line_certifies_at_full_scale(built: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lambda *more: CliRunner().invoke(cli.app, ["eval", str(built.folder), "--plan", "smoke", *more])  # noqa: E731
    result = run("--certify", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["certificates"]["tiny"]["lossless"]
    stored = built.certificate()
    assert stored is not None
    assert (stored["prompts"]["distinct"], stored["prompts"]["new_tokens"], stored["sampling"]["draws"]) == (
        200,
        24,
        1000,
    )
    assert "the law of sampled text, tiny: 12/12" in result.stderr
    assert "Lossless at k = 1, 3" in result.stdout
    both = run("--certify", "--map")
    assert (both.exit_code, "give one of them" in both.stderr) == (2, True)
    monkeypatch.setattr(certification, "Scale", lambda: FEW)
    assert run("--certify", "--quiet").exit_code == 1
