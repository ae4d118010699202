"""The command line: exit codes, what goes to which stream, and what is never imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from factory import __version__, interrupts
from factory.cli import shell
from factory.errors import DataError

ROOT = Path(__file__).resolve().parents[3]
ANY = ROOT / "recipes" / "demo" / "any.yaml"


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["build", "--help"],
        ["check", "recipes/demo/any.yaml"],
        ["check", "recipes/demo/quick.yaml"],
        ["check", "no"],
        ["clean", "no"],
    ],
)
def test_help_and_check_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from factory.cli import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit: pass\n"
        "print('heavy:', [name for name in ('torch', 'transformers', 'numpy', 'matplotlib') if name in sys.modules])"
    )
    done = python("-c", code)
    assert done.stdout.endswith("heavy: []\n"), done.stdout + done.stderr


def test_exit_codes_of_the_real_process() -> None:
    version = python("-m", "factory.cli", "--version")
    assert (version.returncode, version.stdout) == (0, f"drafter-factory {__version__}\n")
    good = python("-m", "factory.cli", "check", "recipes/demo/any.yaml")
    assert (good.returncode, good.stderr) == (0, "")
    bad = python("-m", "factory.cli", "check", "recipes/demo/any.yaml", "--set", "stages.0.keep=none")
    assert (bad.returncode, bad.stdout) == (2, "wrong  recipes/demo/any.yaml\n")
    assert bad.stderr == "--set stages.0.keep: must be a number or a list, not the text 'none'\n"
    assert python("-m", "factory.cli", "nonsense").returncode == 2


def test_clean_says_how_much(factory: Callable[..., tuple[int, str, str]]) -> None:
    Path("out/.cache/text").mkdir(parents=True)
    Path("out/.cache/text/a").write_bytes(b"x" * 1234)
    Path("out/.cache/replaced").mkdir()
    Path("out/.cache/replaced/b").write_bytes(b"x" * 5)
    Path("out/.lock").touch()
    code, out, _ = factory("clean", "out", "--dry-run")
    assert (code, out.splitlines()[:2]) == (0, ["would remove out/.cache/text", "out: 1,234 bytes would be freed"])
    code, out, _ = factory("clean", "out")
    assert out.splitlines() == [
        "removed out/.cache/text",
        "out: 1,234 bytes freed",
        "5 bytes of replaced artifacts are kept; --replaced removes them",
    ]
    assert factory("clean", ".")[0] == 2


def test_build_without_a_target_asks_for_one(factory: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = factory("build", ANY)
    assert (code, out) == (2, "")
    assert re.fullmatch(r".*any\.yaml:\d+: target\.model: .*give one with --target MODEL_OR_FOLDER\n", err)


@pytest.mark.parametrize("command", ["ls", "show", "eval", "report"])
def test_a_folder_that_is_not_there_is_the_users_to_mend(
    factory: Callable[..., tuple[int, str, str]], command: str
) -> None:
    code, _, err = factory(command, "gone")
    assert code == 2
    assert "gone" in err
    assert "Traceback" not in err


def test_an_unknown_plan_is_told_before_anything_is_loaded(factory: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = factory("eval", "gone", "--plan", "hsaty")
    assert code == 2
    assert err.startswith("plan hsaty: no such file")


def test_ls_of_an_empty_folder_says_how_to_fill_it(factory: Callable[..., tuple[int, str, str]]) -> None:
    Path("mine").mkdir()
    code, out, err = factory("ls", "mine")
    assert (code, out) == (0, "")
    assert err == "mine: no artifact yet; `factory build RECIPE --out mine` makes one\n"


def raises(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return shell.reported(command)


def test_each_kind_of_failure_has_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    codes = {}
    for error in (DataError("p.txt: empty"), KeyboardInterrupt(), ZeroDivisionError("first\nsecond")):
        with pytest.raises(typer.Exit) as caught:
            raises(error)()
        codes[type(error).__name__] = (caught.value.exit_code, capsys.readouterr().err)
    assert codes["DataError"] == (2, "p.txt: empty\n")
    assert codes["KeyboardInterrupt"] == (
        130,
        f"\n{interrupts.words()}\n",
    )
    (log,) = (tmp_path / "drafter-factory").iterdir()
    message = f"a fault of this program: ZeroDivisionError: first\nthe traceback is in {log}\n"
    assert codes["ZeroDivisionError"] == (1, message)
    assert "in command" in log.read_text()
    assert "ZeroDivisionError: first\nsecond" in log.read_text()


def test_without_a_cache_folder_the_log_goes_to_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(shell.tempfile, "gettempdir", lambda: str(tmp_path))
    with pytest.raises(typer.Exit):
        raises(RuntimeError("x"))()
    (log,) = tmp_path.glob("fault-*.log")
    assert str(log) in capsys.readouterr().err


def test_a_failure_ends_with_a_line_of_json_where_one_was_asked_for(
    factory: Callable[..., tuple[int, str, str]],
) -> None:
    for command in ("build", "check", "eval", "ls", "show", "report", "clean", "convert"):
        given = ["gone", "out"] if command == "convert" else ["gone"]
        code, out, err = factory(command, *given, "--json")
        record = json.loads(out.splitlines()[-1])
        if command == "check":  # which answers for each recipe
            assert (code, record["recipes"][0]["faults"]) == (2, [err.strip()])
        else:
            assert (code, record["error"]["exit_code"]) == (2, 2), command
            assert err.strip().endswith(record["error"]["message"])
            assert record["error"]["kind"].endswith("Error")


def test_commands_without_much_to_say_say_it_in_json_too(factory: Callable[..., tuple[int, str, str]]) -> None:
    Path("out/.cache/text").mkdir(parents=True)
    Path("out/.cache/text/a").write_bytes(b"x" * 1234)
    Path("out/.lock").touch()
    last = {command: json.loads(factory(command, "out", "--json")[1].splitlines()[-1]) for command in ("ls", "clean")}
    assert last["ls"] == {"artifacts": []}
    assert last["clean"] == {
        "folders": ["out/.cache/text"],
        "bytes": 1234,
        "dry_run": False,
        "replaced_bytes_kept": 0,
    }
