"""A table where the terminal is as wide as it wants, narrower, and far too narrow."""

from io import StringIO

import pytest
from rich.console import Console

from factory.fitting import Fitted

HEADS = ["drafter", "k", "speedup", "alpha", "overlap"]
ROWS = [["prompt lookup", "4", "1.55x (1.24 to 1.90)", "0.66", "0.70"], None, ["quick", "2", "0.95x", "", "0.40"]]


def drawn(width: int) -> str:
    screen = StringIO()
    Console(file=screen, width=width).print(Fitted("speedups", HEADS, ROWS, words=2, spare=["overlap", "alpha"]))
    return screen.getvalue()


@pytest.mark.parametrize(
    ("width", "gone"), [(120, ""), (70, ""), (60, "overlap"), (50, "overlap, alpha"), (48, "overlap, alpha")]
)
def test_spare_columns_go_one_after_the_other_and_the_others_stay_whole(width: int, gone: str) -> None:
    text = drawn(width)
    assert all(len(line) <= width for line in text.splitlines())
    for said in ("prompt lookup", "1.55x (1.24 to 1.90)", "quick", "0.95x", *([] if "alpha" in gone else ["0.66"])):
        assert said in text
    assert ("…" not in text) and (f"no room here for: {gone}\n" in text) == bool(gone)


def test_where_there_is_no_room_at_all_rows_are_sentences_with_everything_in_them() -> None:
    text = drawn(36)
    words = " ".join(text.split())
    assert "prompt lookup: k 4, speedup 1.55x (1.24 to 1.90), alpha 0.66, overlap 0.70" in words
    assert "quick: k 2, speedup 0.95x, overlap 0.40" in words
    assert all(len(line) <= 36 for line in text.splitlines())
