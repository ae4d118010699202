"""docs/wheels.py: what is asked for, what may travel, what such a machine can take. Nothing is downloaded."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("wheels")


def test_more_than_may_travel_is_refused_with_the_list(wheels: Any) -> None:
    sizes = {"a.whl": 30_000_000, "b.whl": 9_999_999}
    assert wheels.fits(sizes).splitlines()[0].split() == ["30.00", "MB", "a.whl"]
    with pytest.raises(wheels.WheelsError, match=r"take 40\.0 MB, and 40 MB may travel:\n +30\.00 MB  a\.whl"):
        wheels.fits({**sizes, "c.whl": 2})


def test_wheels_are_replaced_and_nothing_else_is_touched(wheels: Any, tmp_path: Path) -> None:
    made, to = tmp_path / "made", tmp_path / "to"
    for name in ("made/a-2.whl", "to/a-1.whl", "to/notes.txt", "to/kept/b.whl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    wheels.replaced(made, to)
    assert sorted(path.name for path in to.iterdir()) == ["a-2.whl", "kept", "notes.txt"]
    assert (to / "kept/b.whl").is_file()
    with pytest.raises(wheels.WheelsError, match=r"notes\.txt: .* name another folder"):
        wheels.replaced(made, to / "notes.txt")


def test_versions_are_those_of_the_constraints(wheels: Any) -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    everything = (*wheels.DOWNLOADED, *wheels.BUILT, *wheels.COMPILED)
    pins = wheels.pinned(constraints, everything)
    assert len(pins) == len(set(everything)) and all(pin in constraints.splitlines() for pin in pins)
    assert wheels.pinned("A_b.C==1  # why\n", ["a-B.c"]) == ["A_b.C==1"]
    with pytest.raises(wheels.WheelsError, match="no version of nonesuch"):
        wheels.pinned(constraints, ["pydantic", "nonesuch"])


def test_wheels_of_another_python_or_platform_are_found(wheels: Any) -> None:
    right = [
        "pydantic-2.14.3-py3-none-any.whl",
        "six-1.17.0-py2.py3-none-any.whl",
        "multiprocess-0.70.19-py312-none-any.whl",
        "pydantic_core-2.50.4-cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "pypcre-0.6.4-cp312-cp312-linux_x86_64.whl",
        "safetensors-0.8.0-cp310-abi3-manylinux_2_28_x86_64.whl",
    ]
    wrong = [
        "pypcre-0.6.4-cp311-cp311-linux_x86_64.whl",
        "xxhash-4.1.0-cp312-cp312-macosx_11_0_arm64.whl",
        "xxhash-4.1.0-cp312-cp312-manylinux_2_28_aarch64.whl",
        "multiprocess-0.70.19-py311-none-any.whl",
    ]
    assert wheels.misfits([*right, *wrong]) == wrong


def test_a_python_that_was_named_must_be_the_right_one(wheels: Any) -> None:
    if sys.version_info[:2] == wheels.WANTED:
        assert wheels.python312(sys.executable) == sys.executable
    else:
        with pytest.raises(wheels.WheelsError, match=r"is no Python 3\.12"):
            wheels.python312(sys.executable)
    with pytest.raises(wheels.WheelsError, match=r"nowhere is no Python 3\.12"):
        wheels.python312("nowhere")
