"""What is shown of long work: in a pipe, on a terminal as it is and as narrow or plain as it may be."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from factory import progress
from factory.progress import Lines, Pace, bytes_shown, duration, shown_progress, speed, step

ROOT = Path(__file__).resolve().parents[2]
WORK = """\
import logging, sys, time
from factory import logs
from factory.progress import shown_progress
logs.begin("build", verbose="-v" in sys.argv)
with shown_progress(quiet=False) as show:
    for done in range(5):
        show(done, 4, f"writing a long story that no narrow terminal has room for, {done} tokens/s")
        time.sleep(0.3)
        logging.getLogger("factory").warning("we warn")
        print("a library complains", file=sys.stderr)
"""


def test_in_a_pipe_each_thing_has_a_line_where_it_begins_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress(quiet=False) as show:
        for done in range(5):
            show(done, 4, "writing")
        show(4, 8, "training")  # goes on from a checkpoint
        show(5, 8, "training, loss 2.2")  # a reading is no new thing
        show(0, 2, "copying")  # two at once
        show(6, 8, "training, loss 2.1")
        show(8, 8, "training, loss 2.1")
        with step(show, "loading"):
            pass
    assert capsys.readouterr().err.splitlines() == [
        "writing: 0/4",
        "writing: 4/4",
        "training: 4/8",
        "copying: 0/2",
        "training, loss 2.1: 8/8",
        "loading ...",
        "loading: done",
    ]


def test_between_there_is_a_line_now_and_then_also_where_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, written = [100.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_s[0])
    show = Lines(written.append)
    show(0, 100, "writing")
    for done in range(1, 15):
        now_s[0] += 1
        show(done, 100, "writing")
    assert written == ["writing: 0/100", "writing: 10/100, 1.0/s, 1:30 left"]
    show.remind()
    assert len(written) == 2
    now_s[0] += 6
    show.remind()
    assert written[-1] == "writing: 14/100, 1.4 s each, 2:03 left"
    show(100, 100, "writing")
    assert written[-1] == "writing: 100/100, took 20 s"
    now_s[0] += 100
    show.remind()  # nothing is left to be said of
    assert len(written) == 4


def test_a_pace_is_that_of_the_last_minute_and_what_was_there_took_no_time() -> None:
    pace = Pace(50, 0.0)
    assert pace.words(100, 0.5) == ""
    for second in range(1, 101):
        pace.look(50 + second * (1 if second <= 30 else 2), float(second))
    assert 1.9 < pace.per_s(100.0) <= 2.0
    assert Pace(5, 0.0).words(10, 3.0) == "3 s so far"


@pytest.mark.parametrize(
    ("rate", "said"), [(1234.5, "1,234/s"), (12.3, "12/s"), (3.42, "3.4/s"), (0.4, "2.5 s each"), (0.01, "1:40 each")]
)
def test_rates_in_words(rate: float, said: str) -> None:
    assert speed(rate) == said


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "0 s"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")])
def test_durations_in_words(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_bytes_are_megabytes_and_few_are_not_worth_a_word() -> None:
    told: list[tuple[int, int, str]] = []
    more = bytes_shown(lambda *what: told.append(what), "hashing", 300_000_000)
    more(150_000_000)
    more(150_000_000)
    assert told == [(0, 300, "hashing, MB"), (150, 300, "hashing, MB"), (300, 300, "hashing, MB")]
    bytes_shown(lambda *what: told.append(what), "hashing", 1_000)(1_000)
    assert len(told) == 3


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress(quiet=True) as show:
        show(1, 2, "writing")
    assert capsys.readouterr().err == ""


def on_a_terminal(columns: int, cache: Path, *arguments: str, **environment: str) -> str:
    """What such a terminal is sent by WORK."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    own = {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "XDG_CACHE_HOME": str(cache)}
    settings = {**os.environ, **own, **environment}
    settings.pop("COLUMNS", None)
    done = subprocess.Popen(
        [sys.executable, "-c", WORK, *arguments], env=settings, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    sent = b""
    try:
        while part := os.read(ours, 1 << 16):
            sent += part
    except OSError:  # the terminal's other end is closed
        pass
    os.close(ours)
    assert done.wait(60) == 0
    return sent.decode()


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left(tmp_path: Path) -> None:
    sent = on_a_terminal(120, tmp_path)
    plain = re.sub(r"\033\[[0-9;?]*[A-Za-z]", "", sent)
    assert "━" in plain and re.search(r"\d/4 \d[^\r\n]*(/s|s each), \d+ s left", plain)
    assert re.search(r"4 tokens/s: 4/4, took \d+ s", plain)
    assert plain.count("\nwe warn\r\n") + plain.count("\rwe warn\r\n") == 5  # each a line of its own, above the bar
    assert "a library complains" not in plain
    plain = re.sub(r"\033\[[0-9;?]*[A-Za-z]", "", on_a_terminal(120, tmp_path, "-v"))
    assert len(re.findall(r"[\r\n]a library complains *\r\n", plain)) == 5
    assert len(re.findall(r"[\r\n][-\d]+ [:\d,]+ WARNING factory: we warn *\r\n", plain)) == 5
    assert "\033[?25l" in sent and sent.rindex("\033[?25h") > sent.rindex("\033[?25l")  # the cursor comes back


def test_a_narrow_terminal_has_one_line_and_no_colour_where_none_is_wanted(tmp_path: Path) -> None:
    sent = on_a_terminal(44, tmp_path, NO_COLOR="1")
    assert not re.search(r"\033\[[0-9;]*3\dm", sent)
    drawn = [
        line for line in re.split(r"[\r\n]+|\033\[2K", re.sub(r"\033\[[0-9;?]*[a-zJA]", "", sent)) if "left" in line
    ]
    assert drawn and all(len(line) <= 44 for line in drawn), drawn
    assert not re.search(r"\d/?…", sent)  # how far it is stands there in full, also before there is a rate


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    sent = on_a_terminal(80, tmp_path, TERM="dumb")
    assert "\033" not in sent
    assert sent.splitlines()[0].endswith("0 tokens/s: 0/4")
