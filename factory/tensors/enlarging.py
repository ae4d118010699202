"""A trained matrix in a wider model that computes the same: channels stand there several times.

What is written (residual stream, heads, FFN channels) is written several times, and what is read is
weighted so that the copies add up to the one. The weights of copies are powers of two, so no value
is rounded, in any dtype with enough exponent. Padding with zeros would do as well, but products of
zeros take less power and run faster than those of a trained model, and a norm's sum of squares
would need a factor of its own. (Copies with shares: Net2WiderNet, arXiv 1511.05641, section 2.3,
there with 1 / copies, which is exact for powers of two only.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Spread:
    """A widened axis: for each new index the old one that it copies, and its share of that one."""

    source: torch.Tensor  # [new] int64
    share: torch.Tensor  # [new] float64; powers of two, 1 in the sum over the copies of one

    def channels(self, width: int) -> Spread:
        """The same for an axis where each index is so many channels in a row (a head)."""
        places = self.source.unsqueeze(1) * width + torch.arange(width)
        return Spread(places.flatten(), self.share.repeat_interleave(width))

    def to(self, device: torch.device) -> Spread:
        """The same on that device."""
        return Spread(self.source.to(device), self.share.to(device))


def shares(copies: int) -> list[float]:
    """As many powers of two, of two neighbouring sizes, as add up to exactly 1. Raises ValueError for none.

    With m = floor(log2(copies)): 2^(m + 1) - copies of them are 2^-m, the others half of that.
    """
    if copies < 1:
        raise ValueError(f"{copies} copies have no shares")
    m = copies.bit_length() - 1
    large = 2 ** (m + 1) - copies
    return [2.0**-m] * large + [2.0 ** -(m + 1)] * (copies - large)


def spread(source: Sequence[int]) -> Spread:
    """The Spread of those sources [new]: each copy of an old index gets one of its shares."""
    left = {old: shares(copies) for old, copies in Counter(source).items()}
    given = [left[old].pop(0) for old in source]
    return Spread(torch.tensor(source), torch.tensor(given, dtype=torch.float64))


def in_turn(old: int, new: int) -> list[int]:
    """Old indices one after another, again and again, until there are `new`. Raises ValueError for too few."""
    if new < old:
        raise ValueError(f"{old} do not fit into {new}")
    return [place % old for place in range(new)]


def spread_heads(heads: int, kv_heads: int, new_heads: int, new_kv_heads: int) -> tuple[Spread, Spread]:
    """(of query heads, of key and value heads): every query head's copies read a copy of its own keys and values.

    Raises ValueError where groups are not equal or a query head would be left out.
    """
    if heads % kv_heads or new_heads % new_kv_heads:
        raise ValueError(f"{heads} heads on {kv_heads} keys, or {new_heads} on {new_kv_heads}, are no equal groups")
    group, new_group = heads // kv_heads, new_heads // new_kv_heads
    keys = in_turn(kv_heads, new_kv_heads)
    told = [0] * kv_heads  # query heads of that group that were placed so far
    queries: list[int] = []
    for old in keys:
        queries += [old * group + (told[old] + place) % group for place in range(new_group)]
        told[old] += new_group
    if min(told) < group:
        raise ValueError(f"{heads} heads on {kv_heads} keys do not fit into {new_heads} on {new_kv_heads}")
    return spread(queries), spread(keys)


def widened(tensor: torch.Tensor, written: Spread | None, read: Spread | None) -> torch.Tensor:
    """Rows [out] as `written` copies them, columns [in] as `read` copies them; None leaves an axis as it is.

    tensor [out, in] or, with `read` None, [out]. No value is changed but by copying.
    """
    if written is not None:
        tensor = tensor.index_select(0, written.source)
    return tensor if read is None else tensor.index_select(1, read.source)


def weighted(tensor: torch.Tensor, read: Spread) -> torch.Tensor:
    """`tensor` [..., new], each of the last axis' channels times its share."""
    return tensor * read.share.to(tensor.dtype)
