"""Tables whose numbers stay whole on a narrow terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_UNLIMITED = 10_000  # columns of a terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberTable:
    """A table with columns of text on the left and columns of numbers on the right.

    Where it does not fit, headings and texts wrap, and no number is shortened or broken.

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
        """Render the table in the width that there is."""
        wide = self._table(narrow=False)
        wanted = console.measure(wide, options=options.update(max_width=_UNLIMITED)).maximum
        yield wide if wanted <= options.max_width else self._table(narrow=True)

    def _table(self, *, narrow: bool) -> Table:
        table = Table(title=Text(self.title) if self.title else None, title_justify="left", title_style="italic")
        for heading in self.texts:
            table.add_column(heading, overflow="fold")
        for place, heading in enumerate(self.numbers, start=len(self.texts)):
            width = self._least_width(place, heading) if narrow else None
            table.add_column(Text(heading, no_wrap=False), justify="right", no_wrap=True, width=width)
        for row in self.rows:
            if row:
                table.add_row(*row)
            else:
                table.add_section()
        return table

    def _least_width(self, place: int, heading: str) -> int:
        """The width of a column's longest number, or of the longest word of its heading."""
        return max(map(len, [*heading.split(), *(row[place] for row in self.rows if row)]))
