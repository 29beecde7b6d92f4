"""Charts of two axes: figures over a setting, cost of pretraining, tasks against each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from mae_bench.aggregate import Cell, ColumnResult, TableResult
from mae_bench.records import Record, Row
from mae_bench.report import wording
from mae_bench.report.axes import Frame, Tick, spanned, ticks
from mae_bench.report.charts import Shared, shared_columns

WIDTH, HEIGHT = 360.0, 230.0
AXIS_TITLE_HEIGHT = 40.0
HOUR = 3600.0


@dataclass(frozen=True)
class Mark:
    """A point with its whisker (an SVG path) and what it stands for."""

    init: str
    x: float
    y: float
    text: str
    run_id: str
    whisker: str


@dataclass(frozen=True)
class Line:
    """Marks that belong together, joined by a path; `published` ones are the paper's."""

    name: str
    path: str
    marks: tuple[Mark, ...]
    colour: int
    published: bool = False


@dataclass(frozen=True)
class Plot:
    """A chart with two axes."""

    title: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...] = ()
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Point:
    """A mark before it has a place."""

    init: str
    x: float
    y: float
    text: str
    run_id: str = ""
    sd: float | None = None
    x_sd: float | None = None


def figures(results: Iterable[TableResult]) -> list[Plot]:
    """The tables that have an x axis, as curves over it; the paper's own beside or, at its scale,
    among ours.
    """
    found: list[Plot | None] = []
    for result in results:
        x_title = result.table.x_title
        if x_title is None:
            continue
        ours, paper, title = series_of(result), published_series(result), wording.title(result)
        if result.scale == "paper":
            found.append(_over_x(title, x_title, ours, paper))
        else:
            beside = f"{wording.kicker(result)} of the paper, at paper scale"
            found += [_over_x(title, x_title, ours, {}), _over_x(beside, x_title, {}, paper)]
    return [plot for plot in found if plot]


# Curves by what they are of: a column's or a row's title, and the backbone as the paper prints it.
Series = dict[tuple[str, str], list[Point]]


def series_of(result: TableResult) -> Series:
    """Our curves: per column over the rows' x, or per row over the columns' x."""
    series: Series = {}
    for row, column, cell in _cells(result):
        x, title = _on_axis(row, column)
        if x is not None and cell.mean is not None:
            point = Point(row.init, x, cell.mean, wording.score(cell), _first(cell), cell.sd)
            series.setdefault((title, wording.short_backbone(column.backbone)), []).append(point)
    return series


def published_series(result: TableResult) -> Series:
    """The paper's curves, where it varies the same; columns of several backbones repeat them."""
    series: Series = {}
    for row, column, cell in _cells(result):
        x, title = _on_axis(row, column)
        varied = row.ablation is not None or column.column.ablation is not None
        for reference in cell.published if varied and x is not None else ():
            line = series.setdefault((title, wording.paper_backbone(reference.backbone)), [])
            if reference.value is not None and all(point.x != x for point in line):
                text = f"paper {wording.number(reference.value)}"
                line.append(Point(row.init, x or 0.0, reference.value, text))
    return {what: line for what, line in series.items() if line}


def _on_axis(row: Row, column: ColumnResult) -> tuple[float | None, str]:
    """Where a cell stands on the x axis, and what the curve through it is of."""
    if row.x is not None:
        return row.x, column.column.title
    return column.column.x, row.title


def _cells(result: TableResult) -> Iterator[tuple[Row, ColumnResult, Cell]]:
    for row in result.rows:
        for column, cell in zip(result.columns, row.cells, strict=True):
            yield row.row, column, cell


def _over_x(title: str, x_title: str, ours: Series, paper: Series) -> Plot | None:
    frame = _frame([point for line in (*ours.values(), *paper.values()) for point in line])
    if frame is None:
        return None
    several = len({backbone for _, backbone in ours}) > 1
    colours = {what: index for index, what in enumerate(dict.fromkeys([*ours, *paper]), 1)}
    lines = []
    for (what, backbone), line in ours.items():
        name = f"{what}, {backbone}" if several else what
        lines.append(_line(frame, name, line, colours[what, backbone], published=False))
    for (what, backbone), line in paper.items():
        name = f"paper, {backbone}: {what}"
        lines.append(_line(frame, name, line, colours[what, backbone], published=True))
    return Plot(title, x_title, "", frame.x_ticks, frame.y_ticks, lines=tuple(lines))


