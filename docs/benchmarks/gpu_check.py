"""Everything that waits for a GPU, by one command: the tests that need one, the goals of speed, a drafter made on it.

    make wheels                                    # where there is a network: what the GPU machine lacks, into .wheels/
    make gpu-check                                 # on the GPU machine, no network: cuda-*.json and cuda.md here
    make gpu-check SIZE=small                      # on a CPU: everything runs, its figures mean nothing
    python docs/benchmarks/gpu_check.py --only steps rounds --budget 300
    python docs/benchmarks/gpu_check.py --table    # the table of the JSON that lies here

Each part is a process of its own with its own time, so that one that fails, hangs or dies costs no other; it writes its
rows as they are measured. They run in order of importance until the time is out. Without CUDA the size is small, and
what needs a GPU is skipped by name. Nothing is installed but `.wheels/`, into a folder that git ignores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # the package is not installed on such a machine

from gpu_table import PREFIX, table  # noqa: E402

from factory.files.atomic import write_atomically  # noqa: E402

WHEELS = ROOT / ".wheels"
WHEELS_FOR = (3, 12)
SCRATCH = ROOT / "work" / "gpu-check"  # git ignores it
BUDGET_S = {"full": 570.0, "small": 1800.0}  # in all; a CPU takes its time
SLOWER = 3.0  # what a part at small size may take, in its own limits
LEAST_S = 10.0  # with less left no part begins
SHUTDOWN_S = 5.0  # that a part has between its last measurement and its end
LOG_LINES = 25
INTERRUPTED = 130  # exit code, as a shell has it


@dataclass(frozen=True)
class Part:
    """What is measured in one process, and for how long at most."""

    name: str
    limit_s: float
    beside: bool = False  # the next part, which is not timed


PARTS = (  # in order of importance
    Part("environment", 75),
    Part("gptq", 150, beside=True),  # a kernel may have to be compiled first: a minute or more of the processor alone
    Part("tests", 70),
    Part("steps", 150),
    Part("rounds", 80),
    Part("training", 120),
    Part("enlarged", 150),
    Part("gpt-fast", 110),
    Part("products", 100),
    Part("placement", 90),
)
NAMES = [part.name for part in PARTS]
# What a part is started with, told its seconds; a test has others.
CommandOf = Callable[[Part, float], Sequence[str]]


@dataclass(frozen=True)
class Outcome:
    """How a part ended."""

    name: str
    status: str  # measured, failed or skipped
    seconds: float
    reason: str | None

    @property
    def words(self) -> str:
        """One line."""
        return f"{self.name:<12} {self.status:<9} {self.seconds:6.1f} s{f'  {self.reason}' if self.reason else ''}"


def file_of(part: str, folder: Path) -> Path:
    """Where a part's JSON lies."""
    return folder / f"{PREFIX}{part}.json"


def run(
    parts: Sequence[Part],
    command_of: CommandOf,
    folder: Path,
    logs: Path,
    budget_s: float,
    told: Callable[[str], None],
    environment: dict[str, str] | None = None,
) -> list[Outcome]:
    """Run the parts in order; whatever becomes of one, the next begins, until the time is out."""
    begun_s, found = time.monotonic(), []
    beside: list[Running] = []
    try:
        for part in parts:
            limit_s = min(part.limit_s, budget_s - (time.monotonic() - begun_s))
            if limit_s < LEAST_S:
                found.append(Outcome(part.name, "skipped", 0.0, f"no time left of {budget_s:.0f} s"))
                told(found[-1].words)
                continue
            told(f"-- {part.name}, {limit_s:.0f} s at most{', beside the next' if part.beside else ''}")
            running = Running(part, command_of, limit_s, file_of(part.name, folder), logs, environment)
            beside.append(running)
            if part.beside:
                continue
            while beside:
                found.append(beside[-1].outcome())
                told(found[-1].words)
                beside.pop()
        while beside:
            found.append(beside[-1].outcome())
            told(found[-1].words)
            beside.pop()
    finally:
        for running in beside:  # Ctrl-C, say
            running.interrupt()
    return found


