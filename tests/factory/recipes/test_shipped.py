"""`factory init`: what is shipped, copied to where one works; nothing of the user's is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from factory import cli
from factory.recipes.recipe import load

ROOT = Path(__file__).resolve().parents[3]
TARGET = ROOT / "recipes/demo/target"


def init(*arguments: object) -> tuple[int, str, str]:
    told = CliRunner().invoke(cli.app, ["init", *map(str, arguments)])
    return told.exit_code, told.stdout, told.stderr


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What is shipped, but for the weights: these are 25 MB. In the layout of an installed package."""
    from factory.recipes import shipped

    folder = tmp_path / "shipped"
    for path in (ROOT / "recipes").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc", ".safetensors"):
            copy = folder / path.relative_to(ROOT / "recipes")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(shipped, "_INSTALLED", folder)
    return folder


def test_the_clone_gives_every_recipe_and_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said, _ = init(tmp_path / "mine")
    assert code == 0
    assert f"next: cd {tmp_path / 'mine'} && factory check ." in said
    names = {path.name for path in (ROOT / "recipes").rglob("*.yaml")}
    assert {path.name for path in (tmp_path / "mine").glob("*.yaml")} == names
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "mine/target" / name).read_bytes() == (TARGET / name).read_bytes()
    assert not list((tmp_path / "mine").rglob("*.py"))
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checked = CliRunner().invoke(cli.app, ["check", "."])
    assert checked.exit_code == 0, checked.stderr
    assert checked.stdout.count("ok     ") == len(names)
    (loaded,) = load(Path("quick.yaml"))
    assert loaded.recipe.target.model == str(tmp_path / "mine/target")


def test_commands_in_a_recipe_are_for_where_it_now_lies(light: Path, tmp_path: Path) -> None:
    init(tmp_path / "mine")
    texts = [path.read_text() for path in (tmp_path / "mine").glob("*.yaml")]
    assert sum("factory build " in text for text in texts) > 5
    assert not any("recipes/" in text for text in texts)


def test_again_it_does_nothing(light: Path, tmp_path: Path) -> None:
    init(tmp_path / "mine")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").rglob("*")}
    code, said, _ = init(tmp_path / "mine")
    assert (code, "0 files written" in said) == (0, True)
    assert json.loads(init(tmp_path / "mine", "--json")[1].splitlines()[-1])["written"] == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").rglob("*")} == before


def test_what_differs_is_named_and_kept_unless_forced(light: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "quick.yaml").write_text("name: my own\n")
    code, said, wrong = init(mine)
    assert (code, said) == (2, "")
    assert f"{mine / 'quick.yaml'}: is there already, and is not the shipped one" in wrong
    assert [path.name for path in mine.iterdir()] == ["quick.yaml"]
    code, _, _ = init(mine, "--force")
    assert code == 0
    assert load(mine / "quick.yaml")[0].name == "quick"


def test_a_file_in_the_place_of_a_folder_is_refused(light: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    code, _, wrong = init(tmp_path / "mine")
    assert (code, "a file; give a folder" in wrong) == (2, True)
    (tmp_path / "other" / "quick.yaml").mkdir(parents=True)
    code, _, wrong = init(tmp_path / "other", "--force")
    assert (code, "a folder where a file belongs" in wrong) == (2, True)
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "target").write_text("")
    code, _, wrong = init(tmp_path / "third")
    assert (code, "Traceback" in wrong) == (2, False)


def test_what_a_build_left_is_no_recipe_to_check(light: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = CliRunner().invoke(cli.app, ["check", "."]).stdout
    for place in ("artifacts/quick", "artifacts/.cache/recipes"):
        (tmp_path / "mine" / place).mkdir(parents=True)
        (tmp_path / "mine" / place / "recipe.yaml").write_text("name: 1\n")
    (tmp_path / "mine/artifacts/quick/manifest.json").write_text("{}")
    assert CliRunner().invoke(cli.app, ["check", "."]).stdout == names
    named = CliRunner().invoke(cli.app, ["check", "artifacts/quick/recipe.yaml"])  # by its name it is looked at
    assert named.exit_code == 2
    (tmp_path / "mine/artifacts/mine.yaml").write_text("name: 1\n")
    assert CliRunner().invoke(cli.app, ["check", "."]).exit_code == 2