def _line(frame: Frame, name: str, points: list[Point], colour: int, published: bool) -> Line:
    ordered = sorted(points, key=lambda point: point.x)
    path = frame.path((point.x, point.y) for point in ordered)
    return Line(name, path, tuple(_mark(frame, point) for point in ordered), colour, published)


def costs(results: Sequence[TableResult], records: Mapping[str, Record]) -> list[Plot]:
    """Scores against the device time of the pretraining behind them, per column."""
    plots = []
    for shared in shared_columns(results):
        points = []
        for init, cell in shared.cells.items():
            hours = [_pretraining_hours(seed.run_id, records) for seed in cell.seeds]
            known = [value for value in hours if value is not None]
            if cell.mean is not None and len(known) == len(hours):
                text, run = f"{init}: {wording.score(cell)}", _first(cell)
                points.append(Point(init, fmean(known), cell.mean, text, run, cell.sd))
        unit_of_x = "hours" if any(point.x >= 1 for point in points) else "minutes"
        if unit_of_x == "minutes":
            points = [_scaled(point, 60) for point in points]
        x_title = f"pretraining, device {unit_of_x}"
        plot = _scatter(shared.title, x_title, wording.direction(shared.column), points)
        # One place on the x axis shows no relation.
        if plot and len({point.x for point in points}) > 1:
            plots.append(plot)
    return plots


def tasks(results: Sequence[TableResult]) -> list[Plot]:
    """Mean scores of the inits on one task against another: the first column of each task."""
    first: dict[str, Shared] = {}
    for shared in shared_columns(results):
        if sum(cell.complete for cell in shared.cells.values()) > 1:
            first.setdefault(shared.column.column.task, shared)
    plots = []
    for across, up in combinations(first.values(), 2):
        points = [
            Point(init, x.mean, y.mean, init, _first(y), y.sd, x.sd)
            for init, x in across.cells.items()
            if (y := up.cells.get(init)) and x.mean is not None and y.mean is not None
        ]
        if len(points) > 1:
            title = f"{up.title} against {across.title}"
            plots.append(_scatter(title, across.title, up.title, points))
    return [plot for plot in plots if plot]


def _pretraining_hours(run_id: str | None, records: Mapping[str, Record]) -> float | None:
    """Device hours of all that a run was made from; None where weights came from a file."""
    record = records.get(run_id or "")
    if record is None:
        return None
    total = 0.0
    for weights in record.run.upstream.values():
        made = records.get(weights.run_id or "")
        before = _pretraining_hours(weights.run_id, records)
        if made is None or before is None:
            return None
        total += before + made.provenance.seconds * made.provenance.world_size / HOUR
    return total


def _scaled(point: Point, factor: float) -> Point:
    return Point(point.init, point.x * factor, point.y, point.text, point.run_id, point.sd)


def _scatter(title: str, x_title: str, y_title: str, points: Sequence[Point]) -> Plot | None:
    frame = _frame(points)
    if frame is None:
        return None
    marks = tuple(_mark(frame, point) for point in points)
    return Plot(title, x_title, y_title, frame.x_ticks, frame.y_ticks, marks)


def _frame(points: Sequence[Point]) -> Frame | None:
    if not points:
        return None
    xs = [point.x + sign * (point.x_sd or 0.0) for point in points for sign in (-1, 1)]
    ys = [point.y + sign * (point.sd or 0.0) for point in points for sign in (-1, 1)]
    low, high = spanned(xs)
    room = (high - low) * 0.06
    scale = ticks(min(ys), max(ys))
    return Frame((low - room, high + room), tuple(scale), WIDTH, HEIGHT, bottom=AXIS_TITLE_HEIGHT)


def _mark(frame: Frame, point: Point) -> Mark:
    x, y = frame.at_x(point.x), frame.at_y(point.y)
    whisker = ""
    if point.sd:
        whisker += f"M{x} {frame.at_y(point.y - point.sd)}V{frame.at_y(point.y + point.sd)}"
    if point.x_sd:
        whisker += f"M{frame.at_x(point.x - point.x_sd)} {y}H{frame.at_x(point.x + point.x_sd)}"
    return Mark(point.init, x, y, point.text, point.run_id, whisker)


def _first(cell: Cell) -> str:
    return next((seed.run_id for seed in cell.seeds if seed.run_id), "")
