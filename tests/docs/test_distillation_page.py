"""docs/distillation.md names every key and kind, and its tables are true. test_commands.py loads its examples."""

from pathlib import Path
from typing import get_args

import pytest

from factory.distillation.settings import METHODS, WRITTEN_BY, Distillation, LossKind, OnPolicy, Selection

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/distillation.md").read_text(encoding="utf-8")


def test_the_page_names_everything() -> None:
    for section in (Distillation, OnPolicy, Selection):
        assert [name for name in section.model_fields if f"`{name}" not in PAGE and f"{name}:" not in PAGE] == []
    assert [kind for kind in get_args(LossKind) if f"| `{kind}` |" not in PAGE] == []
    assert [name for name in METHODS if f"| `{name}` |" not in PAGE] == []


@pytest.mark.parametrize("method", METHODS)
def test_the_table_of_methods_is_true(method: str) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{method}` |")]
    term, rollouts = METHODS[method]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[1] == f"`{term.kind}`"
    assert (
        cells[2]
        == {None: "nothing", 0.5: "half of the rows", 1.0: "all rows"}[
            rollouts.share if rollouts else None  # type: ignore[index]
        ]
    )
    assert cells[3] == (f"`written_by: {WRITTEN_BY[method]}`" if method in WRITTEN_BY else "either")


@pytest.mark.parametrize(("vocabulary", "position"), [(32_000, 260), (128_256, 388)])
def test_the_bytes_of_a_position_are_those_that_are_written(vocabulary: int, position: int) -> None:
    settings = Distillation()
    assert (settings.top_k, settings.drawn) == (48, 16)
    assert (settings.top_k + settings.drawn) * (2 + (2 if vocabulary <= 1 << 16 else 4)) + 4 == position
    assert f"{position} " in PAGE and f"{2 * 128_256:,}" in PAGE
