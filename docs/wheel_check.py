"""`make wheel-check`: the wheel in an empty environment outside the clone does what README promises, without a network.

sdist -> wheel -> venv -> init, check, build, eval, report, publish --dry-run. With `--light` nothing is downloaded: the
environment borrows this interpreter's packages, and the evaluation is as short as one can be; a test runs that.
The last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "factory", "eval", "recipes")
SMALL = ("data.samples=8", "data.max_new_tokens=8", "stages.1.epochs=1", "keep_raw=false")
PLAN = """\
{suites: [stories], prompts: 2, confirm_prompts: 2, warmup_prompts: 1, max_new_tokens: 4, ks: [1], lookup_ks: [1],
 temperatures: [0], repeats: 1, confirm_repeats: 1, parity_prompts: 1, parity_new_tokens: 2, dtype: float32, threads: 1}
"""
SHIPPED = """\
from eval.plan import load_plan, shipped_plans
from eval.suites import PROMPTS, load_suite
import factory, json
json.loads((PROMPTS / "index.json").read_text())
print(factory.__file__, *[load_plan(name).suites for name in shipped_plans()], load_suite("code").name)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Runs it without what would lead back to the clone or to a network; returns its stdout. Exits where it fails."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    alone = {**kept, "PYTHONNOUSERSITE": "1", "XDG_CACHE_HOME": str(cwd / ".cache"), "HF_HOME": str(cwd / ".cache/hf")}
    sys.stderr.write(f"$ {' '.join(map(str, command))}\n")
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=alone, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        sys.exit(f"wheel-check: exit status {done.returncode} of {' '.join(map(str, command))}")
    return done.stdout


def wheel_of(folder: Path) -> Path:
    """An sdist of the clone's files, and a wheel built from that; in `folder`, so that nothing is left in the clone."""
    source = folder / "source"
    source.mkdir()
    for name in BUILT_FROM:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, source / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index")
    run(sys.executable, "-m", "pip", "wheel", *quiet, "-w", folder, sdist, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment(folder: Path, wheel: Path, *, light: bool) -> Path:
    """A virtual environment with the wheel; returns its folder of programs."""
    venv = folder / "venv"
    run(sys.executable, "-m", "venv", *(["--without-pip"] if light else []), venv, cwd=folder)
    pip = (sys.executable, "-m", "pip", "--python", venv / "bin/python", "--quiet", "--disable-pip-version-check")
    if light:
        site = venv / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        # A line is a folder to import from; .pth files in that folder are not read, an editable install's neither.
        (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    else:
        run(*pip, "install", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    return venv / "bin"


def main() -> None:
    """Build, install, use."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--light", action="store_true", help="borrow this interpreter's packages")
    light = parser.parse_args().light
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wheel-check-") as name:
        folder = Path(name)
        wheel = wheel_of(folder)
        size = wheel.stat().st_size
        programs = environment(folder, wheel, light=light)
        shutil.rmtree(folder / "source")
        installed_s = time.monotonic() - began_s
        os.environ["HF_HUB_OFFLINE"] = "1"
        home = Path(run(programs / "python", "-c", SHIPPED, cwd=folder).split()[0])
        if not home.is_relative_to(folder / "venv"):
            sys.exit(f"wheel-check: factory was imported from {home}")
        factory, mine = programs / "factory", folder / "demo"
        run(factory, "init", mine, cwd=folder)
        (mine / "plan.yaml.txt").write_text(PLAN)
        run(factory, "check", ".", cwd=mine)
        run(factory, "build", "quick.yaml", *(part for key in SMALL for part in ("--set", key)), cwd=mine)
        told = run(factory, "eval", "artifacts", "--plan", "plan.yaml.txt" if light else "smoke", "--json", cwd=mine)
        verdict = json.loads(told.splitlines()[-1])["verdict"]
        run(factory, "report", "artifacts", cwd=mine)
        said = (
            "--to",
            "someone/quick",
            "--dry-run",
            "--even-if-slower",
            "only a check of the installed wheel",
            "--json",
        )
        listed = json.loads(run(factory, "publish", "artifacts/quick", *said, cwd=mine).splitlines()[-1])
        checked = run(factory, "check", ".", cwd=mine)  # what was made is no recipe of the user's
        facts = {
            "wheel_bytes": size,
            "installed_s": round(installed_s, 1),
            "recipes": checked.count("ok  "),
            "reason": verdict["reason"],
            "would_publish": sorted(file["path"] for file in listed["files"]),
            "wheel_check_s": round(time.monotonic() - began_s, 1),
        }
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
