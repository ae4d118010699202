"""The colours of the report, and how each kind of mark is painted.

One table for the page's CSS, for pictures that stand alone, and for PNGs, so that they cannot come apart. Text colours
have a contrast of 4.5 or more on page and panel (WCAG 2.2, 1.4.3), in both palettes, and every drafter has a shape
beside its colour, so that nothing is told by colour alone.
"""

from __future__ import annotations

SERIES = 6  # colours of drafters: --series-0 ...

Palette = dict[str, str]

LIGHT: Palette = {
    "page": "#fcfcfa",
    "panel": "#f3f2ee",
    "raised": "#ffffff",
    "ink": "#1b1b1a",
    "soft": "#5c5b56",
    "line": "#dedcd5",
    "focus": "#0b57d0",
    "good": "#0b6b4b",
    "bad": "#a8281f",
    "series-0": "#1f5fb4",
    "series-1": "#b4480e",
    "series-2": "#0d7656",
    "series-3": "#7440bf",
    "series-4": "#7c5c00",
    "series-5": "#b02a6b",
    "lookup": "#5b6470",
    "alone": "#1b1b1a",
    "part-draft": "#a8500f",
    "part-verify": "#3566a8",
    "part-accept": "#147052",
    "part-host": "#75726a",
}

DARK: Palette = {
    "page": "#161615",
    "panel": "#21211f",
    "raised": "#2a2a28",
    "ink": "#f0efea",
    "soft": "#b3b1a9",
    "line": "#3b3a37",
    "focus": "#8ab8ff",
    "good": "#5fd0a3",
    "bad": "#ff9486",
    "series-0": "#74b2ff",
    "series-1": "#ff9c66",
    "series-2": "#52cf9f",
    "series-3": "#bda2ff",
    "series-4": "#e3b84e",
    "series-5": "#ff93c4",
    "lookup": "#aab4c0",
    "alone": "#f0efea",
    "part-draft": "#f0a062",
    "part-verify": "#7fb0ee",
    "part-accept": "#5ecda4",
    "part-host": "#a8a59c",
}

# Classes that give a group its colour, and the colour that --mark then is.
COLOURS: dict[str, str] = {
    **{f"s{n}": f"series-{n}" for n in range(SERIES)},
    "lookup": "lookup",
    "alone": "alone",
    "good": "good",
    "bad": "bad",
    **{f"p-{part}": f"part-{part}" for part in ("draft", "verify", "accept", "host")},
}

# Class of an element, or its tag: its SVG properties. A colour is a name of the palette, or "mark": the group's own.
MARKS: dict[str, dict[str, str]] = {
    "text": {
        "fill": "soft",
        "font-size": "12",
        "stroke": "page",
        "stroke-width": "3",
        "stroke-linejoin": "round",
        "paint-order": "stroke",
    },
    "title": {"fill": "ink"},
    "heading": {"fill": "ink", "font-weight": "600"},
    "own": {"fill": "mark", "font-weight": "600"},
    "faint": {"fill": "soft", "font-size": "11"},
    "inside": {"fill": "page", "stroke": "none", "font-size": "11"},
    "cell": {"fill": "ink", "stroke": "none"},
    "big": {"font-size": "13", "font-weight": "600"},
    "grid": {"stroke": "line", "stroke-width": "1"},
    "axis": {"stroke": "soft", "stroke-width": "1"},
    "level": {"stroke": "mark", "stroke-width": "1.5", "stroke-dasharray": "5 4"},
    "even": {"stroke": "alone", "stroke-width": "1.25"},
    "diagonal": {"stroke": "soft", "stroke-width": "1.25", "stroke-dasharray": "5 4"},
    "leader": {"stroke": "soft", "stroke-width": "0.75"},
    "roof": {"stroke": "ink", "stroke-width": "1.5", "fill": "none"},
    "front": {"stroke": "ink", "stroke-width": "2", "fill": "none", "stroke-linejoin": "round"},
    "interval": {"stroke": "mark", "stroke-width": "2", "stroke-linecap": "round"},
    "thin": {"stroke": "mark", "stroke-width": "1.25"},
    "dot": {"fill": "mark", "stroke": "page", "stroke-width": "1"},
    "hollow": {"fill": "page", "stroke": "mark", "stroke-width": "2"},
    "bar": {"fill": "mark"},
    "band": {"fill": "mark", "opacity": "0.14"},
    "curve": {"stroke": "mark", "stroke-width": "2", "fill": "none", "stroke-linejoin": "round"},
    "noise": {"stroke": "mark", "stroke-width": "1", "fill": "none", "opacity": "0.35"},
    "kept": {"stroke": "mark", "stroke-width": "1.5", "fill": "none"},
    "joint": {"stroke": "mark", "stroke-width": "1.5", "stroke-dasharray": "1 3"},
    "tile": {"fill": "none", "stroke": "line"},
    "dimmed": {"opacity": "0.42"},
}

_COLOURED = ("fill", "stroke")


def variables(palette: Palette) -> str:
    """A palette as CSS custom properties."""
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())


def css() -> str:
    """The rules of all marks, colours as custom properties."""
    groups = [f".{name} {{ --mark: var(--{colour}); }}" for name, colour in COLOURS.items()]
    return "\n".join([*groups, *(_rule(name, properties) for name, properties in MARKS.items())])


def _rule(name: str, properties: dict[str, str]) -> str:
    selector = "svg text" if name == "text" else f"svg .{name}"
    said = "; ".join(f"{key}: {_value(key, value)}" for key, value in properties.items())
    return f"{selector} {{ {said}; }}"


def _value(key: str, value: str) -> str:
    if key in _COLOURED and value != "none":
        return f"var(--{value})"
    return f"{value}px" if key == "font-size" else value
