"""Real processes: a fault of the program itself, output that cannot be written, and what a log may hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "name: x\nstages: [{kind: drop_layers, keep: 2}]\n"
# A command whose inside is broken, and a secret that is none of a log's business.
PLANTED = (
    "import factory.recipes.recipe as recipe\n"
    "def broken(*_, **__): raise ZeroDivisionError('first\\nsecond')\n"
    "recipe.load = broken\n"
    "from factory.cli import main; main()\n"
)
SECRET = "hf_" + "notatokenatall" * 2


def run(
    folder: Path, *command: str, cache: Path, out: int | Path = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        **{"PYTHONPATH": str(ROOT), "HF_TOKEN": SECRET, "HF_HUB_OFFLINE": "1"},
        **{"XDG_CACHE_HOME": str(cache), "TMPDIR": str(folder / "temporary")},
    }
    (folder / "temporary").mkdir(exist_ok=True)
    (folder / "r.yaml").write_text(RECIPE)
    stdout = out.open("w") if isinstance(out, Path) else out
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("cache", ["cache", "file"])
def test_a_fault_of_the_program_is_one_line_and_a_log(tmp_path: Path, cache: str) -> None:
    """Where the cache folder cannot be made, the log goes to the temporary one."""
    (tmp_path / "file").write_text("")
    done = run(tmp_path, "-c", PLANTED, "check", "r.yaml", cache=tmp_path / cache)
    where = tmp_path / "temporary" if cache == "file" else tmp_path / "cache" / "drafter-factory"
    (log,) = where.glob("*.log")
    message = f"a fault of this program: ZeroDivisionError: first\nthe traceback is in {log}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
    text = log.read_text()
    assert "in broken" in text and "ZeroDivisionError: first\nsecond" in text
    assert SECRET not in text


def test_the_real_command_tells_a_fault_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(RECIPE + "sede: 1\n")
    done = run(tmp_path, "-m", "factory", "check", "s.yaml", cache=tmp_path)
    assert (done.returncode, done.stdout) == (2, "wrong  s.yaml\n")
    assert done.stderr == "s.yaml:3: sede: unknown key 'sede'; did you mean 'seed'?\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_output_to_a_full_disk_is_told(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "factory", "check", "r.yaml", "--json", cache=tmp_path, out=Path("/dev/full"))
    full = "No space left on device: make room there and run the same command again; what is finished is kept"
    assert (done.returncode, done.stderr) == (2, f"stdout: {full}\n")


def test_a_pipe_that_nobody_reads_is_no_fault(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(tmp_path, "-m", "factory", "check", "r.yaml", "--json", cache=tmp_path, out=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_streams_that_are_closed_are_no_fault(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    for command in ("check r.yaml --json", "build r.yaml"):
        shell = f"exec '{sys.executable}' -m factory {command} <&- >&- 2>&-"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = subprocess.run(["sh", "-c", shell], cwd=tmp_path, env=environment)
        assert done.returncode == (2 if command.startswith("build") else 0)
    assert list((tmp_path / "cache").rglob("*.log")) == []