class Running:
    """A part in its process, which is ended with all that it started where it takes longer than it may."""

    def __init__(
        self,
        part: Part,
        command_of: CommandOf,
        limit_s: float,
        to: Path,
        logs: Path,
        environment: dict[str, str] | None,
    ) -> None:
        self._part, self._limit_s, self._to, self._log = part, limit_s, to, logs / f"{part.name}.log"
        self._begun_s = time.monotonic()
        to.unlink(missing_ok=True)
        command = command_of(part, max(1.0, limit_s - SHUTDOWN_S))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stderr=log, cwd=ROOT, env=environment, start_new_session=True)

    def outcome(self) -> Outcome:
        """How it ended, once it has; its JSON says so too."""
        name = self._part.name
        try:
            status = self._process.wait(max(0.0, self._limit_s - (time.monotonic() - self._begun_s)))
            reason = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        except subprocess.TimeoutExpired:
            status, reason = self.end(), f"took longer than {self._limit_s:.0f} s"
        taken_s, kept = time.monotonic() - self._begun_s, _read(self._to)
        if status == 0 and kept is not None and kept["status"] != "running":
            return Outcome(name, str(kept["status"]), taken_s, kept["reason"])
        return self._failed(f"{reason}: {_last_line(self._log)}" if status >= 0 else reason)

    def interrupt(self) -> None:
        """End it before its time; where it was not through, its JSON keeps what was measured and says so."""
        self.end()
        kept = _read(self._to)
        if kept is None or kept["status"] == "running":
            self._failed("interrupted")

    def _failed(self, reason: str) -> Outcome:
        name, taken_s = self._part.name, time.monotonic() - self._begun_s
        kept = _read(self._to) or {"part": name, "size": "unknown", "rows": [], "left_out": [], "facts": {}}
        if kept["rows"]:
            reason += f"; {len(kept['rows'])} rows were measured before"
        kept |= {"status": "failed", "reason": reason, "seconds": taken_s, "log": _last_lines(self._log)}
        write_atomically(self._to, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        return Outcome(name, "failed", taken_s, reason)

    def end(self) -> int:
        """End it now, and what it started: they are a process group of their own. Returns its status."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _last_lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]


def _last_line(log: Path) -> str:
    return next((line.strip() for line in reversed(_last_lines(log)) if line.strip()), "it said nothing")[:300]


def install(wheels: Path, site: Path) -> str | None:
    """Unpack the wheels into a folder for PYTHONPATH; no network, nothing of the machine's own changed.

    Returns what is wrong, in words; None too where there are no wheels, or this is not the Python that they are for.
    """
    shutil.rmtree(site, ignore_errors=True)
    files = sorted(wheels.glob("*.whl"))
    if not files or sys.version_info[:2] != WHEELS_FOR:
        return None
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
    ]
    command += ["--no-compile", "--target", str(site), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return f"{wheels} was not installed: {(done.stderr.strip() or 'pip said nothing').splitlines()[-1]}"


def surroundings(site: Path) -> dict[str, str]:
    """Environment variables of the parts: where modules lie, compiled kernels kept for the next run, no network."""
    paths = [str(folder) for folder in (site, ROOT, HERE) if folder.is_dir()]
    paths += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    found = {
        "TORCHINDUCTOR_CACHE_DIR": str(SCRATCH / "inductor"),
        "TRITON_CACHE_DIR": str(SCRATCH / "triton"),
        "GPTQMODEL_TORCH_EXTENSIONS_DIR": str(SCRATCH / "gptqmodel"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    return {
        **os.environ,
        **{name: os.environ.get(name, value) for name, value in found.items()},
        "PYTHONPATH": os.pathsep.join(paths),
    }


def missing(environment: dict[str, str]) -> list[str]:
    """Modules that are to be had neither from the machine nor from `.wheels/`."""
    needed = ("torch", "transformers", "pydantic", "yaml", "typer", "safetensors")
    code = f"import importlib.util as u; print(*[n for n in {needed!r} if u.find_spec(n) is None])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    return done.stdout.split()


def has_cuda(environment: dict[str, str]) -> bool:
    """Asked in another process: this one holds no context on the device."""
    done = subprocess.run(
        [sys.executable, "-c", "import torch; raise SystemExit(not torch.cuda.is_available())"],
        capture_output=True,
        check=False,
        env=environment,
    )
    return done.returncode == 0


def budget(text: str) -> float:
    """Seconds, as argparse asks for them."""
    found = float(text)
    if not found > 0:
        raise argparse.ArgumentTypeError(f"{text} is no time: give seconds, more than 0")
    return found


def arguments_of(given: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=("full", "small"), help="full on CUDA, small elsewhere")
    parser.add_argument("--to", type=Path, help="folder of JSON and table; here for a full run, else below work/")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="PART", help=f"of {', '.join(NAMES)}")
    parser.add_argument(
        "--budget", type=budget, metavar="SECONDS", help=f"for all parts together; {BUDGET_S['full']:.0f} at full size"
    )
    parser.add_argument(
        "--drafter", nargs="+", type=Path, default=[], help="artifacts of the shipped target; else made here"
    )
    parser.add_argument("--gpt-fast", type=Path, metavar="DIR", help="a checkout of gpt-fast, to be run beside ours")
    parser.add_argument(
        "--table", nargs="?", const=HERE, type=Path, metavar="DIR", help="only print the table of its JSON"
    )
    found = parser.parse_args(given)
    absent = [str(folder) for folder in found.drafter if not (folder / "manifest.json").is_file()]
    if absent:
        parser.error(f"--drafter {', '.join(absent)}: no artifact there; `factory build` makes one")
    if found.gpt_fast and not (found.gpt_fast / "generate.py").is_file():
        parser.error(f"--gpt-fast {found.gpt_fast}: no checkout of gpt-fast there (no generate.py)")
    if found.table and not found.table.is_dir():
        parser.error(f"--table {found.table}: no such folder")
    if found.to and found.to.exists() and not found.to.is_dir():
        parser.error(f"--to {found.to}: is there and no folder: name another")
    return found


def main(given: Sequence[str] | None = None) -> int:
    """Measure and print, or print what was measured.

    1 where a part failed, 2 where nothing could begin, 130 where it was interrupted.
    """
    asked = arguments_of(given)
    if asked.table:
        print(table(asked.table))
        return 0
    begun_s = time.monotonic()
    for folder in (SCRATCH / "logs", SCRATCH / "made"):
        folder.mkdir(parents=True, exist_ok=True)
    site = SCRATCH / "site"
    fault = install(WHEELS, site)
    environment = surroundings(site)
    lacking = missing(environment)
    if lacking:
        print(
            f"{sys.executable} has no {', '.join(lacking)}: {fault or 'make wheels, where there is a network'}",
            file=sys.stderr,
        )
        return 2
    if fault:
        print(fault, flush=True)
    cuda = has_cuda(environment)
    if asked.size == "full" and not cuda:
        print("--size full needs a CUDA device; on a CPU say --size small, or nothing", file=sys.stderr)
        return 2
    size = asked.size or ("full" if cuda else "small")
    to = (asked.to or (HERE if size == "full" and cuda else SCRATCH / "json")).resolve()
    to.mkdir(parents=True, exist_ok=True)

    def command_of(part: Part, seconds: float) -> list[str]:
        command = [
            sys.executable,
            str(HERE / "gpu_parts.py"),
            part.name,
            "--size",
            size,
            "--to",
            str(file_of(part.name, to)),
        ]
        command += [
            "--device",
            "cuda" if cuda else "cpu",
            "--seconds",
            f"{seconds:.0f}",
            "--work",
            str(SCRATCH / "made"),
        ]
        command += [one for folder in asked.drafter for one in ("--drafter", str(folder.resolve()))]
        return command + (["--gpt-fast", str(asked.gpt_fast.resolve())] if asked.gpt_fast else [])

    slower = 1.0 if size == "full" else SLOWER
    parts = [
        replace(part, limit_s=slower * part.limit_s) for part in PARTS if not asked.only or part.name in asked.only
    ]
    budget_s = (asked.budget or BUDGET_S[size]) - (time.monotonic() - begun_s)
    for ending in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C, so that no part outlives this process
        signal.signal(ending, signal.default_int_handler)
    try:
        found = run(
            parts, command_of, to, SCRATCH / "logs", budget_s, lambda line: print(line, flush=True), environment
        )
    except KeyboardInterrupt:
        print(
            f"interrupted: what was measured is kept in {to}; --only PART ... goes on with those parts", file=sys.stderr
        )
        return INTERRUPTED
    shown = table(to)
    write_atomically(to / "cuda.md", shown + "\n")
    print(
        f"\n{size} size, {time.monotonic() - begun_s:.0f} s; JSON and the table cuda.md: {to}; logs: {SCRATCH / 'logs'}"
    )
    for outcome in found:
        print(outcome.words)
    return int(any(outcome.status == "failed" for outcome in found))


if __name__ == "__main__":
    sys.exit(main())
