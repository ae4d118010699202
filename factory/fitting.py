"""Tables on a terminal that may be too narrow for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

NAME = 14  # what a name is folded to at the narrowest
_FRAME = 3  # of a column: a line, and a blank on either side


class Fitted:
    """Rows under headings, as far as the terminal has room: `spare` columns go, the first of them first.

    Rich would squeeze all columns alike, down to nothing. Where not even the others have room each row becomes a
    sentence, with all columns in it. The first `words` columns are text, the others figures; the first is a name,
    which may be folded. None among the rows is a line between them.
    """

    def __init__(
        self,
        title: str | None,
        heads: Sequence[str],
        rows: Iterable[Sequence[str] | None],
        *,
        words: int = 1,
        spare: Sequence[str] = (),
        caption: str | None = None,
    ) -> None:
        self.title, self.heads, self.rows, self.words = title, list(heads), list(rows), words
        self.spare, self.caption = spare, caption

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, gone = self._shown(options.max_width)
        if not shown:
            if self.title:
                yield Text(self.title, style="italic")
            yield from self._sentences()
        else:
            yield self._table(shown)
        if gone and shown:
            yield Text(f"no room here for: {', '.join(gone)}", style="italic")
        if self.caption:
            yield Text(self.caption, style="italic")

    def _shown(self, width: int) -> tuple[list[int], list[str]]:
        """The places of the columns that there is room for, none where it is for too few; those that went."""
        places, gone = list(range(len(self.heads))), list[str]()
        spare = [head for head in self.spare if head in self.heads]
        while sum(map(self._width, places)) + _FRAME * len(places) > width:
            if not spare:
                return [], gone
            gone.append(spare.pop(0))
            places.remove(self.heads.index(gone[-1]))
        return places, gone

    def _width(self, place: int) -> int:
        longest = max(cell_len(text) for text in (self.heads[place], *(row[place] for row in self.rows if row)))
        return min(longest, NAME) if place == 0 else longest

    def _table(self, places: Sequence[int]) -> Table:
        table = Table(title=self.title, title_justify="left", pad_edge=False)
        for place in places:
            table.add_column(
                self.heads[place],
                justify="left" if place < self.words else "right",
                no_wrap=place > 0,
                overflow="fold" if place == 0 else "ellipsis",
            )
        for row in self.rows:
            if row is None:
                table.add_section()
            else:
                table.add_row(*(Text(row[place]) for place in places))
        return table

    def _sentences(self) -> Iterable[Text]:
        for row in self.rows:
            if row is not None:
                named = [f"{head} {cell}".strip() for head, cell in zip(self.heads[1:], row[1:], strict=True) if cell]
                yield Text(f"{row[0]}: {', '.join(named)}")
