"""The roofline drawn: operations per second over arithmetic intensity, both on logarithmic scales."""

from __future__ import annotations

import math
from typing import Any

from eval.report.drawing.chart import Chart
from eval.report.drawing.labels import apart
from eval.report.drawing.svg import decade_ticks, drawing, fitted, group, line, path, si, spot, symbol, text

WIDTH, HEIGHT = 620, 340
LEFT, RIGHT, TOP, BOTTOM = 46, 206, 24, 40
LOOKS = {"target": ("p-host", "square"), "verify": ("p-verify", "circle"), "draft": ("p-draft", "diamond")}
CAPTION = """A step under the slope waits for memory, under the flat roof for arithmetic; how far below says how much of
what the device could do it reaches."""

Step = dict[str, Any]


def name_of(step: Step) -> str:
    """What a step is called."""
    if step["step"] == "draft":
        return f"draft step of {step['artifact']}"
    return "target, one token" if step["step"] == "target" else f"target, verifying k = {step['k']}"


def roofline_chart(roofline: dict[str, Any] | None) -> Chart | None:
    """None for results that know of no roofline, and where no step was timed."""
    if not roofline or not roofline["steps"]:
        return None
    title = "How near each step comes to what the device could do"
    return Chart("roofline", title, roofline_plot(roofline, title), CAPTION)


def roofline_plot(roofline: dict[str, Any], title: str) -> str:
    """Every step as a mark under the roof; a line leads to its name and its share of the floor."""
    steps = roofline["steps"]
    peak, slopes = roofline["peak_flop_per_s"], _slopes(roofline)
    ridges = [math.log10(peak / bandwidth) for bandwidth in slopes]
    xs = [math.log10(step["intensity_flop_per_byte"]) for step in steps]
    ys = [math.log10(step["operations"] / step["measured_s"]) for step in steps]
    x_low, x_high = min([*xs, *ridges]) - 0.3, max([*xs, *ridges]) + 0.5
    y_high = math.log10(peak) + 0.3
    y_low = min([*ys, x_low + math.log10(min(slopes))]) - 0.2

    def x(value: float) -> float:
        return LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    edge, base = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in decade_ticks(y_low, y_high, (1, 3)):
        parts.append(line("grid", LEFT, y(value), edge, y(value)))
        parts.append(text(LEFT - 6, y(value) + 4, si(10**value, "").strip(), anchor="end"))
    for value in decade_ticks(x_low, x_high, (1, 3)):
        parts.append(line("grid", x(value), TOP, x(value), base))
        parts.append(text(x(value), base + 15, f"{10**value:.3g}", anchor="middle"))
    for bandwidth, ridge in zip(slopes, ridges, strict=True):
        roof = [(x_low, x_low + math.log10(bandwidth)), (ridge, math.log10(peak)), (x_high, math.log10(peak))]
        parts.append(path("roof", [(x(a), y(b)) for a, b in roof]))
    rates = ", ".join(si(bandwidth, "B/s") for bandwidth in sorted(slopes))
    parts.append(text(LEFT + 6, TOP + 11, f"slope: {rates}" if len(slopes) == 1 else f"slopes from below: {rates}"))
    parts.append(text(edge - 4, y(math.log10(peak)) - 5, f"peak {si(peak, 'FLOP/s')}", anchor="end"))
    parts.append(text(4, 12, "FLOP/s"))
    labels = apart([y(value) for value in ys], 15, TOP + 6, base - 4)
    for step, a, b, label in zip(steps, xs, ys, labels, strict=True):
        words = f"{name_of(step)}: {1e3 * step['measured_s']:.3g} ms, floor {1e3 * step['floor_s']:.3g} ms"
        colour, shape = LOOKS[step["step"]]
        parts.append(group(colour, line("leader", x(a), y(b), edge + 6, label)))
        parts.append(spot(colour, words, symbol(shape, x(a), y(b), 4.5)))
        said = f"{fitted(name_of(step), 26)}: {step['floor_share']:.0%}"
        parts.append(text(edge + 10, label + 4, said, kind="title"))
    parts.append(text((LEFT + edge) / 2, HEIGHT - 6, "operations / byte", anchor="middle"))
    shares = "; ".join(f"{name_of(step)} reaches {step['floor_share']:.0%} of its floor" for step in steps)
    words = f"Roofline, operations per second over operations per byte: {shares}"
    return drawing("roofline", title, words, (WIDTH, HEIGHT), parts)


def _slopes(roofline: dict[str, Any]) -> list[float]:
    """The bandwidths that steps read at, memory's first; what differs by less than a tenth is one."""
    found = [float(roofline["bandwidth_bytes_per_s"])]
    for step in roofline["steps"]:
        rate = float(step["bandwidth_bytes_per_s"])
        if all(abs(math.log(rate / known)) > 0.1 for known in found):
            found.append(rate)
    return found
