"""Where the marks of a chart lie; the page's template draws them as inline SVG.

Drawn by the page itself rather than by matplotlib, so that colours follow the reader's light or
dark setting, text stays text, and printing tables waits for no import. Coordinates are SVG user
units, origin top left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mae_bench.aggregate import Cell, ColumnResult, TableResult
from mae_bench.report import wording

WIDTH, BAR_STEP, AXIS_HEIGHT = 360.0, 42.0, 24.0
LABEL_HEIGHT = 19.0
RIGHT_MARGIN = 12.0
CURVE_WIDTH, CURVE_HEIGHT = 560.0, 190.0
CURVE_LEFT, CURVE_RIGHT, CURVE_TOP, CURVE_BOTTOM = 52.0, 12.0, 10.0, 26.0
MOST_CURVE_POINTS = 240
NICE_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


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
    height: float
    ticks: tuple[Tick, ...]
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Curve:
    """A learning curve: an SVG path, its last point and its axes."""

    name: str
    path: str
    end: tuple[float, float]
    last: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def panels(results: Sequence[TableResult]) -> list[Panel]:
    """One panel per metric and setting; columns that tables share are drawn once.

    Inits stand in the same order, under their own names, in every panel.
    """
    order = list(dict.fromkeys(row.row.init for result in results for row in result.rows))
    found: dict[tuple[str, ...], tuple[str, ColumnResult, dict[str, Cell]]] = {}
    for result in results:
        for index, column in enumerate(result.columns):
            if column.setting is None:
                continue
            where = (column.setting.dataset, column.setting.recipe)
            key = (*where, column.backbone, column.column.metric)
            title = f"{wording.group(result, column)}, {column.column.title}"
            cells = found.setdefault(key, (title, column, {}))[2]
            for row in result.rows:
                if row.cells[index].values:
                    cells.setdefault(row.row.init, row.cells[index])
    return [
        _panel(title, column, {init: cells[init] for init in order if init in cells})
        for title, column, cells in found.values()
        if cells
    ]


def _panel(title: str, column: ColumnResult, cells: Mapping[str, Cell]) -> Panel:
    reach = [value for cell in cells.values() for value in _reach(cell)]
    scale = ticks(min(0.0, *reach), max(0.0, *reach))
    low, high = scale[0], scale[-1]

    def place(value: float) -> float:
        return round((value - low) / (high - low) * (WIDTH - RIGHT_MARGIN), 2)

    bars = tuple(
        _bar(init, cell, index * BAR_STEP + LABEL_HEIGHT, place)
        for index, (init, cell) in enumerate(cells.items())
    )
    direction = "higher is better" if column.higher_is_better else "lower is better"
    return Panel(
        title=title,
        subtitle=f"{column.unit}, {direction}" if column.unit else direction,
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


def curve(points: Sequence[Mapping[str, object]]) -> Curve | None:
    """Lay out a run's learning curve.

    Args:
        points: lines of metrics.jsonl. A resumed run repeats steps: the last line of a step
            counts. "loss" is drawn if there, otherwise the first scalar; what is not finite is
            left out.

    Returns:
        None for fewer than two points.
    """
    name = _curve_name(points)
    values: dict[int, float] = {}
    for point in points:
        step, value = point.get("step"), point.get(name)
        if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value):
            values[step] = float(value)
    if len(values) < 2:
        return None
    return _layout(name, sorted(values.items()))


def _curve_name(points: Sequence[Mapping[str, object]]) -> str:
    names = dict.fromkeys(name for point in points for name in point if name != "step")
    return "loss" if "loss" in names else next(iter(names), "")


def _layout(name: str, points: Sequence[tuple[int, float]]) -> Curve:
    last = points[-1]
    # Thinning must not lose the last point: it is the one with a label.
    points = [*points[: -1 : math.ceil(len(points) / MOST_CURVE_POINTS)], last]
    first_step, last_step = points[0][0], points[-1][0]
    y_scale = ticks(min(value for _, value in points), max(value for _, value in points))
    width = CURVE_WIDTH - CURVE_LEFT - CURVE_RIGHT
    height = CURVE_HEIGHT - CURVE_TOP - CURVE_BOTTOM

    def x(step: float) -> float:
        return round(CURVE_LEFT + (step - first_step) / (last_step - first_step) * width, 1)

    def y(value: float) -> float:
        share = (value - y_scale[0]) / (y_scale[-1] - y_scale[0])
        return round(CURVE_TOP + (1 - share) * height, 1)

    x_scale = [value for value in ticks(first_step, last_step) if first_step <= value <= last_step]
    return Curve(
        name=name,
        path="M" + "L".join(f"{x(step)} {y(value)}" for step, value in points),
        end=(x(last[0]), y(last[1])),
        last=f"{last[1]:.4g}",
        x_ticks=tuple(Tick(x(value), f"{value:g}") for value in x_scale),
        y_ticks=tuple(Tick(y(value), f"{value:g}") for value in y_scale),
    )


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round, evenly spaced values that cover [low, high]; at most `most` steps."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    magnitude = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(
        nice * magnitude
        for nice in (*NICE_STEPS, 20.0)
        if math.ceil(high / (nice * magnitude)) - math.floor(low / (nice * magnitude)) <= most
    )
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]
