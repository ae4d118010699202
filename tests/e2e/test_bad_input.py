"""What is wrong with a recipe, its text or its folders, through the command itself: one message, nothing lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from factory import cli
from factory.artifact import Artifact
from factory.building.build import build
from factory.recipes.recipe import load

BOS = "{prompts: bos, samples: 24, max_new_tokens: 12, batch: 8, held_out: 0.2}"
GIVEN = "{prompts: c.jsonl, written_by: none}"


@pytest.fixture
def target(tiny_target: Callable[..., Path], tmp_path: Path) -> Path:
    return tiny_target("llama", tmp_path / "target")


def recipe(folder: Path, target: Path, stage: str, data: str = BOS) -> Path:
    """Line 3 is the data, line 6 the training stage."""
    path = folder / "r.yaml"
    path.write_text(
        f"name: tiny\ntarget: {{model: {target}}}\ndata: {data}\nstages:\n"
        f"  - {{kind: drop_layers, keep: 2, score: even}}\n  - {stage}\n"
    )
    return path


def run(path: Path, *options: str) -> tuple[int, str]:
    """Exit code and what is said on stderr."""
    result = CliRunner().invoke(cli.app, ["build", str(path), "--out", str(path.parent / "out"), "--quiet", *options])
    assert "Traceback" not in result.stderr + result.stdout
    return result.exit_code, result.stderr.strip()


def silent(_done: int, _total: int, _what: str) -> None:
    pass


ROW = {"text": "abcdefgh"}
WRONG: list[tuple[str, list[Any], str, str, str]] = [
    (
        "no column",
        [{"q": "a"}, {"r": "b"}],
        "{prompts: {file: c.jsonl, column: q}}",
        "{kind: distill}",
        "c.jsonl:2: no column 'q'; it has ['r']",
    ),
    (
        "empty row",
        [{"q": "a"}, {"q": ""}],
        "{prompts: {file: c.jsonl, column: q}}",
        "{kind: distill}",
        "c.jsonl:2: no text under 'q'; mend the row, or leave such rows out with `skip_empty: true`",
    ),
    ("empty file", [], "{prompts: c.jsonl}", "{kind: distill}", "c.jsonl: holds no prompt; write one a line"),
    (
        "short text",
        [ROW, {"text": "b"}],
        GIVEN,
        "{kind: distill}",
        "c.jsonl:2: 1 token for the target, where at least 2 are needed; give longer text, or leave it out",
    ),
    (
        "long text",
        [{"text": "a" * 300}],
        GIVEN,
        "{kind: distill}",
        "data.prompts: none of 1 rows fits into the target's context of 160 tokens; give shorter ones",
    ),
    (
        "small pack",
        [{"text": "abcdefghij"}, {"text": "jihgfedcba"}],
        GIVEN,
        "{kind: distill, pack: 8}",
        "r.yaml:6: stages.1: distill: a row of 10 tokens is longer than `pack: 8`; write a larger `pack`",
    ),
    (
        "method on other text",
        [ROW],
        GIVEN,
        "{kind: distill, method: seq_kd}",
        "r.yaml:6: stages.1.method: seq_kd is defined on text written by target; write `written_by: target`, or say "
        "`loss` and `on_policy` in place of the method",
    ),
    (
        "nothing but fresh",
        [ROW],
        GIVEN,
        "{kind: fresh}",
        "r.yaml:6: stages.1: fresh leaves random weights, which draft nothing; add `{kind: distill}` after it",
    ),
    (
        "own text in a cache",
        [ROW],
        GIVEN,
        "{kind: distill, teacher: cache, on_policy: {share: 0.5}}",
        "r.yaml:6: stages.1.teacher: what the drafter will write is in no cache; write `teacher: online`, or no "
        "on_policy",
    ),
    (
        "nothing to learn from own text",
        [ROW],
        GIVEN,
        "{kind: distill, loss: cross_entropy, on_policy: {share: 1.0}}",
        "r.yaml:6: stages.1.loss: cross_entropy learns nothing from what the drafter writes itself, since it is the "
        "likelihood of what the target wrote; add another loss, or remove on_policy",
    ),
    (
        "everything frozen",
        [ROW],
        GIVEN,
        "{kind: distill, freeze: [embedding, head, norms, layers]}",
        "r.yaml:6: stages.1: distill: everything is frozen, so there is nothing to train; shorten `freeze`",
    ),
]


@pytest.mark.parametrize(("rows", "data", "stage", "said"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_told_with_its_place_and_what_to_do(
    target: Path, tmp_path: Path, rows: list[Any], data: str, stage: str, said: str
) -> None:
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, message = run(recipe(tmp_path, target, stage, data))
    assert code == 2
    assert message in (said, f"{tmp_path}/{said}")


def test_fewer_rows_than_a_batch_are_learned_from_more_than_once(target: Path, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps(ROW) + "\n")
    code, message = run(recipe(tmp_path, target, "{kind: distill, epochs: 4, batch: 64}", GIVEN))
    assert (code, message) == (0, "")
    facts = Artifact.open(tmp_path / "out" / "tiny").manifest["facts"][1]
    assert (facts["rows"], facts["steps"], facts["held_out_after"]) == (1, 1, None)


def finished(out: Path) -> dict[str, int]:
    """Texts, caches and stages that are done, with the time at which they were written."""
    kept = [*out.glob(".cache/stages/*/stage.json"), *out.glob(".cache/*/*/shard-*")]
    return {str(path): path.stat().st_mtime_ns for path in kept if ".working" not in str(path)}


def test_a_divergence_says_what_to_lower_and_the_same_command_goes_on(target: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, target, "{kind: distill, epochs: 20, batch: 4, lr: 1.0e+6, teacher: cache, top_k: 8}")
    code, message = run(path)
    assert code == 2
    assert message.startswith(f"{path}:6: stages.1: distill: the ")
    assert "lower `lr` (1000000.0) or `clip` (1.0) in the recipe" in message
    assert message.endswith("The stages before this one are kept.")
    kept = finished(tmp_path / "out")
    assert [sum(f"/{what}/" in name for name in kept) for what in ("text", "teacher", "stages")] == [3, 1, 1]
    recipe(tmp_path, target, "{kind: distill, epochs: 2, batch: 4, lr: 1.0e-3, teacher: cache, top_k: 8}")
    assert run(path) == (0, "")
    assert kept.items() <= finished(tmp_path / "out").items()  # nothing of it was made again


class InterruptError(Exception):
    pass


def interrupted(path: Path) -> Path:
    """Begin a build that ends behind its second checkpoint; the folder that holds it."""

    def until(done: int, _total: int, what: str) -> None:
        if "distilling" in what and done == 5:
            raise InterruptError

    with pytest.raises(InterruptError):
        build(load(path), path.parent / "out", until)
    (working,) = path.parent.glob("out/.cache/stages/*.working")
    assert (working / "checkpoint.pt").is_file()
    return working


def test_an_old_checkpoint_does_not_stand_in_the_way_of_a_changed_recipe(target: Path, tmp_path: Path) -> None:
    stage = "{kind: distill, epochs: 2, batch: 4, checkpoint_every: 2}"
    path = recipe(tmp_path, target, stage)
    old = interrupted(path)
    assert run(path, "--set", "stages.1.lr=0.001") == (0, "")
    assert (old / "checkpoint.pt").is_file()  # and the old recipe still goes on from it
    first: list[int] = []
    build(load(path), tmp_path / "out", lambda done, _, what: first.append(done) if "distilling" in what else None)
    assert first[0] == 4  # told at once where it goes on
    assert not old.exists()


def test_a_checkpoint_of_another_recipe_is_refused_and_kept(target: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, target, "{kind: distill, epochs: 2, batch: 4, checkpoint_every: 2}")
    old = interrupted(path)
    changed = load(path, ["stages.1.lr=0.001"])
    digest = _digest(changed, tmp_path / "out")
    folder = old.with_name(f"{digest}.working")
    shutil.copytree(old, folder)
    code, message = run(path, "--set", "stages.1.lr=0.001")
    assert code == 2
    assert f"{folder}/checkpoint.pt: a checkpoint of another training" in message
    assert message.endswith("remove that folder to begin this one anew")
    assert (folder / "checkpoint.pt").is_file()
    shutil.rmtree(folder)
    assert run(path, "--set", "stages.1.lr=0.001") == (0, "")


def _digest(loaded: list[Any], out: Path) -> str:
    from factory.building.build import _jobs

    (job,) = _jobs(loaded, out, silent)
    return job.chain[-1]


def test_a_teacher_cache_of_another_target_is_refused(
    tiny_target: Callable[..., Path], target: Path, tmp_path: Path
) -> None:
    stage = "{kind: distill, epochs: 1, batch: 4, teacher: cache, top_k: 8}"
    (tmp_path / "other").mkdir()
    other = recipe(tmp_path / "other", tiny_target("llama", tmp_path / "other target", seed=3), stage)
    assert run(other) == (0, "")
    path = recipe(tmp_path, target, stage)
    from factory.building.build import _jobs

    (tmp_path / "out").mkdir()
    (job,) = _jobs(load(path), tmp_path / "out", silent)
    folder = job.teacher_folder(job.recipe.stages[1])
    (cache,) = (tmp_path / "other" / "out" / ".cache" / "teacher").iterdir()
    shutil.copytree(cache, folder)
    for part in ("whole", "shards alone"):
        code, message = run(path)
        assert code == 2, part
        assert str(folder) in message and "teacher cache of " in message and "remove " in message
        assert (folder / "shard-00000.safetensors").is_file()
        (folder / "meta.json").unlink(missing_ok=True)
    shutil.rmtree(folder)
    assert run(path) == (0, "")
