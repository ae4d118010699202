"""A drawing that stands alone: every class resolved into plain attributes, on a ground of its own, titled.

Such a file needs no stylesheet, so that anything that shows SVG shows it alike: a browser, a model card, an editor.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from eval.report.drawing.palette import COLOURS, LIGHT, MARKS, Palette

SVG = "http://www.w3.org/2000/svg"
HEAD, MARGIN = 34.0, 14.0  # for the title, and around the drawing
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"

_PAINTED = ("fill", "stroke")


def resolved(svg: str, palette: Palette = LIGHT) -> ElementTree.Element:
    """The drawing as a tree of its own; raises ParseError for what is not well-formed."""
    drawn = ElementTree.fromstring(svg)
    width, height = (float(one) for one in drawn.get("viewBox", "").split()[2:])
    wide, high = width + 2 * MARGIN, height + HEAD + MARGIN
    name = drawn.get("id", "plot")
    alone = ElementTree.Element(
        "svg",
        {
            "xmlns": SVG,
            "viewBox": f"0 0 {wide:g} {high:g}",
            "width": f"{wide:g}",
            "height": f"{high:g}",
            "role": "img",
            "aria-labelledby": f"{name}-title",
            "aria-describedby": f"{name}-words",
            "font-family": FONTS,
        },
    )
    parts = list(drawn)
    alone.extend(parts[:2])  # its title, and its words
    ElementTree.SubElement(alone, "rect", {"width": f"{wide:g}", "height": f"{high:g}", "fill": palette["page"]})
    heading = {"x": f"{MARGIN:g}", "y": "24", "font-size": "15", "font-weight": "600", "fill": palette["ink"]}
    ElementTree.SubElement(alone, "text", heading).text = parts[0].text
    body = ElementTree.SubElement(alone, "g", {"transform": f"translate({MARGIN:g} {HEAD:g})"})
    for part in parts[2:]:
        body.append(_plain(part, palette, palette["ink"]))
    return alone


def _plain(element: ElementTree.Element, palette: Palette, mark: str) -> ElementTree.Element:
    """The element without classes; `mark` is the colour of the group that it stands in."""
    classes = element.get("class", "").split()
    for name in classes:
        mark = palette[COLOURS[name]] if name in COLOURS else mark
    plain = ElementTree.Element(element.tag)
    for name in (element.tag, *classes):
        for key, value in MARKS.get(name, {}).items():
            plain.set(key, _colour(value, palette, mark) if key in _PAINTED else value)
    for key, value in element.attrib.items():
        if key not in ("class", "tabindex", "role", "aria-label"):
            plain.set(key, value)
    plain.text = element.text
    plain.extend(_plain(child, palette, mark) for child in element)
    return plain


def _colour(value: str, palette: Palette, mark: str) -> str:
    return mark if value == "mark" else palette.get(value, value)


def written(alone: ElementTree.Element) -> str:
    """As the text of a file."""
    return ElementTree.tostring(alone, encoding="unicode") + "\n"
