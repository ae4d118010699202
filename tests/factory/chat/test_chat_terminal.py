"""`factory chat` as it is run: through a pipe, and on a pseudo-terminal with somebody typing."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from factory import cli
from factory.artifact import write_manifest
from factory.building.build import build
from factory.chat.answer import Origin, Piece
from factory.chat.screen import Screen, is_styled
from factory.chat.talk import joined, piped
from factory.models import loading as models
from factory.recipes.recipe import load

RECIPE = """\
name: tiny
target: {{model: {target}}}
data: {{prompts: bos, written_by: target, samples: 4, max_new_tokens: 8, batch: 4}}
stages:
  - {{kind: drop_layers, keep: 3, score: even}}
seed: 0
"""
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")} | {
    "OMP_NUM_THREADS": "1",
    "TERM": "xterm-256color",
    "PYTHONIOENCODING": "utf-8",
}
_made: dict[str, Path] = {}


@pytest.fixture
def artifact(tiny_target: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter of a random target with a long context, made once."""
    if "it" not in _made:
        folder = tmp_path_factory.mktemp("chat")
        target = tiny_target("llama", folder / "target", context=8192)
        (folder / "tiny.yaml").write_text(RECIPE.format(target=target))
        (made,) = build(load(folder / "tiny.yaml", [], None), folder / "artifacts", lambda *_: None)
        _made["it"] = made.folder
    return _made["it"]


@pytest.fixture
def target(artifact: Path) -> Path:
    return artifact.parents[1] / "target"


