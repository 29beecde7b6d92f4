"""Tables for a terminal, with rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mae_bench.aggregate import Cell, TableResult
from mae_bench.report import wording

QUIET = "dim"


def render(results: Sequence[TableResult]) -> RenderableType:
    """Return something that `rich.console.Console.print` prints; fits 80 columns."""
    parts: list[RenderableType] = []
    for result in results:
        notes = wording.notes(result)
        below = [_text("\n".join(["", *notes]), QUIET)] if notes else []
        title = _text(wording.title(result), "bold")
        parts.append(Padding(Group(title, "", _table(result), *below), (0, 0, 1, 0)))
    legend = [_text(note, QUIET) for note in wording.legend(results)]
    return Group(*parts, Group(*legend))


def _table(result: TableResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(_text("\nPretraining"), min_width=11)
    for column in result.columns:
        header = f"{wording.group(result, column)}\n{wording.column_title(result, column)}"
        table.add_column(_text(header), justify="right")
    for row in result.rows:
        cells = (_score(result, index, cell) for index, cell in enumerate(row.cells))
        table.add_row(_text(row.row.title), *cells)
        for label, texts in wording.below(result, row):
            table.add_row(*(_text(text, QUIET) for text in (f" {label}", *texts)))
    for index, (title, texts) in enumerate(wording.contrasts(result)):
        if not index:
            table.add_section()
        table.add_row(*(_text(text) for text in (title, *texts)))
    return table


def _score(result: TableResult, column: int, cell: Cell) -> Text:
    text = f"{wording.score(cell)} {wording.ties(result, column, cell)}".rstrip()
    return _text(text, _style(cell))


def _style(cell: Cell) -> str:
    if cell.best:
        return "bold"
    return "" if cell.complete else "yellow"


def _text(text: str, style: str = "") -> Text:
    """Plain text: rich reads no markup in it, and the terminal no control codes."""
    return Text(wording.printable(text), style=style)
