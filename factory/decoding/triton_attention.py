"""Attention of a few queries over a long cache, as Triton kernels: what `kernels.decode_attention` launches.

Flash-decoding: with one query a head there are too few programs to keep a GPU busy, so the slots that
a row of the batch can see are split among several, each with a softmax of its own, and a second
kernel joins them by their peaks and sums. How far a row reaches is taken from its positions on the
device: a cache with room for thousands of slots costs what is in it. Heads that share keys are rows
of one tile, so keys and values are read once. Imports triton, as `triton_products` does.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from factory.decoding.triton_products import multiplied, rounded


@triton.jit(do_not_specialize=["slots"])
def attended(
    queries, keys, values, positions, out, parts, peaks, sums, slots, scale,
    query_batch, query_head, query_token, key_batch, key_head, key_slot, value_batch, value_head, value_slot,
    position_batch, position_token,
    KV: tl.constexpr, GROUP: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_W: tl.constexpr, SPLITS: tl.constexpr,
    EARLY: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One row block of the queries that share a head's keys, over one part of the slots that they see.

    `scale` is that of the scores times log2(e). WINDOW 0 is none. Grid: B * KV, SPLITS, row blocks.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    batch = (tl.program_id(0) // KV).to(tl.int64)
    head = tl.program_id(0) % KV
    split = tl.program_id(1)
    rows = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)  # head in the group, then token
    real = rows < GROUP * TOKENS
    heads, tokens = head * GROUP + rows // TOKENS, rows % TOKENS
    place = tl.load(positions + batch * position_batch + tokens * position_token, mask=real, other=-1).to(tl.int32)
    stop = min(tl.max(place) + 1, slots)
    first = 0
    if WINDOW > 0:
        first = max(tl.min(tl.where(real, place, slots)) - WINDOW + 1, 0)
    part = tl.cdiv(tl.cdiv(max(stop - first, 0), BLOCK_S), SPLITS) * BLOCK_S
    begin = first + split * part
    end = min(begin + part, stop)

    channels = tl.arange(0, BLOCK_W)
    wide = channels < WIDTH
    asked = queries + batch * query_batch + heads[:, None] * query_head + tokens[:, None] * query_token
    query = tl.load(asked + channels[None, :], mask=real[:, None] & wide[None, :], other=0.0)
    peak = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    found = tl.zeros([BLOCK_R, BLOCK_W], tl.float32)
    inner = tl.arange(0, BLOCK_S)
    key_tiles = keys + batch * key_batch + head.to(tl.int64) * key_head + channels[None, :]
    value_tiles = values + batch * value_batch + head.to(tl.int64) * value_head + channels[None, :]
    for start in range(begin, end, BLOCK_S):
        slot = start + inner
        there = (slot < end)[:, None] & wide[None, :]
        key = tl.load(key_tiles + slot.to(tl.int64)[:, None] * key_slot, mask=there, other=0.0)
        value = tl.load(value_tiles + slot.to(tl.int64)[:, None] * value_slot, mask=there, other=0.0)
        scores = multiplied(query, tl.trans(key), tl.zeros([BLOCK_R, BLOCK_S], tl.float32), INTERPRETED) * scale
        seen = (slot[None, :] <= place[:, None]) & (slot < end)[None, :]
        if WINDOW > 0:
            seen = seen & (slot[None, :] > place[:, None] - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing yet
        shares = tl.exp2(scores - finite[:, None])
        kept = tl.exp2(peak - finite)
        total = total * kept + tl.sum(shares, 1)
        shares = rounded(shares, values.dtype.element_ty, INTERPRETED)
        found = multiplied(shares, value, found * kept[:, None], INTERPRETED)
        peak = higher

    if SPLITS == 1:
        found = found / tl.where(total == 0.0, 1.0, total)[:, None]
        at = ((batch * TOKENS + tokens) * KV * GROUP + heads)[:, None] * WIDTH + channels[None, :]
        stored = real[:, None] & wide[None, :]
        tl.store(out + at, rounded(found, out.dtype.element_ty, INTERPRETED), mask=stored)
    else:
        at = (tl.program_id(0).to(tl.int64) * SPLITS + split) * GROUP * TOKENS + rows
        tl.store(peaks + at, peak, mask=real)
        tl.store(sums + at, total, mask=real)
        stored = (real & (total > 0.0))[:, None] & wide[None, :]
        tl.store(parts + at[:, None] * WIDTH + channels[None, :], found, mask=stored)


@triton.jit
def joined(
    parts, peaks, sums, out,
    KV: tl.constexpr, GROUP: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_W: tl.constexpr, SPLITS: tl.constexpr, BLOCK_P: tl.constexpr,
    EARLY: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One query's parts become its output. Grid: B * KV, GROUP * TOKENS."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    batch = (tl.program_id(0) // KV).to(tl.int64)
    row = tl.program_id(1)
    head, token = (tl.program_id(0) % KV) * GROUP + row // TOKENS, row % TOKENS
    split = tl.arange(0, BLOCK_P)
    channels = tl.arange(0, BLOCK_W)
    at = (tl.program_id(0).to(tl.int64) * SPLITS + split) * GROUP * TOKENS + row
    total = tl.load(sums + at, mask=split < SPLITS, other=0.0)
    peak = tl.load(peaks + at, mask=split < SPLITS, other=float("-inf"))
    highest = tl.max(peak)
    weight = tl.exp2(peak - tl.where(highest == float("-inf"), 0.0, highest))
    there = (total > 0.0)[:, None] & (channels < WIDTH)[None, :]  # what saw nothing has stored nothing
    found = tl.load(parts + at[:, None] * WIDTH + channels[None, :], mask=there, other=0.0)
    total = tl.sum(total * weight)
    found = tl.sum(found * weight[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    place = ((batch * TOKENS + token) * KV * GROUP + head) * WIDTH + channels
    tl.store(out + place, rounded(found, out.dtype.element_ty, INTERPRETED), mask=channels < WIDTH)
