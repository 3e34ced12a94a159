"""Tables whose numbers stay whole on a narrow terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_UNLIMITED = 10_000  # columns of a terminal
_LEAST_TEXT = 8  # letters of a column of text, which may wrap


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberTable:
    """A table with columns of text on the left and columns of numbers on the right.

    Where it does not fit, headings and texts wrap, and then units go below their numbers; no number is shortened.

    Attributes:
        title: stands above the table; none where empty.
        texts, numbers: the headings of the columns.
        rows: a cell for each column; an empty row draws a line.
    """

    title: str = ""
    texts: Sequence[str] = ()
    numbers: Sequence[str] = ()
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the widest form that fits."""
        places = range(len(self.texts), len(self.texts) + len(self.numbers))
        wide = self._table([None] * len(self.numbers))
        if console.measure(wide, options=options.update(max_width=_UNLIMITED)).maximum <= options.max_width:
            yield wide
            return
        whole = [self._longest(place, split=False) for place in places]
        borders = 3 * (len(self.texts) + len(self.numbers)) + 1
        fits = sum(whole) + _LEAST_TEXT * len(self.texts) + borders <= options.max_width
        yield self._table(whole if fits else [self._longest(place, split=True) for place in places])

    def _table(self, widths: Sequence[int | None]) -> Table:
        """Build the table with these widths of the columns of numbers."""
        table = Table(title=Text(self.title) if self.title else None, title_justify="left", title_style="italic")
        for heading in self.texts:
            table.add_column(heading, overflow="fold")
        for heading, width in zip(self.numbers, widths, strict=True):
            table.add_column(heading, justify="right", width=width)
        for row in self.rows:
            if row:
                table.add_row(*row)
            else:
                table.add_section()
        return table

    def _longest(self, place: int, *, split: bool) -> int:
        """The length of the longest cell of a column, or of the longest word in it, and of a word of its heading."""
        cells = [row[place] for row in self.rows if row]
        words = [word for cell in cells for word in cell.split()] if split else cells
        return max(map(len, [*self.numbers[place - len(self.texts)].split(), *words]))
