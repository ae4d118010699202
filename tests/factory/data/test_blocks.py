from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.data.blocks import Row, corpus, split_held_out, text_blocks
from factory.errors import DataError


def test_answer_mask_selects_the_positions_that_predict_answers() -> None:
    block = text_blocks([([7, 8, 9, 10], 2), ([5, 6], 1)])
    assert block.ids.tolist() == [[7, 8, 9, 10], [5, 6, 0, 0]]
    assert block.answer.tolist() == [[False, False, True, True], [False, True, False, False]]
    assert block.answer_mask.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert block.token_mask.tolist() == [[True] * 4, [True, True, False, False]]
    trimmed = block.rows([1])
    assert trimmed.ids.tolist() == [[5, 6]]
    assert trimmed.answer_mask.tolist() == [[True, False]]


def test_a_row_may_have_several_answers() -> None:
    block = text_blocks([([7, 8, 9, 10, 11, 12], [(1, 2), (4, 6)]), ([5, 6], [(0, 1)])])
    assert block.answer.tolist()[0] == [False, True, False, False, True, True]
    assert block.answer_mask.tolist()[0] == [True, False, False, True, True, False]
    assert not block.answer_mask[1].any()  # nothing stands before a row's first token


def test_rows_keep_their_numbers() -> None:
    block = text_blocks([([n, n], 1) for n in range(6)])
    assert block.index.tolist() == list(range(6))
    assert block.rows([4, 1, 5]).rows([2, 0]).index.tolist() == [5, 4]
    assert len(block.rows([])) == 0


def test_equal_rows_and_rows_without_an_answer_are_dropped_and_counted() -> None:
    rows: list[Row] = [([1, 2, 3], 1), ([1, 2], [(1, 1)]), ([1, 2, 3], 2), ([4, 5], 2), ([6, 7], [(0, 1)]), ([4, 9], 1)]
    made = corpus(rows, [0, 0, 0, 1, 2, 1])
    assert [row[:n] for row, n in zip(made.rows.ids.tolist(), made.rows.length.tolist(), strict=True)] == [
        [1, 2, 3],
        [4, 9],
    ]
    assert made.prompt == (0, 1)
    assert made.facts == {
        "duplicate_rows": 1,
        "rows_without_answer": 3,
        "rows": 2,
        "tokens": 5,
        "answer_tokens": 3,
    }
    with pytest.raises(DataError, match="of 1 rows none has an answer"):
        corpus([([1, 2], 2)], [0])


@pytest.mark.parametrize(("prompts", "samples"), [(1, 10), (5, 20), (4, 4), (7, 3)])
def test_held_out_prompts_are_never_trained_on(prompts: int, samples: int) -> None:
    training, held_out = split_held_out([i % prompts for i in range(samples)], 0.2)
    assert sorted([*training, *held_out]) == list(range(samples))
    if prompts > 1:
        assert not {i % prompts for i in training} & {i % prompts for i in held_out}
    assert training
    assert held_out


def test_no_share_holds_nothing_out() -> None:
    assert split_held_out([i % 5 for i in range(10)], 0.0) == (list(range(10)), [])
    assert split_held_out([], 0.5) == ([], [])
    assert split_held_out([3], 0.5) == ([0], [])


_ROWS = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=3), st.lists(st.integers(0, 2), max_size=3)), min_size=1
)


@given(_ROWS, st.floats(0, 0.99))
def test_nothing_that_is_held_out_is_trained_on(pairs: list[tuple[list[int], list[int]]], share: float) -> None:
    """Whatever repeats: neither a row nor a prompt of several is on both sides."""
    numbers: dict[tuple[int, ...], int] = defaultdict(lambda: len(numbers))
    of = [numbers[tuple(prompt)] for prompt, _ in pairs]
    try:
        made = corpus([([*prompt, *answer], len(prompt)) for prompt, answer in pairs], of)
    except DataError:
        assert not any(answer for _, answer in pairs)
        return
    training, held_out = split_held_out(made.prompt, share)
    assert sorted([*training, *held_out]) == list(range(len(made.rows)))
    assert training
    rows = [tuple(row[:n]) for row, n in zip(made.rows.ids.tolist(), made.rows.length.tolist(), strict=True)]
    assert not {rows[i] for i in training} & {rows[i] for i in held_out}
    if len(set(made.prompt)) > 1:
        assert not {made.prompt[i] for i in training} & {made.prompt[i] for i in held_out}
    counts = made.facts
    assert counts["rows"] + counts["duplicate_rows"] + counts["rows_without_answer"] == len(pairs)
    assert set(rows) == {(*prompt, *answer) for prompt, answer in pairs if answer} & set(rows)
