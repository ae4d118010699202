"""report.html: one self-contained page that fetches nothing, and whose policy forbids it to."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from eval.report.style import script, style


@dataclass(frozen=True)
class Section:
    """A part of the page: its id, what it is called in the contents, its heading, and its HTML."""

    name: str
    short: str
    heading: str
    html: str


def page(title: str, opening: str, sections: Sequence[Section]) -> str:
    """The page. `opening` stands above all sections; those without HTML are left out."""
    present = [section for section in sections if section.html]
    links = "".join(f'<li><a href="#{one.name}">{escape(one.short)}</a></li>' for one in present)
    body = "".join(
        f'<section id="{one.name}" aria-labelledby="{one.name}-heading"><h2 id="{one.name}-heading">'
        f"{escape(one.heading)}</h2>\n{one.html}</section>\n"
        for one in present
    )
    css = style()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(css)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title><style>{css}</style></head><body>
<a class="skip" href="#main">Skip to the verdict</a>
<div class="frame">
<header class="top"><p>{escape(title)} <span>· drafter-factory</span></p>{_PALETTES}</header>
<nav class="contents" aria-label="Contents"><ol>{links}</ol></nav>
<main id="main" tabindex="-1">
{opening}{body}<footer>Drawn by drafter-factory from the files beside this page; <code>factory report DIR</code> draws
it again. Nothing here is fetched from anywhere.</footer>
</main></div>
<script>{script()}</script></body></html>
"""


_PALETTES = (
    '<fieldset class="palette"><legend class="unseen">Palette</legend>'
    + "".join(
        f'<label><input type="radio" name="palette" id="palette-{name.lower()}" value="{name.lower()}"'
        f"{' checked' if name == 'System' else ''}><span>{name}</span></label>"
        for name in ("System", "Light", "Dark")
    )
    + "</fieldset>"
)


def _policy(css: str) -> str:
    """Nothing from anywhere; of scripts and styles only the two that are written here, by their sums."""
    own = f"style-src '{_sum(css)}'; script-src '{_sum(script())}'"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"


def _sum(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
