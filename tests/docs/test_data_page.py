"""docs/data.md names every key; its examples are loaded by test_commands.py."""

from pathlib import Path

from factory.recipes.sources import Data, FilePrompts, HubPrompts

PAGE = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text(encoding="utf-8")


def test_the_page_names_every_key() -> None:
    for section in (Data, FilePrompts, HubPrompts):
        assert [name for name in section.model_fields if name not in PAGE] == []
