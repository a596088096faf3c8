"""Plain tables for the verbs that examine rather than judge, as text for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from harness.report.facts import printable


class Sheet(msgspec.Struct, frozen=True):
    """One table: a title, its columns, and rows of as many cells."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: tuple[str, ...] = ()
    """Columns of numbers."""


def tables(
    sheets: Sequence[Sheet],
    *,
    width: int = 100,
    colour: bool = False,
    styles: Mapping[str, str] | None = None,
) -> str:
    """Lay tables out below one another.

    Args:
        sheets: the tables; one without rows is left out.
        width: of the terminal, in characters.
        colour: with ANSI escapes; the words say everything without them too.
        styles: how a cell that reads so is coloured.
    """
    return printed(
        [_table(sheet, styles or {}) for sheet in sheets if sheet.rows], width=width, colour=colour
    )


def printed(parts: Iterable[RenderableType], *, width: int, colour: bool) -> str:
    """Lay parts out below one another, a blank line between; no line ends in blanks."""
    paper = io.StringIO()
    console = Console(
        file=paper,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )
    for part in parts:
        console.print(part)
        console.print()
    return "\n".join(line.rstrip() for line in paper.getvalue().rstrip().splitlines()) + "\n"


def _table(sheet: Sheet, styles: Mapping[str, str]) -> Table:
    table = Table(
        title=sheet.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for position, column in enumerate(sheet.columns):
        table.add_column(
            column,
            justify="right" if column in sheet.right else "left",
            overflow="fold",
            no_wrap=position == 0,
        )
    for row in sheet.rows:
        table.add_row(*(Text(printable(cell), style=styles.get(cell, "")) for cell in row))
    return table
