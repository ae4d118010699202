"""docs/terminal.md: its commands are there, long commands have its options, its words are those shown."""

import re
import shlex
from pathlib import Path

import typer
from typer.testing import CliRunner

from factory import cli, interrupts
from factory.progress import Pace

PAGE = (Path(__file__).resolve().parents[2] / "docs/terminal.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
OPTIONS = {name: {flag for one in command.params for flag in one.opts} for name, command in COMMANDS.items()}
# The rest is over at once, or talks.
LONG = ("build", "eval", "report", "doctor", "convert", "publish", "pull")


def test_long_commands_have_the_options_that_the_page_promises() -> None:
    promised = set(re.findall(r"^\| `(--[\w-]+)`", PAGE, re.MULTILINE))
    assert promised == {"--json", "--quiet", "--verbose"}
    assert {name: promised - OPTIONS[name] for name in LONG if promised - OPTIONS[name]} == {}
    assert [name for name in ("check", "ls", "show", "clean") if "--json" not in OPTIONS[name]] == []


def test_commands_on_the_page_are_there() -> None:
    known = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        _, option = shlex.split(line, comments=True)
        assert option in known
    for command in re.findall(r"`factory (\w+)", PAGE):
        assert command in OPTIONS


def test_what_it_quotes_is_what_is_said() -> None:
    pace = Pace(0, 0.0)
    pace.look(310, 100.0)
    assert f"310/1200, {pace.words(1200, 100.0)}" in PAGE
    assert interrupts.words().split(" python")[0].split(" factory")[0] in PAGE
