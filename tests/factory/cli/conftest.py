"""The command line called in this process, and a target that is enough for a forecast."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from loaded import LLAMA
from typer.testing import CliRunner

from factory import cli


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`factory("check", path)` -> (exit code, stdout, stderr), from a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder with the config of an eight-layer Llama and no weights: enough for a forecast."""
    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder
