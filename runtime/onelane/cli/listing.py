"""Tables for people and for programs: fitted to a terminal, or plain columns in a pipe.

Promises: no number is cut, whatever the width: a narrow terminal folds names over several lines, then leaves columns
out whole, by their rank. In a pipe every row has as many words as the header, with nothing around them: awk counts
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

GAP = 2
"""Spaces between two columns."""
LEAST_NAME = 12
"""Characters of a name that stay on one line, however narrow the terminal is."""
WIDE = 100_000
"""A width that nothing reaches."""
EMPTY = "-"
"""The word of a pipe for a cell without content."""


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    is_number: bool = True
    rank: int = 0
    """Where the terminal is too narrow, the column of the highest rank is left out first; never one of rank 0."""


@dataclass(slots=True)
class Listing:
    """Rows of text below named columns."""

    columns: Sequence[Column]
    rows: list[Sequence[str | Text]] = field(default_factory=list)

    def add(self, *cells: str | Text) -> None:
        self.rows.append(cells)

    def show(self, console: Console) -> None:
        """Print it as `console` takes it: a terminal, or a pipe."""
        if not console.is_terminal:
            show_plain([self], console)
            return
        table, hidden = self.fitted(console.width)
        print_uncut(table, console)
        if hidden:
            console.print(Text(f"not shown at {console.width} columns: {', '.join(hidden)}", style="dim"))

    def fitted(self, width: int) -> tuple[Table, list[str]]:
        """A table for a terminal of this width, and the titles of the columns that it leaves out."""
        shown = self._shown(width)
        spare = width - self._least(shown)
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
        for index in shown:
            column = self.columns[index]
            more = max(0, min(spare, self._natural(index) - self._least_of(index)))
            spare -= more
            table.add_column(
                column.title,
                justify="right" if column.is_number else "left",
                width=self._least_of(index) + more,
                no_wrap=column.is_number,
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*(row[index] for index in shown))
        return table, [column.title for index, column in enumerate(self.columns) if index not in shown]

    def words(self) -> list[list[str]]:
        """Header and rows for a pipe: no cell is empty or has a space."""
        titles = [column.title.replace(" ", "_") for column in self.columns]
        return [titles, *([self._word(index, cell) for index, cell in enumerate(row)] for row in self.rows)]

    def _word(self, index: int, cell: str | Text) -> str:
        gap = "" if self.columns[index].is_number else "_"
        return gap.join(str(cell).split()) or EMPTY

    def _shown(self, width: int) -> list[int]:
        shown = list(range(len(self.columns)))
        while self._least(shown) > width and (optional := [index for index in shown if self.columns[index].rank]):
            shown.remove(max(optional, key=lambda index: self.columns[index].rank))
        return shown

    def _least(self, shown: Sequence[int]) -> int:
        return sum(map(self._least_of, shown)) + GAP * (len(shown) - 1)

    def _least_of(self, index: int) -> int:
        natural = self._natural(index)
        return natural if self.columns[index].is_number else min(natural, LEAST_NAME)

    def _natural(self, index: int) -> int:
        return max(cell_len(self.columns[index].title), *(cell_len(str(row[index])) for row in self.rows), 0)


def show_plain(listings: Sequence[Listing], console: Console) -> None:
    """Print tables of the same columns as one."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=False)
    for column in listings[0].columns:
        table.add_column(justify="right" if column.is_number else "left", no_wrap=True)
    header, *rows = [words for listing in listings for words in listing.words()]
    table.add_row(*header)
    for words in rows:
        if words != header:
            table.add_row(*words)
    print_uncut(table, console)


def lines_of(content: RenderableType, console: Console) -> list[list[Segment]]:
    """The lines of `content`, each as long as it is: the console's width cuts and breaks none."""
    return console.render_lines(content, console.options.update(max_width=WIDE, height=None), pad=False)


def print_uncut(content: RenderableType, console: Console) -> None:
    """Print `content`; where it is wider than the terminal, the terminal itself breaks its lines."""
    newline = Segment.line()
    lines = lines_of(content, console)
    console.print(Segments([segment for line in lines for segment in [*line, newline]]), crop=False, end="")
