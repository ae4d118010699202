from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from factory.data.blocks import text_blocks
from factory.distillation.rows import Order, lay
from factory.distillation.student import answer_states
from factory.errors import DataError

from .conftest import text


def test_batches_are_a_function_of_seed_and_index_and_cover_every_row() -> None:
    order = Order(10, 0)
    epoch = [row for index in range(5) for row in order.batch(index, 2)]
    assert sorted(epoch) == list(range(10))
    assert order.batch(3, 2) == Order(10, 0).batch(3, 2)
    assert epoch != [row for index in range(5, 10) for row in order.batch(index, 2)]
    assert epoch != [row for index in range(5) for row in Order(10, 1).batch(index, 2)]


@pytest.mark.parametrize("pack", [None, 14, 40])
def test_each_row_is_read_as_if_alone(tiny: Callable[..., PreTrainedModel], pack: int | None) -> None:
    """Packed or padded, in float64: the hidden states that predict answers are those of the row by itself."""
    model, rows = tiny(), text(9, 0)
    laid = lay(rows, pack)
    with torch.no_grad():
        found = answer_states(model, laid)
        alone = []
        for row in range(len(rows)):
            ids = rows.ids[row, : rows.length[row]][None]
            alone.append(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, 1:-1])
    if pack == 40:
        assert laid.ids.shape[0] < len(rows)
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-9, atol=1e-9)
    labels = torch.cat([rows.ids[row, 2 : rows.length[row]] for row in range(len(rows))])
    assert torch.equal(laid.labels, labels)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=12), st.integers(12, 30))
def test_packing_keeps_every_token_and_label(lengths: list[int], pack: int) -> None:
    rows = text_blocks([(list(range(100 * n, 100 * n + length)), 1) for n, length in enumerate(lengths)])
    laid = lay(rows, pack)
    kept = [token for n, length in enumerate(lengths) for token in range(100 * n + 1, 100 * n + length)]
    assert laid.labels.tolist() == kept
    assert laid.ids.flatten()[laid.where].tolist() == [token - 1 for token in kept]
    assert laid.positions.flatten()[laid.where].tolist() == [(token - 1) % 100 for token in kept]
    assert laid.ids.shape[1] == pack and laid.ids.shape[0] <= len(lengths)


def test_a_row_longer_than_a_block_is_refused() -> None:
    with pytest.raises(DataError, match=r"12 tokens is longer than `pack: 8`"):
        lay(text_blocks([(list(range(12)), 1)]), 8)
