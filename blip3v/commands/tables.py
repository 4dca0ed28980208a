"""Tables on any width: where the columns do not fit, each row is a paragraph, so that nothing is cut off."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

__all__ = ["print_table"]

_LEAST_WIDTH = 12  # of a column whose text wraps; narrower than that it is hard to read
_UNSAID = ("", "name", "kind")  # headings that a paragraph does without


def print_table(console: Console, table: Table) -> None:
    """Prints a table whose cells are strings (of markup) or ``Text``; long words are folded, not cut."""
    for column in table.columns:
        column.overflow = "fold"
    if _needed_width(table) <= console.width:
        console.print(table)
    else:
        _print_paragraphs(console, table)


def _needed_width(table: Table) -> int:
    left, right = table.padding[3], table.padding[1]
    edges = 2 if table.box is not None else 0
    return edges + sum(_width(column) + left + right for column in table.columns)


def _width(column: Column) -> int:
    texts = [_text(column.header), *map(_text, column.cells)] if column.header else [*map(_text, column.cells)]
    if column.no_wrap:
        return max((cell_len(line) for text in texts for line in text.plain.splitlines()), default=0)
    return min(_LEAST_WIDTH, max((cell_len(word) for text in texts for word in text.plain.split()), default=0))


def _print_paragraphs(console: Console, table: Table) -> None:
    if table.title:
        console.print(Text(str(table.title), style=table.title_style or "bold"), overflow="fold")
    headings = [_text(column.header).plain.replace("\n", " ") for column in table.columns]
    for cells in zip(*(map(_text, column.cells) for column in table.columns), strict=True):
        said = [_labelled(heading, cell) for heading, cell in zip(headings, cells, strict=True) if cell.plain]
        line = Text.assemble(said[0], ": " if said[1:] else "", Text(", ").join(said[1:])) if said else Text()
        console.print(Padding(line, (0, 0, 0, 2)), overflow="fold")
    console.print()


def _labelled(heading: str, cell: Text) -> Text:
    one_line = Text(" ").join(cell.split("\n"))
    return one_line if heading in _UNSAID else Text.assemble(f"{heading} ", one_line)


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text.from_markup(str(cell))
