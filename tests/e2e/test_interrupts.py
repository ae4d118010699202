"""Ctrl-C at real processes: they end, say the very command that goes on, lose nothing, and show no traceback.

Of a build in several processes it is in test_grid.py, of an evaluation in tests/eval/timing/test_partial.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import HANGS_S, Command

from factory.building.build import build
from factory.recipes.recipe import load

LONG = """\
name: long
target: {model: target}
data: {prompts: bos, samples: 64, max_new_tokens: 100, batch: 16}
stages:
  - {kind: drop_layers, keep: 2}
  - {kind: distill, loss: forward_kl, epochs: 2000, lr: 1.0e-3, batch: 8, checkpoint_every: 5}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_target: Callable[..., Path]) -> Path:
    """A target, and a recipe that trains for ever."""
    tiny_target("llama", tmp_path / "target")
    (tmp_path / "long.yaml").write_text(LONG)
    return tmp_path


def ends(command: Command, code: int, *arguments: str) -> None:
    """It ends so, with the words that go on as its last line, and no traceback before them."""
    found, out, err = command.end()
    assert (found, out) == (code, ""), err
    said = "interrupted: what is finished is kept; to go on from there: python -m factory "
    assert err[-1] == said + " ".join(arguments)
    assert not [line for line in err if "Traceback" in line or "Error" in line or "ignored" in line]


def test_within_the_imports(folder: Path) -> None:
    for wait_s in (0.0, 0.1, 0.4):
        command = Command("build", "long.yaml", folder=folder)
        while not handles_sigterm(command.process.pid):  # the first thing that it does
            time.sleep(0.001)
        time.sleep(wait_s)
        command.interrupt()
        ends(command, 130, "build", "long.yaml")
    command = Command("build", "long.yaml", folder=folder)
    command.until("starting")  # torch is being imported
    command.interrupt(signal.SIGTERM)
    ends(command, 143, "build", "long.yaml")


def handles_sigterm(pid: int) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_while_it_trains_and_nothing_of_it_is_lost(folder: Path) -> None:
    command = Command("build", "long.yaml", "--out", "my out", folder=folder)
    command.until("distilling")
    checkpoint = until_there(folder / "my out", "checkpoint.pt")
    command.interrupt()
    time.sleep(0.05)
    command.interrupt()  # impatience shows no traceback
    ends(command, 130, "build", "long.yaml", "--out", "'my out'")
    assert checkpoint.is_file()
    begun = []

    def note(done: int, total: int, what: str) -> None:
        if what.startswith("distilling"):
            begun.append(done)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(load(folder / "long.yaml"), folder / "my out", note)
    assert begun[0] >= 5


def until_there(folder: Path, name: str) -> Path:
    """The file of that name, as soon as it is there."""
    given_up_s = time.monotonic() + HANGS_S
    while time.monotonic() < given_up_s:
        if found := next(folder.rglob(name), None):
            return found
        time.sleep(0.01)
    raise AssertionError(f"no {name}")
