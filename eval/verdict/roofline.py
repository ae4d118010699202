"""How near each step comes to what the device could do: a roofline (Williams, Waterman and Patterson, 2009).

A step streams its weights once and multiplies them with as many rows as it reads tokens, so none is shorter than
max(bytes / bandwidth, operations / peak). Which of the two is the longer follows from the arithmetic intensity,
operations / byte. The peak is that of large products: a kernel that is slow for a few rows (a CPU's nn.Linear is) is
part of what a step loses, not of what the device cannot do. Attention over the text so far, norms and sampling are
not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from eval.measurement import CHOOSE, MODEL, Arm, ArmFacts, Cell
from factory.anatomy.shapes import Shape
from factory.forecasting.forecast import served, unpacked
from factory.forecasting.profile import DeviceProfile

INT8 = "packed-int8"  # the reader that rounds a drafter's weights to 8 bits
FAR = 2.0  # a step that takes more than this many floors is bound by neither roof

Figures = dict[str, Any]


def roofline(cells: Sequence[Cell], facts: dict[Arm, ArmFacts], profile: DeviceProfile, dtype: str) -> Figures | None:
    """The key `roofline` of results.json: the device's two roofs, and every step on the prompts to choose by.

    `target`: one token by the target alone. `verify`: a target pass over k + 1 tokens, fewer near the end of an
    output; timed with drafters that are models, since prompt lookup often proposes nothing. `draft`: drafting divided
    by the tokens drafted, sampling included. None where the target's shape is not known.
    """
    target = next((found.target_shape for found in facts.values() if found.target_shape is not None), None)
    if target is None:
        return None
    target = served(target, dtype)
    timed = [cell for cell in cells if cell.stage == CHOOSE and cell.batch == cells[0].batch]
    drafted = [cell for cell in timed if cell.arm.drafter == MODEL]

    steps = [_step("target", target, [cell for cell in timed if cell.arm.drafter is None], profile, dtype)]
    for k in sorted({cell.arm.fixed_k for cell in drafted if cell.arm.fixed_k is not None}):
        mine = [cell for cell in drafted if cell.arm.k == k]
        steps.append({**_step("verify", target, mine, profile, dtype), "k": k})
    for name in dict.fromkeys(cell.arm.artifact for cell in drafted):
        mine = [cell for cell in drafted if cell.arm.artifact == name]
        known = facts[mine[0].arm]
        if known.drafter_shape is not None:
            shape = served(known.drafter_shape, dtype)
            if known.drafter_reader == INT8:
                shape = replace(shape, bits=8.0, table_bits=8.0)
            steps.append({**_step("draft", shape, mine, profile, dtype), "artifact": name})
    return {
        "dtype": dtype,
        "bandwidth_bytes_per_s": profile.bandwidth_bytes_per_s,
        "peak_flop_per_s": profile.peak(dtype),
        "steps": [step for step in steps if step["measured_s"] is not None],
    }


def figures(shape: Shape, tokens: float, measured_s: float, profile: DeviceProfile, dtype: str) -> Figures:
    """One step's figures, from its shape as served, the tokens that it reads in one pass, and the seconds it took.

    `floor_share` is floor / measured: 1 is as fast as the device allows. It is bound by `memory` or by `arithmetic`,
    whichever floor is the higher, or by the `host` where it takes more than FAR floors: Python, the launching of
    kernels, or kernels that do not come near either roof.
    """
    if unpacked(shape, profile):  # no kernel of the device reads its layers as they are stored
        shape = replace(shape, bits=shape.table_bits)
    operations = shape.step_operations * tokens
    bandwidth = profile.bandwidth(shape.step_bytes)  # a small model's weights are read from a cache
    reading_s = shape.step_bytes / bandwidth
    computing_s = operations / profile.peak(dtype)
    floor_s = max(reading_s, computing_s)
    nearer = "memory" if reading_s >= computing_s else "arithmetic"
    return {
        "tokens": tokens,
        "bytes": shape.step_bytes,
        "bandwidth_bytes_per_s": bandwidth,
        "operations": operations,
        "intensity_flop_per_byte": operations / shape.step_bytes,
        "floor_s": floor_s,
        "measured_s": measured_s,
        "floor_share": floor_s / measured_s,
        "bound": "host" if measured_s > FAR * floor_s else nearer,
    }


def _step(
    kind: Literal["target", "verify", "draft"], shape: Shape, cells: Sequence[Cell], profile: DeviceProfile, dtype: str
) -> Figures:
    """One kind of step over cells, all repeats together; `measured_s` is None where it was never timed."""
    timed = [one for cell in cells for one in cell.timed]
    rounds, drafted = sum(one.rounds for one in timed), sum(one.draft_steps for one in timed)
    spent_s = sum(one.draft_s if kind == "draft" else one.verify_s for one in timed)
    count = drafted if kind == "draft" else rounds
    named = {"step": kind, "artifact": None, "k": None}
    if not count or spent_s <= 0:
        return {**named, "measured_s": None}
    fed = sum(one.read_tokens if kind == "verify" else one.rows_read for one in timed)
    tokens = fed / rounds  # a draft step's rows are taken to be a round's
    return {**named, **figures(shape, tokens, spent_s / count, profile, dtype)}
