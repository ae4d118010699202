"""Stacked bars: what a round, and what a new token, is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from eval.report.svg import drawing, fitted, line, text, ticks

WIDTH, LEFT, RIGHT, TOP, FOOT = 460, 138, 46, 6, 34
BAR, STEP = 15, 22
NARROWEST = 30  # a part narrower than this has its figure on hover only


@dataclass(frozen=True)
class Bar:
    """One bar: its name, and what it is made of, by the names of the parts."""

    name: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Its length."""
        return sum(self.parts.values())


def css(part: str) -> str:
    """The CSS variable of a part's colour."""
    return f"--part-{part.split(maxsplit=1)[0]}"


def stacked(bars: Sequence[Bar], unit: str, words: str) -> str:
    """Horizontal bars from the top down, each with its total behind it. Figures are in `unit`."""
    height = TOP + STEP * len(bars) + FOOT
    most = max((bar.total for bar in bars), default=0.0)
    if most <= 0:
        return "<p>Nothing was timed beyond the first token.</p>"
    scale = (WIDTH - LEFT - RIGHT) / most
    base = TOP + STEP * len(bars) + 2
    parts = []
    for value in ticks(0, most, 5):
        parts.append(line("grid", LEFT + value * scale, TOP, LEFT + value * scale, base))
        parts.append(text(LEFT + value * scale, base + 13, f"{value:g}", anchor="middle"))
    for place, bar in enumerate(bars):
        top = TOP + STEP * place + (STEP - BAR) / 2
        parts.append(text(LEFT - 6, top + 11, fitted(bar.name, 24), anchor="end"))
        at = float(LEFT)
        for name, value in bar.parts.items():
            wide = value * scale
            said = f"{bar.name}, {name}: {value:.3g} {unit}, {value / bar.total:.0%}"
            parts.append(
                f'<g style="--mark: var({css(name)})"><title>{escape(said)}</title>'
                f'<rect class="bar" x="{at:.1f}" y="{top:.1f}" width="{max(wide, 0.5):.1f}" height="{BAR}"/></g>'
            )
            if wide >= NARROWEST:
                parts.append(text(at + wide / 2, top + 11, f"{value:.3g}", anchor="middle", kind="inside"))
            at += wide
        parts.append(text(at + 5, top + 11, f"{bar.total:.3g}", kind="title"))
    parts.append(text((WIDTH + LEFT - RIGHT) / 2, height - 4, unit, anchor="middle"))
    lengths = "; ".join(
        f"{bar.name} {bar.total:.3g}: " + ", ".join(f"{name} {value:.3g}" for name, value in bar.parts.items())
        for bar in bars
    )
    return drawing(WIDTH, height, f"{words}, in {unit}: {lengths}", parts)
