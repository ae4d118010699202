"""Every recipe snippet of docs/data.md can be loaded, and the page names every key."""

import re
from pathlib import Path

import pytest

from factory.recipes.recipe import load
from factory.recipes.sources import Data, FilePrompts, HubPrompts

PAGE = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[snippet.splitlines()[0] for snippet in SNIPPETS])
def test_a_snippet_loads(tmp_path: Path, snippet: str) -> None:
    for file in re.findall(r"file: ([\w.]+)", snippet):
        (tmp_path / file).touch()
    (tmp_path / "r.yaml").write_text(f"name: x\n{snippet}stages: [{{kind: distill}}]\n")
    (loaded,) = load(tmp_path / "r.yaml")
    assert loaded.recipe.data is not None


def test_the_page_names_every_key() -> None:
    assert len(SNIPPETS) == 4
    for section in (Data, FilePrompts, HubPrompts):
        assert [name for name in section.model_fields if name not in PAGE] == []
