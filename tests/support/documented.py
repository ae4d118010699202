"""What the documentation tells a reader to type, and how far it can be tried.

`pages(root)` are all Markdown pages and the recipes and plans. `commands(root, page)` are the lines of a page's sh,
bash and console blocks, and those at the head of a recipe, each split into the simple commands that a shell makes of
it: comments, `&&`, `;`, `&` and loops are taken apart, `left | right` stays one. A test can do two things with one:

- `run(text)` does it in the folder that it is called in. `factory` and `python` run in this process, since starting
  torch anew for each would take minutes; everything else is bash's.
- `parse(text, root)` looks as far as one can without doing it: files exist, options and their values are known, make
  has the target, a distribution has the extra, the recipe is forecast, the plan loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import typer
from typer.testing import CliRunner

from eval.plan import load_plan
from factory import cli

FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LOOP = re.compile(r"^for (?P<name>\w+) in (?P<pattern>\S+); do (?P<body>.*); done$")
SHELLS = ("sh", "bash", "console")
LAUNCHERS = ("accelerate", "torchrun")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, its text."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """One simple command or pipe, comments taken off, and in a console block what is shown to come of it."""

    page: str
    line: int
    text: str
    shown: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def pages(root: Path) -> list[str]:
    """README first, as a reader comes; then the other pages; then the files that name a command at their head."""
    first = [name for name in ("README.md", "CONTRIBUTING.md", "docs/README.md") if (root / name).is_file()]
    folders = ("docs", "recipes", "eval", "artifacts")
    others = sorted(path.relative_to(root).as_posix() for each in folders for path in (root / each).rglob("*.md"))
    made = [name for name in others if not name.startswith("artifacts/") or name == "artifacts/README.md"]
    files = sorted(
        path.relative_to(root).as_posix()
        for pattern in ("recipes/**/*.yaml", "docs/**/*.yaml", "eval/plans/*.yaml")
        for path in root.glob(pattern)
    )
    return [*first, *(name for name in made if name not in first), *files]


def blocks(root: Path, page: str) -> list[Block]:
    """The fenced blocks of a page; of a YAML file its head, where that holds commands, as one of sh."""
    text = (root / page).read_text(encoding="utf-8")
    if page.endswith(".yaml"):
        head = text[: len(text) - len(text.lstrip("#"))] if not text.startswith("#") else _head(text)
        lines = [line[4:] if line.startswith("#   ") else "" for line in head.splitlines()]
        return [Block(page, 0, "sh", "\n".join(re.split(r" {2,}", line)[0] for line in lines))] if any(lines) else []
    return [
        Block(page, text[: found.start()].count("\n") + 1, found["language"], found["text"])
        for found in FENCE.finditer(text)
    ]


def _head(text: str) -> str:
    lines = text.splitlines()
    end = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[:end])


def commands(root: Path, page: str) -> list[Command]:
    """Every command of a page, in its order."""
    found: list[Command] = []
    for block in blocks(root, page):
        if block.language in SHELLS:
            found += _console(block) if block.language == "console" else _script(root, block)
    return found


def _script(root: Path, block: Block) -> Iterator[Command]:
    waiting = ""
    for number, line in enumerate(block.text.splitlines(), start=block.line + 1):
        if line.endswith("\\"):
            waiting += line[:-1]
            continue
        for text in simple(root, waiting + line):
            yield Command(block.page, number, text)
        waiting = ""


def _console(block: Block) -> Iterator[Command]:
    """`$ ` begins a command, what follows is what it says."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        text, _, shown = part.partition("\n")
        yield Command(block.page, block.line, text, shown)


def simple(root: Path, line: str) -> list[str]:
    """A line of shell as simple commands and pipes. Raises ValueError on what bash does not take."""
    if loop := LOOP.match(line):
        files = sorted(path.relative_to(root).as_posix() for path in root.glob(loop["pattern"]))
        assert files, f"{loop['pattern']}: no such files"
        bodies = [re.sub(rf'"?\$\{{?{loop["name"]}\}}?"?', file, loop["body"]) for file in files]
        return [text for body in bodies for text in simple(root, body)]
    words = shlex.shlex(line, posix=False, punctuation_chars="&;")
    words.whitespace_split, words.commenters = True, "#"
    parts: list[list[str]] = [[]]
    for word in words:
        if word.strip("&;"):
            parts[-1].append(word)
        else:
            parts.append([])
    return [" ".join(part) for part in parts if part]


def snippets(root: Path, page: str, language: str) -> list[Block]:
    """The fenced blocks of one language, of a Markdown page."""
    return [block for block in blocks(root, page) if page.endswith(".md") and block.language == language]


def replaced(text: str, words: Mapping[str, str]) -> str:
    """The command with every placeholder that stands in it as a word of its own replaced."""
    for name, value in words.items():
        text = re.sub(rf"(?<![\w/.-]){re.escape(name)}(?![\w/-])", value, text)
    return text


@dataclass(frozen=True)
class Outcome:
    """What a command ended with and said, stdout and stderr together."""

    code: int
    output: str


def run(text: str, given: str = "") -> Outcome:
    """Do it, here, with `given` typed into it where nothing is piped into it."""
    feeding, _, last = text.rpartition(" | ")
    if feeding:
        given = subprocess.run(["bash", "-c", feeding], check=True, capture_output=True, text=True).stdout
    words = shlex.split(last)
    if words[0] == "factory":
        result = CliRunner().invoke(cli.app, words[1:], input=given or None, prog_name="factory")
        fault = "" if result.exception is None or isinstance(result.exception, SystemExit) else repr(result.exception)
        return Outcome(result.exit_code, result.output + fault)
    if words[0] == "python" and words[1].endswith(".py"):
        return _script_here(words[1:])
    done = subprocess.run(["bash", "-c", last], check=False, capture_output=True, text=True, input=given)
    return Outcome(done.returncode, done.stdout + done.stderr)


