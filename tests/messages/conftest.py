"""The command itself, in this process, from a folder of its own: what it says and with which code it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from factory import cli

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 8,
    "max_position_embeddings": 160,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that commands run in; `target/` holds the config of a Llama of eight layers, enough for `check`."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "target").mkdir()
    (folder / "target" / "config.json").write_text(json.dumps(LLAMA))
    return folder


@pytest.fixture
def factory(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`factory("check", "r.yaml")` -> (exit code, stdout, stderr); the folder's own name is HERE in what it returns."""
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(cli.app, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        stdout, stderr = (text.replace(str(here), "HERE") for text in (result.stdout, result.stderr))
        return result.exit_code, stdout, stderr

    return run
