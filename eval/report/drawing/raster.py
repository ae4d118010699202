"""A resolved drawing painted as a PNG: the few SVG elements that the report's drawings are made of, by matplotlib.

No browser is needed where an evaluation runs, and no drawing is written twice.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCALE = 2.0  # pixels of a unit
NARROWER = 0.92  # DejaVu, which matplotlib brings along, is wider than a page's letters

Attributes = dict[str, str]


def paint(alone: ElementTree.Element, path: Path) -> None:
    """The whole picture of a tree that `resolved` made, or nothing.

    Raises OSError where it cannot be written, ValueError for an element that no drawing is made of.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = float(alone.get("width", "0")), float(alone.get("height", "0"))
    figure = Figure(figsize=(width / 72, height / 72), dpi=72 * SCALE)
    FigureCanvasAgg(figure)
    painter = _Painter(figure, height)
    for element in alone:
        painter.draw(element, (0.0, 0.0), 1.0)
    partial = path.with_name(f"{path.name}.partial")
    try:
        figure.savefig(partial, format="png", metadata={"Software": None})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _Painter:
    """Paints on a figure whose points are the drawing's units, which count from the top."""

    def __init__(self, figure: Any, height: float) -> None:
        from matplotlib.transforms import Affine2D

        self._figure = figure
        # A figure's own units are inches; 72 of the drawing's make one.
        self._place = Affine2D().scale(1 / 72, -1 / 72).translate(0, height / 72) + figure.dpi_scale_trans
        self._order = 0

    def draw(self, element: ElementTree.Element, shift: tuple[float, float], opacity: float) -> None:
        """One element, and what is in it."""
        tag, given = element.tag, element.attrib
        opacity *= float(given.get("opacity", 1))
        if tag in ("title", "desc"):
            return
        if tag == "g":
            moved = _moved(given.get("transform"), shift)
            for child in element:
                self.draw(child, moved, opacity)
            return
        if tag not in _SHAPES and tag != "text":
            raise ValueError(f"no drawing of a report is made of <{tag}>")
        self._order += 1
        made = self._text(element, shift) if tag == "text" else self._patch(_SHAPES[tag](given), given, shift)
        made.set(alpha=None if opacity == 1 else opacity, zorder=self._order)
        self._figure.add_artist(made)

    def _patch(self, outline: Any, given: Attributes, shift: tuple[float, float]) -> Any:
        from matplotlib.colors import to_rgba
        from matplotlib.patches import PathPatch

        fill, stroke = given.get("fill", "black"), given.get("stroke", "none")
        shade = float(given.get("fill-opacity", 1))
        dashes = [float(one) for one in given.get("stroke-dasharray", "").split()]
        return PathPatch(
            outline,
            facecolor="none" if fill == "none" else to_rgba(fill, shade),
            edgecolor=stroke,
            linewidth=float(given.get("stroke-width", 1)) if stroke != "none" else 0.0,
            linestyle=(0, [one / float(given.get("stroke-width", 1)) for one in dashes]) if dashes else "solid",
            capstyle=given.get("stroke-linecap", "butt"),
            joinstyle="round" if given.get("stroke-linejoin") == "round" else "miter",
            transform=self._shifted(shift),
        )

    def _text(self, element: ElementTree.Element, shift: tuple[float, float]) -> Any:
        from matplotlib.patheffects import withStroke
        from matplotlib.text import Text

        given = element.attrib
        halo = given.get("stroke", "none")
        anchor: Any = {"middle": "center", "end": "right"}.get(given.get("text-anchor", ""), "left")
        return Text(
            float(given["x"]),
            float(given["y"]),
            element.text or "",
            parse_math=False,
            color=given.get("fill", "black"),
            fontsize=NARROWER * float(given.get("font-size", 12)),
            fontweight="bold" if given.get("font-weight") else "normal",
            horizontalalignment=anchor,
            verticalalignment="baseline",
            path_effects=[withStroke(linewidth=float(given["stroke-width"]), foreground=halo)]
            if halo != "none"
            else [],
            transform=self._shifted(shift),
        )

    def _shifted(self, shift: tuple[float, float]) -> Any:
        from matplotlib.transforms import Affine2D

        return Affine2D().translate(*shift) + self._place


def _moved(transform: str | None, shift: tuple[float, float]) -> tuple[float, float]:
    """Behind a translation, the only transformation that drawings have."""
    if transform is None:
        return shift
    x, y = (float(one) for one in transform.removeprefix("translate(").removesuffix(")").split())
    return shift[0] + x, shift[1] + y


def _rect(given: Attributes) -> Any:
    from matplotlib.path import Path as Outline

    x, y = float(given.get("x", 0)), float(given.get("y", 0))
    width, height = float(given["width"]), float(given["height"])
    return Outline([(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)], closed=True)


def _circle(given: Attributes) -> Any:
    from matplotlib.path import Path as Outline

    return Outline.circle((float(given["cx"]), float(given["cy"])), float(given["r"]))


def _line(given: Attributes) -> Any:
    from matplotlib.path import Path as Outline

    return Outline([(float(given["x1"]), float(given["y1"])), (float(given["x2"]), float(given["y2"]))])


def _polyline(given: Attributes) -> Any:
    from matplotlib.path import Path as Outline

    return Outline(_corners(given))


def _polygon(given: Attributes) -> Any:
    from matplotlib.path import Path as Outline

    corners = _corners(given)
    return Outline([*corners, corners[0]], closed=True)


def _corners(given: Attributes) -> list[tuple[float, float]]:
    pairs = (one.split(",") for one in given["points"].split())
    return [(float(x), float(y)) for x, y in pairs]


_SHAPES: dict[str, Callable[[Attributes], Any]] = {
    "rect": _rect,
    "circle": _circle,
    "line": _line,
    "polyline": _polyline,
    "polygon": _polygon,
}