class Parsed(BaseException):
    """Raised in place of what a script would do with its arguments. No `except Exception` of the script's stops it."""


def _script_here(words: list[str], only_parse: bool = False) -> Outcome:
    """A Python script in this process, with its folder first on the path as the interpreter puts it."""
    said, before, known = io.StringIO(), (sys.argv, list(sys.path)), set(sys.modules)
    parse_args = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, args: object = None, namespace: object = None) -> object:
        parse_args(self, args, namespace)  # type: ignore[arg-type,call-overload]
        raise Parsed

    code: int | str | None = 0
    sys.argv, sys.path = words, [str(Path(words[0]).resolve().parent), *sys.path]
    if only_parse:
        argparse.ArgumentParser.parse_args = stop  # type: ignore[assignment]
    try:
        # A script may turn Triton's interpreter on, which would be on for all that this process does behind it.
        held = patch.dict(os.environ, TRITON_INTERPRET="0")
        with held, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_path(words[0], run_name="__main__")
    except Parsed:
        pass
    except SystemExit as end:
        code = end.code
    finally:
        argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign]
        sys.argv, sys.path = before[0], before[1]
        beside = str(Path(words[0]).resolve().parent)
        for name in set(sys.modules) - known:  # another script may have a module of the same name beside it
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(beside):
                del sys.modules[name]
    return Outcome(code if isinstance(code, int) else int(code is not None), said.getvalue())


def parse(text: str, root: Path) -> str:
    """What is wrong with a command, as far as one can see without doing it; empty where nothing is."""
    parts = [re.sub(r"\s+[<>].*", "", part) for part in re.split(r"\s+\\?\|\s+", text)]  # a table escapes the bar
    part = next((part for part in parts if part.startswith(("factory ", "python "))), parts[-1])
    words = shlex.split(part)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    try:
        return _fault(words, root)
    except (Exception, SystemExit) as error:  # what typer and argparse say among them
        return f"{type(error).__name__}: {error}"


def _fault(words: list[str], root: Path) -> str:
    for word in words[1:]:
        if re.match(r"(recipes|docs|eval|tests)/", word) and not (root / word).exists():
            return f"{word} is not there"
    program, rest = words[0], words[1:]
    if program in LAUNCHERS or (program == "python" and rest[0] == "-m"):
        place = words.index("-m", 1)
        _launcher(words[:place])
        program, rest = words[place + 1], words[place + 2 :]
    match program:
        case "factory":
            return _factory(rest, root)
        case "python":
            if "parse_args(" not in (root / rest[0]).read_text(encoding="utf-8"):
                return "" if not rest[1:] else f"{rest[0]} takes no arguments"
            outcome = _script_here([str(root / rest[0]), *rest[1:]], only_parse=True)
            return outcome.output if outcome.code else ""
        case "make":
            done = subprocess.run(["make", "-n", *rest], cwd=root, capture_output=True, text=True, check=False)
            return done.stderr if done.returncode else ""
        case "pip":
            return _requirements(rest, root)
        case "git" | "cd" | "." | "pytest" | "docker":
            return ""
        case _:
            return f"{program}: nobody knows how to look at it"
    return ""


def _factory(words: list[str], root: Path) -> str:
    """Of `factory`: the command and its options, then the recipe's forecast or the plan. Raises what typer says."""
    group = typer.main.get_command(cli.app)
    if words[0].startswith("-"):
        known = {option for parameter in group.get_params(typer.Context(group)) for option in parameter.opts}
        return "" if known >= set(words) else f"factory has no {words}"
    command = group.commands.get(words[0])  # type: ignore[attr-defined]
    if command is None:
        return f"factory has no command {words[0]}"
    if words[-1] == "--help":
        return ""
    asked = command.make_context(words[0], words[1:]).params
    recipe = root / str(asked.get("recipe"))
    if words[0] == "build" and recipe.is_file():
        settings = [word for given in asked["settings"] or () for word in ("--set", given)]
        with contextlib.chdir(root):  # where a recipe's paths are looked for too
            result = CliRunner().invoke(cli.app, ["check", str(recipe), *settings])
        return result.output if result.exit_code else ""
    if words[0] == "eval" and (not asked["plan"].endswith(".yaml") or (root / asked["plan"]).is_file()):
        load_plan(str(root / asked["plan"]) if asked["plan"].endswith(".yaml") else asked["plan"])
    return ""


def _launcher(words: list[str]) -> None:
    """Raises SystemExit where a launcher does not know an option of its own."""
    if words[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        launch_command_parser().parse_args([*words[2:], "-m", "factory"])
    elif words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args([*words[1:], "-m", "factory"])


def _requirements(words: list[str], root: Path) -> str:
    """Of `pip install`: this distribution has the extras that are asked for."""
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in words[1:]:
        if found := re.fullmatch(r"(?:drafter-factory|\.|\S*/)\[([\w,]+)\]", word):
            missing = set(found[1].split(",")) - set(extras)
            if missing:
                return f"no such extra: {', '.join(sorted(missing))}"
    return "" if words[0] == "install" else f"pip {words[0]}"
