"""`factory eval` as a user types it: what cannot be judged is told with exit code 2, before anything is measured."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from factory import cli
from factory.artifact import Artifact, write_manifest

llama = pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)


@pytest.fixture
def refused(built: Artifact, tmp_path: Path) -> Callable[..., str]:
    """`refused(*options)` is what the command says; nothing may have been written or measured."""
    out = tmp_path / "out"

    def run(*options: object, folder: Path = built.folder) -> str:
        command = ["eval", folder, "--quiet", "--plan", "smoke", "--out", out, *options]
        result = CliRunner().invoke(cli.app, [str(part) for part in command])
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output and result.stdout == ""
        assert not out.exists() or not list(out.iterdir())
        return result.stderr

    return run


@llama
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_of_prompts(refused: Callable[..., str], tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(content)
    assert refused("--prompts", path) == f"{path}: holds no prompt; write one a line\n"


@llama
def test_prompts_that_all_are_too_long(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("".join(f"{number}" + "x" * 150 + "\n" for number in range(5)))
    assert refused("--prompts", path) == (
        "suite mine: 0 different prompts fit (5 skipped: the context leaves room for 147 tokens of prompt); at least 2 "
        "are needed. Give shorter or more prompts, or lower max_new_tokens\n"
    )


@llama
def test_outputs_that_leave_no_room_for_a_prompt(refused: Callable[..., str], tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("max_new_tokens: 200\n")
    said = "max_new_tokens 200 leaves no room for a prompt in a context of 160: lower it in the plan\n"
    assert refused("--plan", plan) == said


@llama
def test_a_target_with_another_tokenizer(refused: Callable[..., str], tiny_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"a"', '"\u00e4"'))
    said = refused("--target", other)
    assert f"weights, config or tokenizer in {other} are not the same; name the right target with --target" in said


@llama
def test_a_drafter_with_another_tokenizer(refused: Callable[..., str], built: Artifact) -> None:
    """A folder put together by hand: whole by its manifest, made from this target, and yet of other tokens."""
    tokenizer = built.model_folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"a"', '"\u00e4"'))
    facts = {key: value for key, value in built.manifest.items() if key not in ("files", "schema_version")}
    (built.folder / "manifest.json").unlink()
    write_manifest(built.folder, facts)
    assert "the drafter tiny has another vocabulary than the target" in (said := refused())
    assert "the first token that differs is 'a' (its id is 91 in the target's tokenizer, none in the drafter's)" in said
