"""Bars of each task's scores; the page's template draws them as inline SVG.

Drawn by the page itself rather than by matplotlib, so that colours follow the reader's light or
dark setting, text stays text, and printing tables waits for no import. Coordinates are SVG user
units, origin top left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mae_bench.aggregate import Cell, ColumnResult, TableResult
from mae_bench.report import wording
from mae_bench.report.axes import Tick, ticks

WIDTH, BAR_STEP, AXIS_HEIGHT = 360.0, 42.0, 24.0
LABEL_HEIGHT = 19.0
RIGHT_MARGIN = 12.0
MOST_BARS = 40


@dataclass(frozen=True)
class Dot:
    """One seed's score."""

    x: float
    run_id: str
    text: str


@dataclass(frozen=True)
class Bar:
    """One init: a bar to its mean, a whisker of one standard deviation, a dot per seed.

    An incomplete cell has no bar (`length` None), only the dots it has.
    """

    init: str
    y: float
    text: str
    start: float
    length: float | None
    whisker: tuple[float, float] | None
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Panel:
    """Bars of one metric over all inits that were measured with the same settings."""

    title: str
    subtitle: str
    column: ColumnResult
    height: float
    ticks: tuple[Tick, ...]
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Shared:
    """A column of all tables that measure the same: its title, and its cells by init."""

    title: str
    column: ColumnResult
    cells: dict[str, Cell]


def shared_columns(results: Sequence[TableResult]) -> list[Shared]:
    """The columns of the tables that are not figures, those that tables share once.

    Inits stand in the same order, under their own names, in every one.
    """
    order = list(dict.fromkeys(row.row.init for result in results for row in result.rows))
    found: dict[tuple[str, ...], Shared] = {}
    for result in results:
        for index, column in enumerate(result.columns):
            setting = column.setting
            if setting is None or result.table.x_title:
                continue
            where = (setting.dataset, setting.recipe, str(setting.overrides))
            key = (*where, column.backbone, column.column.metric)
            title = f"{wording.group(result, column)}, {wording.short_title(result, column)}"
            shared = found.setdefault(key, Shared(title, column, {}))
            for row in result.rows:
                shared.cells.setdefault(row.row.init, row.cells[index])
    for shared in found.values():
        ordered = {init: shared.cells[init] for init in order if init in shared.cells}
        shared.cells.clear()
        shared.cells.update(ordered)
    return list(found.values())


def panels(results: Sequence[TableResult]) -> list[Panel]:
    """One panel per metric and setting, of what is measured."""
    found = []
    for shared in shared_columns(results):
        cells = {init: cell for init, cell in shared.cells.items() if cell.values}
        if cells:
            first = dict(list(cells.items())[:MOST_BARS])
            more = f"; {len(cells) - MOST_BARS} more in the table" if len(cells) > MOST_BARS else ""
            found.append(_panel(shared.title, shared.column, first, more))
    return found


def _panel(title: str, column: ColumnResult, cells: Mapping[str, Cell], more: str) -> Panel:
    reach = [value for cell in cells.values() for value in _reach(cell)]
    scale = ticks(min(0.0, *reach), max(0.0, *reach))
    low, high = scale[0], scale[-1]

    def place(value: float) -> float:
        return round((value - low) / (high - low) * (WIDTH - RIGHT_MARGIN), 2)

    bars = tuple(
        _bar(init, cell, index * BAR_STEP + LABEL_HEIGHT, place)
        for index, (init, cell) in enumerate(cells.items())
    )
    return Panel(
        title=title,
        subtitle=wording.direction(column) + more,
        column=column,
        height=len(bars) * BAR_STEP + AXIS_HEIGHT,
        ticks=tuple(Tick(place(value), f"{value:g}") for value in scale),
        bars=bars,
    )


def _reach(cell: Cell) -> tuple[float, ...]:
    """The values that a cell's marks extend to."""
    if cell.mean is None or cell.sd is None:
        return cell.values
    return (*cell.values, cell.mean - cell.sd, cell.mean + cell.sd)


def _bar(init: str, cell: Cell, y: float, place: Callable[[float], float]) -> Bar:
    zero, mean = place(0.0), place(cell.mean or 0.0)
    whisker = None
    if cell.mean is not None and cell.sd is not None:
        whisker = (place(cell.mean - cell.sd), place(cell.mean + cell.sd))
    return Bar(
        init=init,
        y=y,
        text=wording.score(cell),
        start=min(zero, mean),
        length=None if cell.mean is None else round(abs(mean - zero), 2),
        whisker=whisker,
        dots=tuple(
            Dot(place(result.metric.value), result.run_id or "", f"seed {result.seed}")
            for result in cell.seeds
            if result.metric
        ),
    )
