"""What a real build and evaluation put on the screen: this program's own lines, whatever libraries print."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command

RECIPE = """\
name: tiny
target: {model: target}
data: {prompts: bos, samples: 16, max_new_tokens: 24}
stages:
  - {kind: drop_layers, keep: 2, score: even}
  - {kind: distill, epochs: 1, batch: 8}
"""
GPTQ = "  - {kind: gptq, bits: 4, group_size: 32, samples: 16}\n"
PROGRESS = re.compile(r"[a-z].*( \.\.\.|: (done|took \S+( s)?|\S+( s)? so far|\d+/\d+(, .*)?))")


@pytest.fixture
def folder(tmp_path: Path, tiny_target: Callable[..., Path]) -> Path:
    """A recipe with its target; its last stage is that of the noisiest library, where that is installed."""
    tiny_target("llama", tmp_path / "target", hidden_size=64, intermediate_size=64, head_dim=16)
    (tmp_path / "tiny.yaml").write_text(RECIPE + (GPTQ if importlib.util.find_spec("gptqmodel") else ""))
    return tmp_path


def test_only_our_own_lines_are_on_the_screen_and_the_rest_is_in_the_log(folder: Path) -> None:
    code, out, err = Command("build", "tiny.yaml", "--json", folder=folder).end()
    assert code == 0, err
    *table, last = out.splitlines()
    assert json.loads(last)["artifacts"][0]["name"] == "tiny"
    assert all(line.strip()[0] in "┏┃┡│└c" for line in table), table
    assert [line for line in err if not PROGRESS.fullmatch(line)] == []
    assert err[:2] == ["reading prompts ...", "reading prompts: done"]
    if importlib.util.find_spec("gptqmodel"):
        assert "rounding to 4 bits: 2/2" in "\n".join(err)
        (log,) = (folder / "cache" / "drafter-factory" / "logs").iterdir()
        assert "GPT-QModel" in log.read_text()
    code, out, err = Command("eval", "artifacts/tiny", "--plan", "smoke", "--json", folder=folder).end()
    assert code == 0, err
    assert "verdict" in json.loads(out.splitlines()[-1])
    assert [line for line in err if not PROGRESS.fullmatch(line)] == []
    said = {line.split(":")[0].removesuffix(" ...").split(",")[0] for line in err}
    assert said >= {
        "starting",
        "loading the target",
        "opening",
        "parity with the target",
        "timing",
        "writing the report",
    }


def test_verbose_shows_what_the_log_would_hold_and_keeps_none(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(RECIPE.replace("prompts: bos", "prompts: gone.txt"))
    code, out, err = Command("build", "tiny.yaml", "-v", "--json", folder=folder).end()
    assert code == 2
    assert json.loads(out.splitlines()[-1])["error"]["exit_code"] == 2
    assert not (folder / "cache").exists()
    assert "gone.txt" in "\n".join(err)
