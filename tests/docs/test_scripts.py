"""Scripts that users call, given what they cannot read or write: a message and exit code 2, before any measuring."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
Said = Callable[..., str]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Said:
    """`said("table.py", "gone.json")`: the last line on stderr of a script that ends with exit code 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(DOCS / "benchmarks"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # a script would turn it on for this whole process
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "cut.json").write_text('{"a": [\n')
    (tmp_path / "other.json").write_text(json.dumps([1]))

    def run(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(DOCS / script), run_name="__main__")
        assert ended.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


TABLE = "table.py: error: "
AUDIT = "audit.py: error: "
MOVES = "moves.py: error: "
NO_FILE = "No such file or directory; name the"
ROWS = [
    (
        "table.py",
        "gone.json",
        f"{TABLE}gone.json: {NO_FILE} results.json of a `factory eval`",
    ),
    ("table.py", "folder", f"{TABLE}folder: Is a directory; name the results.json of a `factory eval`"),
    *(
        ("table.py", file, f"{TABLE}{file}: not the results.json that `factory eval` writes; run it again")
        for file in ("empty.json", "cut.json", "other.json")
    ),
    (
        "audit.py",
        "gone.jsonl x",
        f"{AUDIT}gone.jsonl: {NO_FILE} tokens.jsonl of a `factory eval`",
    ),
    ("audit.py", "other.json x", f"{AUDIT}other.json: not the tokens.jsonl that `factory eval` writes; run it again"),
    ("benchmarks/moves.py", "gone.json", f"{MOVES}gone.json: no such file; name the JSON that an earlier run wrote"),
    (
        "benchmarks/moves.py",
        "cut.json",
        f"{MOVES}cut.json: not JSON from line 2, column 1 on; name the JSON that an earlier run wrote",
    ),
    (
        "benchmarks/moves.py",
        "other.json",
        f"{MOVES}that JSON is not what this script writes; name one of its own, or run it again",
    ),
    (
        "benchmarks/moves.py",
        "other.json --to gone/x.json",
        f"{MOVES}argument --to: gone/x.json: there is no folder gone; make it, or name another",
    ),
    (
        "benchmarks/cuda_kernels.py",
        "--to folder",
        "cuda_kernels.py: error: argument --to: folder: a folder; name a file in it",
    ),
]


@pytest.mark.parametrize(("script", "arguments", "message"), ROWS, ids=[f"{row[0]} {row[1]}" for row in ROWS])
def test_what_cannot_be_read_or_written_is_told(said: Said, script: str, arguments: str, message: str) -> None:
    assert said(script, *arguments.split()) == message


def test_a_target_that_cannot_be_loaded_is_told(said: Said) -> None:
    message = said("audit.py", "empty.json", "folder")
    assert message.startswith(f"{AUDIT}folder: no model that can be loaded (Unrecognized model in folder")
    assert message.endswith("); name its folder")
