"""A drawing and the words around it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chart:
    """One figure of the report: on the page with its caption, in a file by its name."""

    name: str
    title: str
    svg: str
    caption: str
    card: bool = True  # whether it is worth a picture of its own
