"""Commands as processes of their own, as a shell starts them: watched line by line, and interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HANGS_S = 90.0  # far beyond what any machine needs: who waits so long would wait for ever


class Command:
    """`python -m factory ...` in a folder of the test's own, which is its cache too."""

    def __init__(self, *arguments: object, folder: Path) -> None:
        self.err: list[str] = []
        self._more = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "factory", *map(str, arguments)],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "XDG_CACHE_HOME": str(folder / "cache"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A test run in the background has SIGINT ignored, and what it starts would ignore it too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self.err.append(line.rstrip("\n"))
                self._more.notify_all()

    def until(self, text: str) -> str:
        """The first line on stderr that holds this text."""
        with self._more:
            found = self._more.wait_for(
                lambda: next((line for line in self.err if text in line), None) or not self._reader.is_alive(), HANGS_S
            )
        assert isinstance(found, str), f"no line with {text!r}: {self.err}"
        return found

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """As Ctrl-C does, or `kill`."""
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, list[str]]:
        """Exit code, stdout, lines on stderr."""
        assert self.process.stdout is not None
        hangs = threading.Timer(HANGS_S, self.process.kill)
        hangs.start()
        out = self.process.stdout.read()
        code = self.process.wait()
        hangs.cancel()
        self._reader.join(HANGS_S)
        return code, out, self.err
