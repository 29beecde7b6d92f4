"""figures/: what the page draws, by matplotlib, for papers and slides: PNG, SVG or PDF.

Bars of the scores that tables share, and tables with an axis as curves, in colours that the
colour-blind tell apart (Okabe and Ito) and in shapes that differ, too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mae_bench.aggregate import TableResult
from mae_bench.records import Record
from mae_bench.report import wording
from mae_bench.report.charts import Shared, shared_columns
from mae_bench.report.plots import Point, Series, published_series, series_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = "osD^vPX"
PAPER_COLOUR = "#777777"
WIDTH, DPI = 5.0, 200
BAR_HEIGHT, FRAME_HEIGHT, CURVE_HEIGHT = 0.32, 1.1, 3.2
# Names come from users: no formulas in them, text stays text, and the same numbers make the same
# file.
STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mae-bench",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
UNDATED: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


def render(
    results: Sequence[TableResult], records: Mapping[str, Record], form: str
) -> dict[str, bytes]:
    """Return file name -> content, one figure each.

    Args:
        records: not drawn.
        form: "png", "svg" or "pdf".
    """
    del records
    import matplotlib

    files: dict[str, bytes] = {}
    with matplotlib.rc_context(STYLE):
        for name, figure in _figures(results):
            content = io.BytesIO()
            figure.savefig(
                content, format=form, dpi=DPI, bbox_inches="tight", metadata=UNDATED[form]
            )
            files[f"{name}.{form}"] = content.getvalue()
    return files


def _figures(results: Sequence[TableResult]) -> Iterator[tuple[str, Figure]]:
    for number, shared in enumerate(shared_columns(results), 1):
        if any(cell.values for cell in shared.cells.values()):
            yield f"bars-{number:02d}-{_slug(shared.title)}", _bars(shared)
    for result in results:
        ours = series_of(result)
        if result.table.x_title and ours:
            yield f"{result.table.name}-{result.scale}", _curves(result, ours)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "figure"


def _axes(height: float, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots()
    axes.set_title(wording.shorten(title), loc="left", fontweight="bold")
    return figure, axes


def _bars(shared: Shared) -> Figure:
    cells = {init: cell for init, cell in shared.cells.items() if cell.values}
    figure, axes = _axes(BAR_HEIGHT * len(cells) + FRAME_HEIGHT, shared.title)
    for place, cell in enumerate(cells.values()):
        if cell.mean is not None:
            axes.barh(place, cell.mean, height=0.62, color=COLOURS[0], alpha=0.35)
            axes.errorbar(cell.mean, place, xerr=cell.sd, color=COLOURS[0], capsize=3)
        axes.plot(cell.values, [place] * len(cell.values), "o", ms=3, color=COLOURS[0])
    labels = [f"{wording.shorten(init)}  {wording.score(cell)}" for init, cell in cells.items()]
    axes.set_yticks(range(len(cells)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(wording.shorten(wording.direction(shared.column)))
    return figure


def _curves(result: TableResult, ours: Series) -> Figure:
    figure, axes = _axes(CURVE_HEIGHT, wording.title(result))
    handles, names = [], []
    several = len({backbone for _, backbone in ours}) > 1
    for number, ((title, backbone), points) in enumerate(ours.items()):
        colour = COLOURS[number % len(COLOURS)]
        marker = MARKERS[number % len(MARKERS)]
        handles.append(_curve(axes, points, colour, f"-{marker}"))
        names.append(wording.shorten(f"{title}, {backbone}" if several else title))
    if result.scale == "paper":
        for (title, backbone), points in published_series(result).items():
            handles.append(_curve(axes, points, PAPER_COLOUR, "--"))
            names.append(wording.shorten(f"paper, {backbone}: {title}"))
    axes.set_xlabel(wording.shorten(result.table.x_title or ""))
    axes.set_ylabel(wording.shorten(wording.direction(result.columns[0])))
    axes.legend(handles, names, frameon=False, fontsize=7)
    return figure


def _curve(axes: Axes, points: Sequence[Point], colour: str, line: str) -> Any:
    ordered = sorted(points, key=lambda point: point.x)
    spread = [point.sd or 0.0 for point in ordered]
    return axes.errorbar(
        [point.x for point in ordered],
        [point.y for point in ordered],
        yerr=spread if any(spread) else None,
        fmt=line,
        color=colour,
        ms=4,
        capsize=2,
    )
