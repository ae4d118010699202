"""A cell of a break-even map: its figures, its best k, and the rule that all cells together make.

A cell is one batch, temperature and context length. Drafting pays there when some k's interval lies above 1 and its
outputs were the target's own. The best k is that of the best lower bound; it is chosen and measured on the same
prompts, so its figure is a little too high on average (`eval.verdict.choose` has the choice measured again, a map
does not).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.measurement import Cell, acceptance, paired
from eval.verdict.rows import drafter_name
from eval.verdict.stats import speedup
from factory.errors import DataError

Figures = dict[str, Any]
Place = tuple[int, float, int]  # context, temperature, batch


def cell_figures(timed: Sequence[Cell], context: int, seed: int) -> Figures:
    """What map.json says of a cell; the target alone comes first in `timed`.

    Raises DataError where every output ended with its first token, so that there is no decoding to time.
    """
    base = timed[0]
    rows = [_row(base, cell, seed, context) for cell in timed[1:]]
    names = list(dict.fromkeys(map(drafter_name, rows)))
    return {
        "context": context,
        "temperature": base.temperature,
        "batch": base.batch,
        "samples": len(base.runs[0]),
        "tokens_per_s": _rate(base),
        "rows": rows,
        "best": [best_of([row for row in rows if drafter_name(row) == name]) for name in names],
    }


def place_of(cell: Figures) -> Place:
    """Where a cell lies."""
    return cell["context"], cell["temperature"], cell["batch"]


def _row(base: Cell, cell: Cell, seed: int, context: int) -> Figures:
    decoding = [quad for quad in paired(base, cell, decode_only=True).values() if quad[1] > 0 and quad[3] > 0]
    if not decoding:
        raise DataError(
            f"context {context}, temperature {base.temperature:g}, batch {base.batch}: every output ended with its "
            "first token, so there is no decoding to time; give other prompts"
        )
    interval = speedup(decoding, seed)
    arm = cell.arm
    return {
        "artifact": arm.artifact,
        "drafter": arm.drafter,
        "k": arm.k,
        "speedup": interval.value,
        "speedup_low": interval.low,
        "speedup_high": interval.high,
        "speedup_total": speedup(list(paired(base, cell).values()), seed, resamples=2).value,
        "tokens_per_s": _rate(cell),
        "alpha": acceptance([output.generation for output in cell.outputs]).alpha,
        "matches_target": cell.lossless,
        "divergences": cell.divergences,
        "near_ties": cell.near_ties,
    }


def _rate(cell: Cell) -> float:
    """Tokens a second from the second token on, all rows of a batch together."""
    return sum(one.decoded_tokens for one in cell.timed) / sum(one.decode_s for one in cell.timed)


def best_of(rows: Sequence[Figures]) -> Figures:
    """The row of the best lower bound among those whose output was the target's own, with `pays` added.

    Where no output was, the first row, and drafting does not pay. A cell of one sample has no interval and proves
    nothing. Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("a cell needs at least one drafter")
    sound = [row for row in rows if row["matches_target"]]
    best = max(sound or rows[:1], key=lambda row: (row["speedup_low"] or 0.0, row["speedup"]))
    pays = bool(sound) and best["speedup_low"] is not None and best["speedup_low"] > 1
    return {**best, "pays": pays}


def rule(name: str, pays: dict[Place, bool]) -> str:
    """One sentence for a drafter: where to switch drafting off. Raises ValueError without cells."""
    if not pays:
        raise ValueError("a rule needs at least one cell")
    if all(pays.values()):
        return f"{name}: draft everywhere; in every cell the interval lies above 1."
    if not any(pays.values()):
        return f"{name}: switch drafting off everywhere; in no cell does the interval lie above 1."
    batches = sorted({batch for _, _, batch in pays})
    places = sorted({(temperature, context) for context, temperature, _ in pays})
    off = {(t, c): tuple(b for b in batches if not pays[c, t, b]) for t, c in places}
    by_span: dict[str, list[str]] = {}
    for where, which in _merged(off):
        if which:
            by_span.setdefault(_span(which, batches), []).append(where)
    clauses = [" ".join(filter(None, (span, _listed(wheres)))) for span, wheres in by_span.items()]
    return f"{name}: switch drafting off {', and '.join(clauses)}; draft elsewhere."


def _merged(off: dict[tuple[float, int], tuple[int, ...]]) -> list[tuple[str, tuple[int, ...]]]:
    """(where, the batches at which drafting is off), said once where it depends on one of the two alone, or on neither.

    `off` is by (temperature, context).
    """
    by_temperature: dict[float, set[tuple[int, ...]]] = {}
    by_context: dict[int, set[tuple[int, ...]]] = {}
    for (temperature, context), which in off.items():
        by_temperature.setdefault(temperature, set()).add(which)
        by_context.setdefault(context, set()).add(which)
    if len(set(off.values())) == 1:
        return [("", next(iter(off.values())))]
    if all(len(found) == 1 for found in by_temperature.values()):
        return [(_mode(temperature), found.pop()) for temperature, found in by_temperature.items()]
    if all(len(found) == 1 for found in by_context.values()):
        return [(f"with {context} tokens of context", found.pop()) for context, found in by_context.items()]
    return [(f"{_mode(t)} with {c} tokens of context", which) for (t, c), which in off.items()]


def _mode(temperature: float) -> str:
    return "under greedy decoding" if temperature == 0 else f"at temperature {temperature:g}"


def _span(off: Sequence[int], batches: Sequence[int]) -> str:
    """Which of the measured batches those are."""
    if len(off) == len(batches):
        return "at every batch" if len(batches) > 1 else ""
    if list(off) == list(batches[-len(off) :]):
        return f"from batch {off[0]} on"
    if list(off) == list(batches[: len(off)]) and len(off) > 1:
        return f"up to batch {off[-1]}"
    return f"at batch {_listed([str(batch) for batch in off])}"


def _listed(words: Sequence[str]) -> str:
    words = [word for word in words if word]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
