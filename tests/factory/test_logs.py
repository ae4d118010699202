"""Where libraries' words go: each case in a process of its own, since streams and loggers are a whole process's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

GONE = 1 << 30  # no process has such a number
ROOT = Path(__file__).resolve().parents[2]
NOISE = """\
import logging, os, sys, warnings
from factory import interrupts, logs
from factory.progress import shown_progress
{begin}
library = logging.getLogger("transformers.deep.inside")
library.addHandler(logging.StreamHandler())
library.propagate = False
logs.quieten("transformers")
library.warning("a library warns")
warnings.warn("python warns")
os.write(2, b"C++ writes\\n")
logging.getLogger("factory.building").warning("we warn")
logging.getLogger("factory.building").info("we note")
with shown_progress(quiet=False) as show:
    show(0, 2, "working")
    print("a library prints")
    print("a library complains", file=sys.stderr)
    logging.getLogger("factory.building").warning("we warn again")
    show(2, 2, "working")
print("the result")
print("the end", file=sys.stderr)
print(logs.log_file())
logs.end()
"""
LIBRARIES = ("a library warns", "python warns", "C++ writes", "a library prints", "a library complains")


def said(begin: str, cache: Path) -> tuple[list[str], list[str]]:
    """Lines on stdout and on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", NOISE.format(begin=begin)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_a_command_keeps_the_screen_for_itself(tmp_path: Path) -> None:
    out, err = said("logs.begin('build', verbose=False)", tmp_path)
    (log,) = (tmp_path / "drafter-factory" / "logs").iterdir()
    assert out == ["the result", str(log)]
    assert err == ["we warn", "working: 0/2", "we warn again", "working: 2/2", "the end"]
    kept = log.read_text()
    assert all(words in kept for words in (*LIBRARIES, "we warn", "we note"))


def test_verbose_shows_everything_on_stderr(tmp_path: Path) -> None:
    out, err = said("logs.begin('build', verbose=True)", tmp_path)
    assert out == ["the result", "None"]
    assert all(words in "\n".join(err) for words in (*LIBRARIES, "we note"))
    assert not list(tmp_path.iterdir())


def test_a_program_that_imports_this_one_keeps_its_streams(tmp_path: Path) -> None:
    out, err = said("", tmp_path)
    assert out == ["a library prints", "the result", "None"]
    assert "a library complains" in err and "C++ writes" in err
    assert "a library warns" not in err
    assert not list(tmp_path.iterdir())


def test_addresses_which_may_be_signed_are_not_logged(tmp_path: Path) -> None:
    signed = 'logging.getLogger("httpx2").info("HTTP Request: PUT https://bucket/file?X-Amz-Signature=5ecret")'
    for verbose in (True, False):
        out, err = said(f"logs.begin('publish', verbose={verbose}); import huggingface_hub; {signed}", tmp_path)
        logs = "".join(path.read_text() for path in tmp_path.rglob("*.log"))
        assert "5ecret" not in logs + str(err) + str(out) and "we note" in logs + str(err)


def test_a_log_without_a_word_is_removed_and_old_ones_are(tmp_path: Path) -> None:
    folder = tmp_path / "drafter-factory" / "logs"
    folder.mkdir(parents=True)
    for number in range(30):
        (folder / f"20200101-0000{number:02d}-build-{GONE}.log").touch()
    at_work = folder / f"20200101-000000-build-{os.getpid()}.log"
    at_work.touch()
    code = "from factory import logs\nlogs.begin('ls', verbose=False)\nlogs.end()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    left = sorted(path.name for path in folder.iterdir())
    assert len(left) == 20  # one is of a process that is still at work
    assert left[0] == at_work.name and left[1].endswith(f"000011-build-{GONE}.log")


def test_a_log_has_an_end(tmp_path: Path) -> None:
    code = (
        "import logging\nfrom factory import logs\nlogs.MOST_BYTES = 1000\nlogs.begin('build', verbose=False)\n"
        "with logs.aside():\n for _ in range(20): print('a library prints')\n"
        "for _ in range(99): logging.getLogger('library').info('a word and another')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    (log,) = (tmp_path / "drafter-factory" / "logs").iterdir()
    assert log.stat().st_size < 1200 and log.read_text().endswith("the log is full: nothing more is written here\n")


def test_of_a_crash_the_log_has_what_was_said_and_where_it_was(tmp_path: Path) -> None:
    code = (
        "import os\nfrom factory import logs\nlogs.begin('build', verbose=False)\n"
        "def crashes(): os.write(2, b'terminate called\\n'); os.abort()\ncrashes()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    (log,) = (tmp_path / "drafter-factory" / "logs").iterdir()
    assert done.returncode == -signal.SIGABRT and done.stderr == ""
    assert log.read_text().startswith("terminate called\nFatal Python error: Aborted") and "crashes" in log.read_text()
