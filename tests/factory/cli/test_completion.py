"""What a shell is offered: asked as bash asks, in one process for all questions."""

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


OFFERED = {
    "factory build ": ["artifacts/", "mine.yaml"],
    "factory check mi": ["mine.yaml"],
    "factory show ": ["artifacts/made/", "artifacts/"],
    "factory eval artifacts/": ["artifacts/made/", "artifacts/empty/"],
    "factory eval artifacts/made --plan d": ["default", "demo"],
    "factory check mine.yaml --device h": ["here", "h200"],
    "factory bu": ["build"],
}
ASKS = f"""\
import os, sys
sys.argv[0] = "factory"
from factory.__main__ import main
for line in {[*OFFERED]}:
    os.environ |= dict(COMP_WORDS=line, COMP_CWORD=str(len(line.split(" ")) - 1))
    print("==", line)
    try:
        main()
    except SystemExit:
        pass
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def test_values_are_completed_by_what_is_there_and_nothing_heavy_is_imported_for_it(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_FACTORY_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", ASKS], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]\n"
    answers = (part.partition("\n") for part in done.stdout.split("== ")[1:])
    assert {line: said.split() for line, _, said in answers} == OFFERED


def test_a_shell_can_be_told(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "factory", "--show-completion", "bash"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert "_FACTORY_COMPLETE=complete_bash" in done.stdout, done.stderr
