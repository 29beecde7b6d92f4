"""Learning curves: a run's own, and those of all inits over each other."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_bench.records import Record
from mae_bench.report.axes import Frame, Tick, spanned, ticks
from mae_bench.report.plots import AXIS_TITLE_HEIGHT, HEIGHT, WIDTH, Line, Plot

CURVE_WIDTH, CURVE_HEIGHT = 560.0, 190.0
MOST_CURVE_POINTS, MOST_SHARED_POINTS = 240, 100
# Scores that a task takes of its validation images while it trains, among its facts.
VALIDATION = "validation_"
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A learning curve: an SVG path, its last point, its axes; `reference` is a path to compare."""

    name: str
    path: str
    end: tuple[float, float]
    last: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    reference: str = ""


def curve(points: Sequence[Mapping[str, object]]) -> Curve | None:
    """Lay out a run's learning curve.

    Args:
        points: lines of metrics.jsonl. A resumed run repeats steps: the last line of a step
            counts. "loss" is drawn if there, otherwise the first scalar; what is not finite is
            left out.

    Returns:
        None for fewer than two points.
    """
    name, values = _scalars(points)
    return _curve(name, values)


def validation_curve(record: Record) -> Curve | None:
    """Scores while training beside the recipe's reference curve; None where a run took none."""
    name, scores, reference = _validation(record)
    return _curve(name, scores, reference)


def learning(records: Iterable[Record], folder: Path, colours: Mapping[str, int]) -> list[Plot]:
    """Learning curves of the inits over each other, per setting, of each one's first seed.

    Scores on validation images where a task takes them, with its recipe's reference; else the
    loss.

    Args:
        folder: holds a folder per run id.
        colours: init -> number of its colour.
    """
    first: dict[tuple[str, ...], dict[str, Record]] = {}
    for record in records:
        run = record.run
        place = (run.task, run.dataset, run.recipe, run.backbone)
        first.setdefault(place, {}).setdefault(run.init, record)
    found = (_over_steps(place, runs, folder, colours) for place, runs in first.items())
    return [plot for plot in found if plot]


def _over_steps(
    place: tuple[str, ...], runs: Mapping[str, Record], folder: Path, colours: Mapping[str, int]
) -> Plot | None:
    name = ""
    reference: Points = ()
    curves: dict[str, Points] = {}
    for init, record in runs.items():
        measured, points, against = _validation(record)
        if len(points) < 2:
            measured, points = _scalars(metrics_lines(folder / record.id / "metrics.jsonl"))
        if len(points) > 1 and measured == (name or measured):
            name, reference, curves[init] = measured, against, _thinned(points, MOST_SHARED_POINTS)
    if len(curves) < 2:
        return None
    every = [point for points in [*curves.values(), reference] for point in points]
    scale = tuple(ticks(min(y for _, y in every), max(y for _, y in every)))
    frame = Frame(spanned(x for x, _ in every), scale, WIDTH, HEIGHT, bottom=AXIS_TITLE_HEIGHT)
    lines = [
        Line(init, frame.path(points), (), colours.get(init, 0)) for init, points in curves.items()
    ]
    if len(reference) > 1:
        lines.append(Line("reference of the recipe", frame.path(reference), (), 0, True))
    task, dataset, recipe, backbone = place
    title, y_title = f"{task} on {dataset}", f"{name}; {recipe}, {backbone}"
    return Plot(title, "step", y_title, frame.x_ticks, frame.y_ticks, lines=tuple(lines))


def metrics_lines(path: Path) -> list[dict[str, Any]]:
    """The learning curve's points; a line that a killed run left half-written is passed over."""
    points = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            point = json.loads(line)
        except ValueError:
            continue
        if isinstance(point, dict):
            points.append(point)
    return points


def _scalars(points: Sequence[Mapping[str, object]]) -> tuple[str, Points]:
    """ "loss", or else the first scalar, over the steps."""
    names = dict.fromkeys(name for point in points for name in point if name != "step")
    name = "loss" if "loss" in names else next(iter(names), "")
    values: dict[float, float] = {}
    for point in points:
        step, value = point.get("step"), point.get(name)
        if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value):
            values[step] = float(value)
    return name, sorted(values.items())


def _validation(record: Record) -> tuple[str, Points, Points]:
    """Name and scores of what a task measured on the way, and the recipe's reference for it."""
    facts = record.outcome.facts if record.outcome else {}
    section = record.run.recipe_values.get("reference")
    reference = section.get("curve") if isinstance(section, Mapping) else None
    for name, scores in facts.items():
        if name.startswith(VALIDATION) and isinstance(scores, Mapping):
            against = sorted(_pairs(reference or ()))
            return name.removeprefix(VALIDATION), sorted(_pairs(scores.items())), against
    return "", [], []


def _thinned(points: Points, most: int) -> Points:
    """Fewer points, among them the last."""
    return [*points[: -1 : math.ceil(len(points) / most)], points[-1]]


def _pairs(items: Iterable[Any]) -> Iterator[tuple[float, float]]:
    """Step and score of what can be read as such."""
    for item in items:
        try:
            step, score = map(float, item)
        except (TypeError, ValueError):
            continue
        if math.isfinite(step) and math.isfinite(score):
            yield step, score


def _curve(name: str, points: Points, reference: Points = ()) -> Curve | None:
    if len(points) < 2:
        return None
    last = points[-1]
    # Thinning must not lose the last point: it is the one with a label.
    points = _thinned(points, MOST_CURVE_POINTS)
    both = [*points, *reference]
    scale = ticks(min(y for _, y in both), max(y for _, y in both))
    frame = Frame(spanned(x for x, _ in both), tuple(scale), CURVE_WIDTH, CURVE_HEIGHT)
    return Curve(
        name=name,
        path=frame.path(points),
        end=(frame.at_x(last[0]), frame.at_y(last[1])),
        last=f"{last[1]:.4g}",
        x_ticks=frame.x_ticks,
        y_ticks=frame.y_ticks,
        reference=frame.path(reference) if len(reference) > 1 else "",
    )
