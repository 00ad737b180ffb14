"""Tables for all reports: cells with sort keys, shown on a terminal, in Markdown, or on a page."""

from __future__ import annotations

import math
from typing import NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from celo2.report.kit import MeanStd, cell, markdown_cell

NONE, DIVERGED = "–", "diverged"
GAP = 1  # blanks between two columns on a terminal


class Datum(NamedTuple):
    """Cell of a table.

    Attributes:
        text: The displayed text.
        value: The sort key; None comes last.
        best: Whether the cell is highlighted.
    """

    text: str
    value: float | str | None
    best: bool = False


class Table(NamedTuple):
    """Table with column heads and rows of cells; the first column is text, the others are numbers."""

    columns: tuple[str, ...]
    rows: list[list[Datum]]

    def only(self, columns: tuple[str, ...]) -> Table:
        """Returns the table with some of its columns, in the order given."""
        places = [self.columns.index(column) for column in columns]
        return Table(columns, [[row[place] for place in places] for row in self.rows])

    def transposed(self) -> Table:
        """Returns the table with rows as columns; the first cells of the rows are the heads."""
        heads = (self.columns[0], *(row[0].text for row in self.rows))
        others = enumerate(self.columns[1:], start=1)
        return Table(
            heads, [[Datum(name, name), *(row[place] for row in self.rows)] for place, name in others]
        )


def as_markdown_table(table: Table) -> list[str]:
    """Formats a table as lines of Markdown; highlighted cells are bold."""
    rows = [[_marked(datum) for datum in row] for row in table.rows]
    head = [list(map(markdown_cell, table.columns)), ["---", *["---:"] * (len(table.columns) - 1)]]
    return [f"| {' | '.join(cells)} |" for cells in (*head, *rows)]


def as_rich_table(table: Table, title: str, width: int) -> RichTable:
    """Builds a table for the terminal, transposed if it is wider than the terminal.

    Args:
        table: The table.
        title: The line above it.
        width: The terminal's width in characters.
    """
    chosen = table if _width(table) <= width else min(table, table.transposed(), key=_width)
    shown = RichTable(title=escape(title), box=box.SIMPLE_HEAD, padding=(0, GAP, 0, 0), pad_edge=False)
    for index, column in enumerate(chosen.columns):
        lines = [column] if chosen is not table else column.split()
        shown.add_column(
            Text("\n").join(map(cell, lines)), justify="right" if index else "left", overflow="fold"
        )
    for row in chosen.rows:
        shown.add_row(*(cell(datum.text, bold=datum.best) for datum in row))
    return shown


def mean_datum(value: MeanStd | None, *, negate: bool = False, best: bool = False) -> Datum:
    """Formats a mean with four digits and its deviation with two; None is "diverged".

    Args:
        value: The mean and deviation over the seeds.
        negate: Whether to change the sign, for returns, which are minimised as negative numbers.
        best: Whether the cell is highlighted.
    """
    if value is None:
        return Datum(DIVERGED, None)
    mean = -value.mean if negate else value.mean
    return Datum(f"{mean:.4g}" + ("" if math.isnan(value.std) else f" ±{value.std:.2g}"), mean, best)


def number_datum(value: float | None, form: str, *, unit: str = "") -> Datum:
    """Formats a number; None and NaN become a dash."""
    if value is None or math.isnan(value):
        return Datum(NONE, None)
    return Datum("∞" if value == math.inf else f"{value:{form}}{unit}", value)


def _marked(datum: Datum) -> str:
    text = markdown_cell(datum.text)
    return f"**{text}**" if datum.best else text


def _width(table: Table) -> int:
    """Returns the table's width on a terminal in characters, with heads broken at their spaces."""
    heads = [max(map(len, column.split())) for column in table.columns]
    cells = [max((len(row[i].text) for row in table.rows), default=0) for i in range(len(heads))]
    return sum(map(max, heads, cells)) + GAP * len(heads)
