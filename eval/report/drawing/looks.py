"""How each drafter looks in every drawing: its colour, its shape, and whether that is filled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.report.drawing.palette import SERIES
from eval.report.drawing.svg import SHAPES

RAW = "--raw"  # a drafter before its training, as the factory names it
LOOKUP, ALONE = "prompt lookup", "target alone"


@dataclass(frozen=True)
class Look:
    """A class of the palette, and one of `svg.SHAPES`. Hollow: what had no training; a control was kept for that."""

    colour: str
    shape: str = "circle"
    hollow: bool = False

    control: bool = False

    @property
    def kind(self) -> str:
        """The class of its marks."""
        return "hollow" if self.hollow else "dot"


def looks_of(names: Sequence[str]) -> dict[str, Look]:
    """A look for each name, in their order; a drafter and what it was before its training share colour and shape."""
    found = {}
    trained = list(dict.fromkeys(_trained(name) for name in names if name not in (LOOKUP, ALONE)))
    for name in names:
        if name == LOOKUP:
            found[name] = Look("lookup", "square", hollow=True)
        elif name == ALONE:
            found[name] = Look("alone", "circle")
        else:
            place, raw = trained.index(_trained(name)), name.endswith(RAW)
            found[name] = Look(f"s{place % SERIES}", SHAPES[place % len(SHAPES)], raw, raw)
    return found


def _trained(name: str) -> str:
    return name.removesuffix(RAW)
