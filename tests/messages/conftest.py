"""The command itself, in this process, from a folder of its own: what it says and with which code it ends."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from loaded import LLAMA
from typer.main import get_command

from factory import cli


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The folder that commands run in; `target/` holds the config of a Llama of eight layers, enough for `check`."""
    folder = tmp_path
    (folder / "target").mkdir()
    (folder / "target" / "config.json").write_text(json.dumps(LLAMA))
    for name in ("empty", "folder.jsonl"):
        (folder / name).mkdir()
    (folder / "file").write_text("")
    return folder


@pytest.fixture
def commands() -> list[str]:
    """Every command there is."""
    return list(get_command(cli.app).commands)


@pytest.fixture
def factory(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`factory("check", "r.yaml")` -> (exit code, stdout, stderr); the folder's own name is HERE in what it returns."""
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    command = get_command(cli.app)  # once: making it takes longer than most commands

    def run(*arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            command.main(list(arguments), prog_name="factory")
        stdout, stderr = (stream.getvalue().replace(str(here), "HERE") for stream in (out, err))
        return int(ended.value.code or 0), stdout, stderr

    return run
