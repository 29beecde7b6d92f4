"""Tables for a terminal, with rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mae_bench.aggregate import Cell, TableResult
from mae_bench.report import wording

QUIET = "dim"
TITLE_WIDTH, COLUMN_WIDTH = 20, 14


def render(results: Sequence[TableResult]) -> RenderableType:
    """Return something that `rich.console.Console.print` prints; fits 80 columns."""
    parts: list[RenderableType] = []
    for result in results:
        notes = wording.notes(result)
        below = [_text("\n".join(["", *notes]), QUIET)] if notes else []
        title = _text(wording.title(result), "bold")
        parts.append(Padding(Group(title, "", _Blocks(result), *below), (0, 0, 1, 0)))
    legend = [_text(note, QUIET) for note in wording.legend(results)]
    return Group(*parts, Group(*legend))


class _Blocks:
    """A table in blocks of neighbouring columns, as many in each as the terminal has room for."""

    def __init__(self, result: TableResult):
        self._result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        number = len(self._result.columns)
        room = max((options.max_width - TITLE_WIDTH) // COLUMN_WIDTH, 2)
        blocks = max(-(-number // room), 1)
        width = -(-number // blocks)
        for first in range(0, max(number, 1), max(width, 1)):
            if first:
                yield ""
            yield _table(self._result, range(first, min(first + width, number)))


def _table(result: TableResult, block: range) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(_text("\nPretraining"), min_width=11)
    for index in block:
        column = result.columns[index]
        header = f"{wording.group(result, column)}\n{wording.column_title(result, column)}"
        table.add_column(_text(header), justify="right")
    for row in result.rows:
        cells = (_score(result, index, row.cells[index]) for index in block)
        table.add_row(_text(wording.row_title(row)), *cells)
        for label, texts in wording.below(result, row):
            own = (texts[index] for index in block)
            table.add_row(*(_text(text, QUIET) for text in (f" {label}", *own)))
    for place, (title, texts) in enumerate(wording.contrasts(result)):
        if not place:
            table.add_section()
        table.add_row(*(_text(text) for text in (title, *(texts[index] for index in block))))
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
