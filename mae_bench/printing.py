"""How the verbs print: tables on a terminal, plain columns in a pipe, JSON on request."""

from __future__ import annotations

import json
from collections.abc import Sequence

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from mae_bench.progress import make_console


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """On a terminal a table that folds long cells, in a pipe aligned columns that lose nothing.

    Args:
        columns: headings; none for no heading.
    """
    console = make_console()
    if not console.is_terminal:
        everything = [columns, *rows] if columns else rows
        widths = [max(map(len, cells)) for cells in zip(*everything, strict=True)]
        for row in everything:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            typer.echo("  ".join(cells).rstrip())
        return
    table = Table(box=box.SIMPLE_HEAD, show_header=bool(columns), show_edge=False, pad_edge=False)
    for column in columns or ("",) * len(rows[0]):
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def print_json(value: object) -> None:
    """Print for programs."""
    typer.echo(json.dumps(value, indent=1))