def chat(*arguments: object, lines: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, with line ends as they were written."""
    command = [sys.executable, "-m", "factory.cli", "chat", "--quiet", *map(str, arguments)]
    done = subprocess.run(command, input=lines.encode(), capture_output=True, env=ENVIRONMENT, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def greedy_text(folder: Path, line: str, count: int) -> str:
    """What transformers writes after a line, by whole forward passes."""
    model, tokenizer = models.load_model(folder, dtype=torch.float32), models.load_tokenizer(folder)
    ids = list(tokenizer(line)["input_ids"])
    begun = len(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    text: str = tokenizer.decode(ids[begun:], skip_special_tokens=True)
    return text


def test_a_pipe_gets_the_answers_and_nothing_else(artifact: Path, target: Path) -> None:
    lines = "def f(\n/clear\n/drafter off\ndef f(\n\n/k 0\n/compare\n"
    code, out, err = chat(artifact, "--k", 3, "--max-new-tokens", 20, lines=lines)
    text = greedy_text(target, "def f(", 20)
    line = text if text.endswith("\n") else text + "\n"
    assert out == line * 2
    assert "\033" not in err
    said = err.splitlines()
    assert said[0].startswith("target: 0.0 M parameters, float32 on cpu, reader ")
    assert said[1].startswith("drafter tiny: ")
    assert "no chat template" in said[2]
    assert said[3] == "the artifact's model drafts, k 3; greedy. /help lists the commands"
    assert re.search(r"tokens/s · tau \d\.\d\d · alpha \d\.\d\d · \d+\.\d\dx the target alone, .* · k 3 · ", said[5])
    assert said[6:8] == ["forgotten: the next line begins anew", "nothing drafts; greedy"]
    assert re.search(r"^\d+\.\d tokens/s · without a drafter · ", said[8])
    assert said[9:] == [
        "/k: must be a whole number from 1 to 64, or auto, not '0'",
        "nothing drafts, so there is nothing to compare with: /drafter on, or /lookup",
    ]
    assert code == 2, "a line was refused"


def test_a_target_alone_drafts_by_lookup(target: Path) -> None:
    lines = "abcabc\\\nabc\n/drafter on\n/quit\nnever\n"
    code, out, err = chat("--target", target, "--k", 2, "--max-new-tokens", 12, lines=lines)
    assert out.removesuffix("\n") == greedy_text(target, "abcabc\nabc", 12).removesuffix("\n")
    assert "prompt lookup drafts, k 2; greedy" in err
    assert "/drafter: there is no model that could draft" in err
    assert code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none"], "no such folder"),
        (["{artifact}/.."], "holds several drafters; name one: "),
        (["{target}"], "a model, not an artifact; `factory chat --target"),
        (["{damaged}"], "damaged (its sha256 is not the manifest's)"),
        ([], "name an ARTIFACT, or give --target"),
        (["--target", "{tmp}"], "has no config.json"),
        (["{artifact}", "--k", "0"], "--k: must be a whole number from 1 to 64, or auto, not '0'"),
        (["{artifact}", "--temperature", "-1"], "--temperature: must be a number from 0"),
        (["{artifact}", "--reader", "fast"], "--reader: must be one of auto, eager"),
        (["{artifact}", "--reader", "packed-int8"], "rounds weights, so it is for drafters only"),
        (["{artifact}", "--drafter-reader", "fast"], "--drafter-reader: must be one of auto, eager"),
        (["{artifact}", "--drafter", "maybe"], "--drafter: must be on, lookup or off, not 'maybe'"),
        (["--target", "{target}", "--drafter", "on"], "--drafter: there is no model that could draft"),
        (["{artifact}", "--system", "be brief"], "no chat template, so a system message has no place"),
        (["{artifact}", "--target", "{other}"], "are not the same"),
    ],
)
def test_what_cannot_be_opened_is_said(
    artifact: Path, target: Path, tiny_target: Callable[..., Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"artifact": artifact, "target": target, "tmp": tmp_path}
    if "{damaged}" in arguments:
        places["damaged"] = shutil.copytree(artifact, tmp_path / "damaged")
        (tmp_path / "damaged" / "model" / "config.json").write_text("{}")
    if "{other}" in arguments:
        places["other"] = tiny_target("llama", tmp_path / "other", seed=9)
    named = [argument.format(**places) for argument in arguments]
    done = CliRunner().invoke(cli.app, ["chat", "--quiet", *named], input="abc\n")
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_drafter_of_another_tokenizer_is_refused(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    shutil.copytree(artifact, folder, ignore=shutil.ignore_patterns("manifest.json", "README.md"))
    ids = json.loads((folder / "model" / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = ids["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "model" / "tokenizer.json").write_text(json.dumps(ids), encoding="utf-8")
    manifest = json.loads((artifact / "manifest.json").read_text())
    write_manifest(folder, {key: value for key, value in manifest.items() if key not in ("files", "schema_version")})
    done = CliRunner().invoke(cli.app, ["chat", "--quiet", str(folder)], input="abc\n")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "the drafter tiny has another vocabulary than the target" in done.stderr
    assert "the first token that differs is 'a'" in done.stderr


def test_its_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from factory.cli import app\n"
        "try: app(['chat', '--help'])\n"
        "except SystemExit: pass\n"
        "try: app(['chat', '/no/such/folder'])\n"
        "except SystemExit as left: print(left.code)\n"
        "print('heavy:', [name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("2\nheavy: []\n"), done.stdout + done.stderr


class Terminal:
    """A chat on a pseudo-terminal."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self.seen = ""
        command = [sys.executable, "-m", "factory.cli", "chat", *map(str, arguments)]
        self.pid, self._there = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts what runs in the background with it ignored
            os.execvpe(command[0], command, ENVIRONMENT | environment)

    def until(self, pattern: str, seconds: float = 90.0) -> str:
        """What appears from now on, up to a pattern."""
        new, end = "", time.monotonic() + seconds
        while not re.search(pattern, new):
            assert time.monotonic() < end, (
                f"{pattern!r} did not come; there was {new!r}, and before {self.seen[-2000:]!r}"
            )
            if select.select([self._there], [], [], 0.2)[0]:
                try:
                    new += os.read(self._there, 65536).decode(errors="replace")
                except OSError:  # the other side is closed
                    break
        self.seen += new
        return new

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._there, text.encode())

    def close(self) -> int:
        """Wait for its end; returns the exit code."""
        self.until("(?!)")
        _, status = os.waitpid(self.pid, 0)
        os.close(self._there)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(*arguments: object, **environment: str) -> Terminal:
        opened.append(Terminal(*arguments, **environment))
        return opened[-1]

    yield open_one
    for one in opened:
        try:
            os.kill(one.pid, signal.SIGKILL)
            os.waitpid(one.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def test_somebody_types(artifact: Path, terminal: Callable[..., Terminal]) -> None:
    one = terminal(artifact, "--quiet", "--k", 3, "--max-new-tokens", 8000)
    one.until(r"\n> $")
    one.type("/help\r")
    assert "/drafter on|off" in one.until(r"\n> $")
    one.type("def f(\r")
    begun = one.until(r"tokens/s")  # the status row, while it is written
    assert "drafted, and the target agreed" in begun, "the legend, before the first answer"
    assert "\033[1;23r" in begun, "a row is kept below"
    assert re.search(r"\033\[24;1H\033\[0;2m\033\[2K\d+\.\d tokens/s · tau ", begun)
    one.type("\003")
    stopped = one.until(r"\n> $")
    assert "\033[r" in stopped, "the row is given back"
    assert re.search(r"\d+\.\d tokens/s · tau .* · stopped", stopped)
    assert "Traceback" not in one.seen
    for colour in ("32", "33", "0"):
        assert f"\033[{colour}m" in one.seen
    one.type("/more\r")
    one.until("tokens/s")
    one.type("\003")
    one.until(r"stopped.*\r\n> $")
    one.type("/drafer\r")
    assert "did you mean /drafter?" in one.until(r"\n> $")
    one.type("/quit\r")
    assert one.close() == 0
    assert "legend" not in one.seen
    assert one.seen.count("drafted, and the target agreed") == 1, "the legend is shown once"


def test_without_colour_a_terminal_gets_plain_text(
    artifact: Path, target: Path, terminal: Callable[..., Terminal]
) -> None:
    one = terminal(artifact, "--quiet", "--max-new-tokens", 20, "--k", 3, NO_COLOR="1")
    one.until(r"\n> $")
    one.type("def f(\r")
    answer = one.until(r"first token after.*\n> $")
    text = greedy_text(target, "def f(", 20).translate({code: 0x2400 + code for code in (*range(9), *range(11, 32))})
    assert text.replace("\x7f", "␡").replace("\n", "\r\n") in answer
    one.type("\004")  # Ctrl-D
    assert one.close() == 0
    # line editing itself may switch bracketed paste on and off
    assert "\033" not in re.sub(r"\033\[\?2004[hl]", "", one.seen)


def test_ctrl_c_at_the_prompt_leaves(artifact: Path, terminal: Callable[..., Terminal]) -> None:
    one = terminal(artifact, "--quiet", "--k", 3)
    one.until(r"\n> $")
    one.type("half a li")
    one.until("half a li")
    time.sleep(1.0)  # Python's readline sees a signal only while it waits: one that comes just before, at the next key
    one.type("\003")
    assert one.close() == 0
    assert "Traceback" not in one.seen


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_that_a_model_writes_steer_nothing() -> None:
    out = Tty()
    screen = Screen(out, out, styled=True)
    screen.begin("x\033[2J")
    screen.show([Piece("a\033]0;title\007\r", Origin.ACCEPTED), Piece("\x9b2J\tb\n", Origin.ACCEPTED)])
    screen.end()
    written = out.getvalue()
    assert "\033[32ma␛]0;title␇␍\ufffd2J\tb\n" in written
    assert "x␛[2J" in written
    plain = io.StringIO()
    Screen(plain, plain, styled=False).show([Piece("a\033[1m", Origin.BONUS)])
    assert plain.getvalue() == "a\033[1m", "a pipe gets the text as it is"


def test_each_token_has_the_colour_of_its_origin() -> None:
    out = io.StringIO()
    screen = Screen(out, io.StringIO(), styled=True)
    pieces = [("a", Origin.PLAIN), ("b", Origin.ACCEPTED), ("c", Origin.ACCEPTED), ("d", Origin.CORRECTED)]
    screen.show([Piece(text, origin) for text, origin in pieces])
    screen.show([Piece("e", Origin.BONUS)])
    screen.end()
    assert out.getvalue() == "a\033[32mbc\033[33md\033[36me\033[0m\n"


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert is_styled(Tty())
    assert not is_styled(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "")
    assert is_styled(Tty()), "empty means unset (no-color.org)"
    monkeypatch.setenv("NO_COLOR", "1")
    assert not is_styled(Tty())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not is_styled(Tty())


def test_a_backslash_joins_lines() -> None:
    assert list(joined(piped(io.StringIO("a\\\nb\\\n\nc\n\nd\\")))) == ["a\nb\n", "c", "", "d"]
