"""What is wrong with recipes, plans and calls, told in full: every row of `tables/*.txt` through the command itself.

A table holds its own explanation, and then rows: `== what it is about`, the text of the recipe or plan, other files
behind `-- their/name`, the call behind `$`, and all that must then stand on stderr, HERE for the folder it ran in.
Exit code 2, and nothing on stdout but check's own line for a recipe that is wrong.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

TABLES = Path(__file__).parent / "tables"
# What the rows of a table leave out.
BEGINNINGS = {
    "stages": "name: x\ntarget: {model: target}\ndata: {prompts: bos, samples: 10}\nstages:\n",
    "data": "name: x\ntarget: {model: target}\n",
    "grids": "name: x\ntarget: {model: target}\ndata: {prompts: bos}\nstages:\n  - {kind: drop_layers, keep: 2}\n"
    "  - {kind: distill}\n",
}
ENDS = {"data": "stages: [{kind: distill}]\n"}


@dataclass(frozen=True)
class Row:
    """A wrong call: the files that it finds, and what is said to it."""

    title: str
    files: dict[str, str]
    call: str
    said: str


def rows_of(path: Path) -> list[Row]:
    """The rows of one table."""
    rows = []
    for part in path.read_text(encoding="utf-8").split("\n== ")[1:]:
        above, call = part.split("\n$ ", 1)
        title, *others = f"{above}\n".split("\n-- ")
        title, _, text = title.partition("\n")
        main = "p.yaml" if path.stem == "plans" else "r.yaml"
        text += "\n" if others and text else ""  # the split took it
        files = {main: BEGINNINGS.get(path.stem, "") + text + ENDS.get(path.stem, "")}
        files |= dict(other.split("\n", 1) for other in others)
        call, _, said = call.partition("\n")
        rows.append(Row(title, files, call, said.strip("\n")))
    return rows


ROWS = {f"{path.stem}: {row.title}": row for path in sorted(TABLES.glob("*.txt")) for row in rows_of(path)}


def test_the_tables_name_every_command(commands: list[str]) -> None:
    called = {shlex.split(row.call)[0] for row in ROWS.values()}
    assert set(commands) <= called
    assert len(ROWS) >= 60


@pytest.mark.parametrize("name", ROWS)
def test_what_is_wrong_is_told_in_full(factory: Callable[..., tuple[int, str, str]], here: Path, name: str) -> None:
    row = ROWS[name]
    for file, text in row.files.items():
        path = here / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    code, stdout, stderr = factory(*shlex.split(row.call))
    assert (code, stderr.rstrip("\n")) == (2, row.said)
    kept = [line for line in stdout.splitlines() if not line.startswith("wrong  ")]
    assert kept == []
