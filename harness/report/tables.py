"""Tables as text for a terminal: no figure is broken, and what finds no room in columns is said in lines.

wide     all columns
narrow   without the columns that may be spared, the first to go first
less     each row is its name, then `column: cell` as often as fits a line
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.report.facts import printable

_GLUE = "\ue000"
"""Stands for a blank at which no line may end, until the lines are made: rich breaks them at U+00A0 too."""
_UNIT = r"(?:[mnµ]?s|min|h|[kMGT]?B|%|\S*/s|ok|[a-z]+_[a-z_]+)(?!\w)"
"""What a number may be of: an outcome too."""
_FIGURE = re.compile(rf"(?<=\d) (?={_UNIT})|(?<=[<>≤≥=]) (?=\d)")
_PROSE = 20
"""Characters that a column of words must have to be read."""
_INDENT = 2


class Sheet(msgspec.Struct, frozen=True):
    """One table: a title, its columns, and rows of as many cells."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: tuple[str, ...] = ()
    """Columns of numbers."""
    lead: int = 1
    """So many of the first columns name the row."""
    spare: tuple[tuple[str, ...], ...] = ()
    """Columns that a narrow terminal does without, the first to go first, some of them together."""
    grouped: bool = False
    """Rows that begin alike stand together, and say so once."""


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
    parts = [fitted(sheet, width=width, styles=styles or {}) for sheet in sheets if sheet.rows]
    return printed(parts, width=width, colour=colour)


def fitted(*sheets: Sheet, width: int, styles: Mapping[str, str]) -> RenderableType:
    """The first of the sheets that has room as it is; else the last one, cut down as far as it must be."""
    for sheet in sheets:
        if _room(sheet, sheet.columns) <= width:
            return _table(sheet, sheet.columns, styles)
    sheet = sheets[-1]
    empty = [name for at, name in enumerate(sheet.columns) if not any(row[at] for row in sheet.rows)]
    columns = list(sheet.columns)
    for spared in (empty, *sheet.spare):
        columns = [name for name in columns if name not in spared]
        if _room(sheet, columns) <= width:
            return _table(sheet, columns, styles)
    return lines(sheet, styles)


def lines(sheet: Sheet, styles: Mapping[str, str]) -> RenderableType:
    """Each row as its name, and below it what its columns hold."""
    parts: list[RenderableType] = [Text(sheet.title, style="bold")] if sheet.title else []
    for row in sheet.rows:
        parts.append(Text("  ", style="bold").join(_cell(each, styles) for each in row[: sheet.lead]))
        said = [
            Text.assemble((_glued(f"{name}: ") if name else "", "dim"), _cell(cell, styles, whole=True))
            for name, cell in zip(sheet.columns[sheet.lead :], row[sheet.lead :], strict=True)
            if cell
        ]
        parts.append(Padding(Text("  ").join(said), (0, 0, 0, _INDENT)))
    return Group(*parts)


def kept(text: str) -> str:
    """The text, printable, with each figure held together: number and unit, sign and number."""
    return _FIGURE.sub(_GLUE, printable(text))


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
    text = paper.getvalue().replace(_GLUE, " ")
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines()) + "\n"


def _table(sheet: Sheet, columns: Sequence[str], styles: Mapping[str, str]) -> Table:
    table = Table(
        title=sheet.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in columns:
        table.add_column(
            name,
            justify="right" if name in sheet.right else "left",
            overflow="fold",
            no_wrap=_whole(sheet, name),
        )
    before: str | None = None
    for row in sheet.rows:
        again = sheet.grouped and row[0] == before
        if sheet.grouped and before is not None and not again:
            table.add_section()
        before = row[0]
        cells = dict(zip(sheet.columns, ("", *row[1:]) if again else row, strict=True))
        table.add_row(*(_cell(cells[name], styles) for name in columns))
    return table


def _room(sheet: Sheet, columns: Sequence[str]) -> int:
    """Characters that the columns need at least, the two between each pair among them."""
    at = {name: position for position, name in enumerate(sheet.columns)}
    needs = 0
    for name in columns:
        longest = max(cell_len(text) for text in (name, *(row[at[name]] for row in sheet.rows)))
        needs += longest if _whole(sheet, name) else min(longest, _PROSE)
    return needs + 2 * (len(columns) - 1)


def _whole(sheet: Sheet, column: str) -> bool:
    """Its cells stay on one line: a name or a figure that is cut in two is not read as what it is."""
    return column in sheet.right or column in sheet.columns[: sheet.lead]


def _cell(text: str, styles: Mapping[str, str], *, whole: bool = False) -> Text:
    shown = _glued(text) if whole and len(text) <= _PROSE else kept(text)
    return Text(shown, style=styles.get(text, ""))


def _glued(text: str) -> str:
    return printable(text).replace(" ", _GLUE)
