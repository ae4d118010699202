"""The wheel, installed outside the clone: init, check, build, eval, report, publish --dry-run, without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_installed_wheel_does_all_of_it() -> None:
    left_by_a_build = [ROOT / name for name in ("build", "dist", "factory/shipped")]
    before = [path.exists() for path in left_by_a_build]
    command = [sys.executable, "docs/wheel_check.py", "--light"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # other tests run beside it
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["recipes"] == len(list((ROOT / "recipes").rglob("*.yaml")))
    assert facts["reason"]
    assert {"README.md", "model.safetensors", "factory/recipe.yaml", "factory/manifest.json"} <= set(
        facts["would_publish"]
    )
    assert facts["wheel_bytes"] < 40e6  # the target is 25 of them
    assert [path.exists() for path in left_by_a_build] == before
