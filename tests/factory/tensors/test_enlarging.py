"""Copies and their shares, on cases small enough to check by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factory.tensors.enlarging import in_turn, shares, spread, spread_heads, weighted, widened


@given(st.integers(1, 4096))
def test_shares_are_powers_of_two_and_add_up_to_one(copies: int) -> None:
    found = shares(copies)
    assert len(found) == copies
    assert sum(found) == 1.0  # exactly: sums of powers of two are not rounded
    assert all(float(torch.tensor(share).log2()).is_integer() for share in found)
    assert max(found) <= 2 * min(found)


def test_no_copy_has_no_share() -> None:
    with pytest.raises(ValueError, match="0 copies"):
        shares(0)


def test_indices_stand_in_turn() -> None:
    found = spread(in_turn(3, 8))
    assert found.source.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert found.share.tolist() == [0.5, 0.5, 0.5, 0.25, 0.25, 0.5, 0.25, 0.25]
    assert found.channels(2).source.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    with pytest.raises(ValueError, match="do not fit"):
        in_turn(3, 2)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(1, 6))
def test_each_query_head_reads_its_own_keys(kv_heads: int, group: int, new_kv_heads: int, new_group: int) -> None:
    heads, new_heads = kv_heads * group, new_kv_heads * new_group
    if new_kv_heads < kv_heads or (new_kv_heads // kv_heads) * new_group < group:
        with pytest.raises(ValueError, match="do not fit"):
            spread_heads(heads, kv_heads, new_heads, new_kv_heads)
        return
    queries, keys = spread_heads(heads, kv_heads, new_heads, new_kv_heads)
    for place, old in enumerate(queries.source.tolist()):
        assert keys.source[place // new_group] == old // group
    for old in range(heads):
        assert float(queries.share[queries.source == old].sum()) == 1.0


def test_unequal_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="no equal groups"):
        spread_heads(4, 2, 6, 4)


def test_a_product_through_widened_matrices_is_the_product() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(5, 3, generator=generator), torch.randn(2, 5, generator=generator)
    x = torch.randn(3, generator=generator)
    inner, outer = spread(in_turn(5, 13)), spread(in_turn(2, 6))
    wide = weighted(widened(second, outer, inner), inner) @ (widened(first, inner, None) @ x)
    torch.testing.assert_close(wide, (second @ (first @ x)).repeat(3))
