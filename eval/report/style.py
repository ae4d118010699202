"""The page's stylesheet and its script, as they stand in the page."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from eval.report.drawing.palette import DARK, LIGHT, css, variables

_HERE = Path(__file__).resolve().parent


@cache
def style() -> str:
    """The whole stylesheet. The palette follows the system, unless the reader chose one; paper is light."""
    light, dark = variables(LIGHT), variables(DARK)
    palettes = f"""
:root {{ color-scheme: light; {light} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ color-scheme: dark; {dark} }} }}
@media screen {{
  :root:has(#palette-light:checked) {{ color-scheme: light; {light} }}
  :root:has(#palette-dark:checked) {{ color-scheme: dark; {dark} }} }}
"""
    return palettes + css() + "\n" + (_HERE / "report.css").read_text(encoding="utf-8")


@cache
def script() -> str:
    """The page's only script."""
    return (_HERE / "report.js").read_text(encoding="utf-8")
