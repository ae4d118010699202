"""A plot's rectangle: where figures lie in it, its grid, and what its axes say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.report.drawing.labels import Box, width_of
from eval.report.drawing.looks import Look
from eval.report.drawing.svg import group, line, symbol, text

WIDTH, HEIGHT = 440.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 10.0, 42.0
ROW = 18.0  # of a legend


@dataclass(frozen=True)
class Plane:
    """Figures from x_low to x_high and from y_low to y_high, in that rectangle."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    left: float = LEFT
    top: float = TOP
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM

    def x(self, value: float) -> float:
        """Where a figure lies from left to right."""
        return self.left + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Where a figure lies from the top down."""
        return self.bottom - (value - self.y_low) / (self.y_high - self.y_low) * (self.bottom - self.top)

    @property
    def box(self) -> Box:
        """All of it."""
        return Box(self.left, self.top, self.right, self.bottom)

    def grid(
        self,
        across: Sequence[float],
        along: Sequence[float],
        say_y: Callable[[float], str],
        say_x: Callable[[float], str],
        *,
        uprights: bool = False,
    ) -> list[str]:
        """Lines at `across`, figures beside them and below `along`; `uprights` draws lines at those too."""
        parts = []
        for value in across:
            parts.append(line("grid", self.left, self.y(value), self.right, self.y(value)))
            parts.append(text(self.left - 6, self.y(value) + 4, say_y(value), anchor="end"))
        for value in along:
            if uprights:
                parts.append(line("grid", self.x(value), self.top, self.x(value), self.bottom))
            parts.append(text(self.x(value), self.bottom + 16, say_x(value), anchor="middle"))
        return parts

    def foot(self, words: str) -> str:
        """What lies along the lower edge."""
        return text((self.left + self.right) / 2, self.bottom + 35, words, anchor="middle")


def legend(looks: Sequence[tuple[str, Look]], left: float = 4.0, right: float = WIDTH - 4) -> tuple[list[str], float]:
    """Names with their marks, in rows from the top, and how high they stand."""
    parts, x, y = [], left, 10.0
    for name, look in looks:
        wide = 22 + 0.94 * width_of(name) + 8
        if x > left and x + wide > right:
            x, y = left, y + ROW
        parts.append(group(look.colour, symbol(look.shape, x + 6, y, 4.5, look.kind)))
        parts.append(text(x + 16, y + 4, name, kind="title"))
        x += wide
    return parts, (y + ROW - 4 if parts else 0.0)


def floor_of(least: float) -> float:
    """Where an axis of speedups begins that shows marks and no bars: at a round figure below the least."""
    return max(0.0, math.floor(4 * (min(least, 0.95) - 0.02)) / 4)


def speedup_ticks(high: float, low: float = 0.0) -> list[float]:
    """Round speedups from `low` to `high`, 1 among them where it lies between."""
    step = next((unit for unit in (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0) if (high - low) / unit <= 7), 50.0)
    first = math.ceil(low / step - 1e-9)
    return [round(step * place, 10) for place in range(first, math.floor(high / step + 1e-9) + 1)]
