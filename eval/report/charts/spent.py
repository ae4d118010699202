"""Where the time goes: stacked bars of a round and of a new token, for the target alone and every drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.report.charts.field import Results, bests, chosen_from
from eval.report.drawing.chart import Chart
from eval.report.drawing.labels import width_of
from eval.report.drawing.plane import ROW, WIDTH
from eval.report.drawing.svg import box, drawing, fitted, group, line, spot, text, ticks
from eval.verdict.account import PARTS, Account, accounts
from eval.verdict.rows import drafter_name

LEFT, RIGHT, FOOT = 148.0, 44.0, 36.0
BAR, STEP = 16.0, 24.0
NARROWEST = 30.0  # a part narrower than this has its figure on hover only


@dataclass(frozen=True)
class Bar:
    """One bar: its name, and what it is made of, by the names of the parts."""

    name: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Its length."""
        return sum(self.parts.values())


def spent_charts(results: Results) -> list[Chart]:
    """A round and a new token, at each batch; every drafter at its best k, and all k in drawings of their own."""
    found = accounts(results["rows"])
    best = {name: row["k"] for name, row in bests(chosen_from(results)).items()}
    charts = []
    batches = list(dict.fromkeys(one.batch for one in found))
    for batch in batches:
        where = f", batch {batch}" if len(batches) > 1 or batch > 1 else ""
        behind = f"-{batch}" if len(batches) > 1 else ""
        mine = [one for one in found if one.batch == batch]
        first = [one for one in mine if one.drafter is None or best.get(_drafter(one)) == one.k]
        rest = [one for one in mine if one not in first]
        charts.append(_chart(f"token-time{behind}", f"A new token{where}", first, per_token=True))
        charts.append(_chart(f"round-time{behind}", f"A round{where}", first, per_token=False))
        if rest:
            charts.append(_chart(f"token-time{behind}-rest", f"A new token{where}, other k", rest, True, card=False))
            charts.append(_chart(f"round-time{behind}-rest", f"A round{where}, other k", rest, False, card=False))
    return charts


def _chart(name: str, title: str, found: Sequence[Account], per_token: bool, *, card: bool = True) -> Chart:
    bars = [Bar(_name(one), _milliseconds(one.per_token_s() if per_token else one.seconds)) for one in found]
    caption = (
        "Milliseconds of a new token from the second on, suites and temperatures pooled: the shorter, the faster."
        if per_token
        else """Milliseconds of a round: drafting, one pass of the target, then sampling, acceptance and rewinding, and
what is left of the host's time. A round of the target alone is one step."""
    )
    return Chart(name, title, stacked(name, title, bars, "ms"), caption, card)


def _drafter(one: Account) -> str:
    return drafter_name({"artifact": one.artifact, "drafter": one.drafter})


def _name(one: Account) -> str:
    return _drafter(one) if one.k is None else f"{_drafter(one)}, k = {one.k}"


def _milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    return {part: 1e3 * spent for part, spent in seconds.items()}


def colour_of(part: str) -> str:
    """The class of a part's colour; what is not split has that of its first."""
    return f"p-{part.split(maxsplit=1)[0]}"


def stacked(name: str, title: str, bars: Sequence[Bar], unit: str) -> str:
    """Horizontal bars from the top down, each with its total behind it. Figures are in `unit`."""
    present = [part for part in PARTS.values() if any(part in bar.parts for bar in bars)]
    parts, x = [], 4.0
    for part in present:
        parts.append(group(colour_of(part), box("bar", x, 4, 11, 11)))
        parts.append(text(x + 16, 14, part, kind="title"))
        x += 30 + width_of(part)
    top = ROW + 8
    most = max((bar.total for bar in bars), default=0.0) or 1.0
    scale, base = (WIDTH - LEFT - RIGHT) / most, top + STEP * len(bars) + 2
    for value in ticks(0, most, 4):
        parts.append(line("grid", LEFT + value * scale, top, LEFT + value * scale, base))
        parts.append(text(LEFT + value * scale, base + 14, f"{value:g}", anchor="middle"))
    for place, bar in enumerate(bars):
        y = top + STEP * place + (STEP - BAR) / 2
        parts.append(text(LEFT - 7, y + 12, fitted(bar.name, 21), anchor="end", kind="title"))
        at = LEFT
        for part, value in bar.parts.items():
            wide = value * scale
            said = f"{bar.name}, {part}: {value:.3g} {unit}, {value / bar.total:.0%}"
            figure = text(at + wide / 2, y + 12, f"{value:.3g}", anchor="middle", kind="inside")
            drawn = box("bar", at, y, max(wide - 0.75, 0.5), BAR) + (figure if wide >= NARROWEST else "")
            parts.append(spot(colour_of(part), said, drawn))
            at += wide
        parts.append(text(at + 6, y + 12, f"{bar.total:.3g}", kind="heading"))
    parts.append(text((WIDTH + LEFT - RIGHT) / 2, base + 30, unit, anchor="middle"))
    lengths = "; ".join(
        f"{bar.name} {bar.total:.3g}: " + ", ".join(f"{part} {value:.3g}" for part, value in bar.parts.items())
        for bar in bars
    )
    return drawing(name, title, f"{title}, in {unit}: {lengths}", (WIDTH, base + FOOT), parts)
