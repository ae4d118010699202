"""What a shell is offered: asked as bash asks, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "transformers", "numpy", "matplotlib", "huggingface_hub", "pyarrow")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "artifacts" / "made").mkdir(parents=True)
    (tmp_path / "artifacts" / "made" / "manifest.json").write_text("{}")
    (tmp_path / "artifacts" / "empty").mkdir()
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def asked(folder: Path, line: str) -> list[str]:
    """What bash is offered behind that line; nothing heavy may be imported for it."""
    code = (
        "import sys; sys.argv[0] = 'factory'\n"
        "from factory.__main__ import main\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    words = line.split(" ")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_FACTORY_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == "[]\n"
    return done.stdout.split()


def test_values_are_completed_by_what_is_there(folder: Path) -> None:
    assert "build" in asked(folder, "factory bu")
    assert asked(folder, "factory build ") == ["artifacts/", "mine.yaml"]
    assert asked(folder, "factory check mi") == ["mine.yaml"]
    assert asked(folder, "factory show ") == ["artifacts/made/", "artifacts/"]
    assert asked(folder, "factory eval artifacts/") == ["artifacts/made/", "artifacts/empty/"]
    assert asked(folder, "factory eval artifacts/made --plan d") == ["default", "demo"]
    assert asked(folder, "factory check mine.yaml --device h") == ["here", "h200"]


def test_a_shell_can_be_told(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "factory", "--show-completion", "bash"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert "_FACTORY_COMPLETE=complete_bash" in done.stdout, done.stderr
