"""What pages point to is there: links, anchors, every page in the index, every module on the map."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from documented import FENCE, pages

from factory.stages import AnyStage

ROOT = Path(__file__).resolve().parents[2]
PAGES = [page for page in pages(ROOT) if page.endswith(".md")]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, spaces to hyphens, other signs gone, repetitions numbered."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        found.append(f"{words}-{found.count(words)}" if words in found else words)
    return set(found)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    here, dead = ROOT / page, []
    for link in LINK.findall(prose(here)):
        place, _, anchor = link.partition("#")
        if place.startswith(("http:", "https:")):
            continue
        there = (here.parent / place).resolve() if place else here
        known = there.suffix == ".md" and there.is_file()
        if not there.exists() or (anchor and not (known and anchor in anchors(there))):
            dead.append(link)
    assert dead == []


def test_every_page_is_in_the_index() -> None:
    linked = set(LINK.findall((ROOT / "docs/README.md").read_text(encoding="utf-8")))
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in {*linked, "README.md"}] == []


def test_every_stage_has_its_keys_in_the_catalogue() -> None:
    rows = dict(
        re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "recipes/README.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for stage in get_args(get_args(AnyStage)[0]):
        (kind,) = get_args(stage.model_fields["kind"].annotation)
        keys = [] if kind == "distill" else [key for key in stage.model_fields if key != "kind"]  # a page of its own
        assert [key for key in keys if f"`{key}`" not in rows[kind]] == [], kind


def test_every_module_is_on_the_map() -> None:
    """By its own name, or by its room's, in the first column of the table or within a row of that room."""
    rows = re.findall(
        r"^\| (`.*?) \| (.*?) \|", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    named: set[str] = set()
    for first, second in rows:
        room = ""
        for name in re.findall(r"`([^`]+)`", first):
            if name.startswith(("factory/", "eval/")):
                room = name if name.endswith("/") else f"{Path(name).parent}/"
            named.add(name if name.startswith(room) else room + name)
        named |= {room + name for name in re.findall(r"`([\w/]+\.py)`", second)}
    modules = [each.relative_to(ROOT).as_posix() for top in ("factory", "eval") for each in (ROOT / top).rglob("*.py")]
    rooms = [name for name in named if name.endswith("/")]
    unnamed = [path for path in modules if path not in named and not any(path.startswith(room) for room in rooms)]
    assert [path for path in unnamed if not path.endswith(("__init__.py", "__main__.py"))] == []
