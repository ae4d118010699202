"""The packages that a GPU machine without a network lacks, as wheels for its Python 3.12: `make wheels`.

    python docs/wheels.py                              # into .wheels/, which git ignores
    python docs/wheels.py --python312 /path/python     # where python3.12 is not on the path

Versions are those of constraints.txt. What comes from the package index as a wheel is downloaded for CPython 3.12 on
x86-64 Linux, whatever Python runs this. The rest is built: pure Python by any Python, PyPcre, which is C, by a Python
3.12. Nothing is resolved: that machine has PyTorch, transformers, numpy and what they need, and they stay as they are
(gptqmodel asks for another numpy, and works with that one). Last, all of it is installed into a clean environment of
Python 3.12, without a network and without dependencies, as `make gpu-check` does.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / ".wheels"
MOST_BYTES = 40_000_000
# To be had as wheels.
DOWNLOADED = (
    "pydantic",
    "pydantic_core",
    "annotated-types",
    "typing-inspection",
    "typing_extensions",
    "datasets",
    "multiprocess",
    "dill",
    "xxhash",
    "optimum",
    "torch-pruning",
    "threadpoolctl",
)
# Source only. torchao, which gptqmodel asks for as well, is imported where it is there, for formats not used here.
BUILT = ("GPTQModel", "Device-SMI", "TokeNicer", "LogBar", "Defuser")
COMPILED = ("PyPcre",)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
WANTED = (3, 12)
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


class WheelsError(Exception):
    """What is wrong and how to mend it."""


def plain(name: str) -> str:
    """A package's name as an index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(constraints: str, names: Iterable[str]) -> list[str]:
    """`name==version` of each, as constraints.txt has it. Raises WheelsError for one that it does not name."""
    lines = (line.split("#")[0].strip() for line in constraints.splitlines())
    known = {plain(line.split("==")[0]): line for line in lines if "==" in line}
    unknown = [name for name in names if plain(name) not in known]
    if unknown:
        raise WheelsError(f"constraints.txt has no version of {', '.join(unknown)}")
    return [known[plain(name)] for name in names]


def fits(sizes: Mapping[str, int], most: int = MOST_BYTES) -> str:
    """The wheels with their sizes, the largest first. Raises WheelsError, with that list, where they are too large."""
    total = sum(sizes.values())
    listed = "\n".join(f"{size / 1e6:8.2f} MB  {name}" for name, size in sorted(sizes.items(), key=lambda one: -one[1]))
    if total > most:
        raise WheelsError(f"the wheels take {total / 1e6:.1f} MB, and {most / 1e6:.0f} MB may travel:\n{listed}")
    return f"{listed}\n{total / 1e6:8.2f} MB  in all, of {most / 1e6:.0f} MB that may travel"


def misfits(names: Iterable[str]) -> list[str]:
    """Wheels that such a machine cannot take: of another Python or platform."""
    fitting = re.compile(
        r"-(py3|py2\.py3|py312|cp312)-none-any\.whl$|-cp3\d+-(abi3|cp312)-(\w+\.)*(many)?linux[\w.]*x86_64\.whl$"
    )
    return [name for name in names if not fitting.search(name)]


def python312(asked: str | None) -> str | None:
    """A Python 3.12: the one asked for, this one, one on the path, or one of pyenv's; None where there is none."""
    kept = sorted(Path.home().glob(".pyenv/versions/3.12*/bin/python"), reverse=True)
    candidates = [asked] if asked else [sys.executable, shutil.which("python3.12"), *map(str, kept)]
    for candidate in candidates:
        if candidate is None or shutil.which(candidate) is None:
            continue
        command = [candidate, "-c", "import sys, ensurepip; print(*sys.version_info[:2])"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and tuple(map(int, done.stdout.split())) == WANTED:
            return candidate
    if asked:
        raise WheelsError(f"{asked} is no Python 3.12 with pip")
    return None


def pip(python: str, *arguments: str) -> None:
    """Run it. Raises WheelsError with its last words."""
    done = subprocess.run([python, *PIP, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise WheelsError(f"pip {' '.join(arguments[:2])}: {said[-1] if said else 'it said nothing'}")


def collect(folder: Path, newer: str | None) -> None:
    """Download and build into an empty folder; without a Python 3.12 all but what is C. Raises WheelsError."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    target = ["--python-version", "3.12", "--implementation", "cp"]
    target += [one for tag in ("cp312", "abi3", "none") for one in ("--abi", tag)]
    target += [one for platform in PLATFORMS for one in ("--platform", platform)]
    wheels = ("--no-deps", "--only-binary=:all:", *target, "--dest", str(folder))
    pip(sys.executable, "download", *wheels, *pinned(constraints, DOWNLOADED))
    pip(newer or sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), *pinned(constraints, BUILT))
    if newer:
        pip(newer, "wheel", "--no-deps", "--wheel-dir", str(folder), *pinned(constraints, COMPILED))


def proved(folder: Path, python: str) -> str:
    """Install all of it into a clean environment of that Python, without a network; says so. Raises WheelsError."""
    with tempfile.TemporaryDirectory() as empty:
        subprocess.run([python, "-m", "venv", empty], check=True)
        inside = str(Path(empty) / "bin" / "python")
        pip(inside, "install", "--no-index", "--no-deps", "--no-compile", *map(str, sorted(folder.glob("*.whl"))))
        shown = "import platform, pydantic, dill, multiprocess, xxhash, pcre; print(platform.python_version())"
        done = subprocess.run([inside, "-c", shown], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WheelsError(f"installed, but: {done.stderr.strip().splitlines()[-1]}")
    return f"installed in a clean environment of Python {done.stdout.strip()}"


def replaced(made: Path, folder: Path) -> None:
    """Move the wheels there in the place of those that are there: two versions of a package stop an installation.

    Nothing else there is touched. Raises WheelsError where no folder can be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.whl"):
            old.unlink()
        for wheel in made.glob("*.whl"):
            shutil.copy(wheel, folder)
    except OSError as error:
        raise WheelsError(f"--to {folder}: {error.strerror}: name another folder") from error


def main() -> int:
    """Collect, weigh, prove. 2 where something is missing or too large."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--to", type=Path, default=WHEELS, help="a folder, whose wheels are replaced; .wheels/ by default"
    )
    parser.add_argument("--python312", metavar="PYTHON", help="that builds what is C, and proves that all installs")
    asked = parser.parse_args()
    try:
        newer = python312(asked.python312)
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / "wheels"
            made.mkdir()
            collect(made, newer)
            sizes = {path.name: path.stat().st_size for path in made.glob("*.whl")}
            print(fits(sizes))
            if wrong := misfits(sizes):
                raise WheelsError(f"not for CPython 3.12 on x86-64 Linux: {', '.join(wrong)}")
            replaced(made, asked.to)
        if newer is None:
            raise WheelsError(
                f"{', '.join(COMPILED)} is missing, and gptqmodel with it: it is C and has no wheel, so a Python 3.12 "
                "builds it: install python3.12, or name one: make wheels PYTHON312=/path/to/python"
            )
        print(proved(asked.to, newer))
    except WheelsError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
