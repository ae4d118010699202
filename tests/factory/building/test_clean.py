"""`clean` takes what can be made again, from a folder that a build made, when no build is at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.building.clean import clean
from factory.errors import FactoryError
from factory.files.atomic import locked

REMADE = {
    ".cache/stages/abc/model/model.safetensors": 100,
    ".cache/stages/def.working/checkpoint.pt": 50,
    ".cache/text/abc/shard-00000.parquet": 20,
    ".cache/teacher/abc/shard-00000.safetensors": 40,
    ".cache/assembling/tiny/model/model.safetensors": 7,
    ".cache/identity.json.17.partial": 3,
}
KEPT = {
    ".cache/identity.json": 5,
    ".cache/prompts/abc.json": 5,
    ".cache/recipes/mine.yaml": 5,
    "tiny/manifest.json": 5,
    "tiny/evals/abc.json": 5,
    "notes.txt": 5,
}
REPLACED = {".cache/replaced/tiny-1/evals/abc.json": 11}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    for name, size in (REMADE | KEPT | REPLACED).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    (folder / ".lock").touch()
    return folder


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}


def test_what_can_be_made_again_goes_and_the_rest_stays(out: Path) -> None:
    told = clean(out, dry_run=True)
    assert files(out) == set(REMADE | KEPT | REPLACED)
    done = clean(out)
    assert done == told
    assert (done.removed_bytes, done.replaced_bytes) == (220, 11)
    assert files(out) == set(KEPT | REPLACED)
    assert clean(out).removed_bytes == 0
    assert clean(out, replaced=True).removed_bytes == 11
    assert files(out) == set(KEPT)


def test_a_link_is_removed_and_not_followed(out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("years of work")
    (out / ".cache" / "stages" / "link").symlink_to(elsewhere)
    (out / ".cache" / "text").rename(tmp_path / "text")
    (out / ".cache" / "text").symlink_to(elsewhere)
    clean(out)
    assert not (out / ".cache" / "text").is_symlink()
    assert (elsewhere / "thesis.txt").read_text() == "years of work"


def test_a_folder_that_no_build_made_is_left_alone(out: Path, tmp_path: Path) -> None:
    (tmp_path / "home" / ".cache" / "stages").mkdir(parents=True)
    with pytest.raises(FactoryError, match="no build wrote here"):
        clean(tmp_path / "home")
    assert (tmp_path / "home" / ".cache" / "stages").is_dir()
    assert not (tmp_path / "home" / ".lock").exists()
    with pytest.raises(FactoryError, match="one artifact, which holds nothing to clean"):
        clean(out / "tiny")
    with pytest.raises(FactoryError, match="no such folder"):
        clean(tmp_path / "gone")


def test_nothing_is_removed_while_a_build_is_at_work(out: Path) -> None:
    with locked(out), pytest.raises(FactoryError, match="is at work here"):
        clean(out)
    assert files(out) == set(REMADE | KEPT | REPLACED)
