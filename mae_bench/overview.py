"""What is planned and where it stands: `reproduce --dry-run` and `status`, as text or as JSON."""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, TypeVar

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from mae_bench import claims, cluster
from mae_bench.cost import Cost, Estimates
from mae_bench.plan import Plan, PlannedRun
from mae_bench.progress import headline, loss_text, seconds_text, step_text
from mae_bench.recipes import settings
from mae_bench.records import NO_EFFECT, Record, Run, Strict
from mae_bench.workspace import Workspace

STYLES = {"ok": "green", "running": "cyan", "failed": "red", "blocked": "yellow"}
WORDS = {"ok": "done", "missing": "to do"}
STATES = ("ok", "running", "failed", "blocked", "missing")


class RunView(Strict):
    """A run: what it is and where it stands ("ok", "running", "failed", "blocked", "missing")."""

    id: str
    label: str
    task: str
    dataset: str
    backbone: str
    init: str
    recipe: str
    seed: int
    needs: tuple[str, ...]
    state: str


View = TypeVar("View", bound=RunView)


class PlannedView(RunView):
    """A run and its expected cost."""

    cost: Cost


class Graph(Strict):
    """All that is asked for, dependencies first.

    Attributes:
        to_do: summed cost of the runs that are not done, as far as it is known.
        gaps: cells that the scale cannot have, as "table init: reason".
        absent_data: dataset -> what is wrong; the ids of its runs are not final yet.
    """

    scale: str
    runs: tuple[PlannedView, ...]
    to_do: Cost
    gaps: tuple[str, ...]
    absent_data: dict[str, str]


class Standing(RunView):
    """A run in work: progress, seconds spent, seconds left and the scores, where there are any."""

    note: str
    seconds: float | None = None
    seconds_left: float | None = None
    metrics: dict[str, float] = {}


class TableView(Strict):
    """How many cells of a table are in which state; `absent` ones the scale cannot have."""

    name: str
    cells: dict[str, int]
    absent: int


class Status(Strict):
    """Where everything stands.

    Attributes:
        counts: state -> number of runs.
        seconds_left: until all is done with as many workers as there are now; None if unknown.
        others: finished runs in the work folder that were not asked for last.
        absent_data: dataset -> what is wrong; its runs are not recognised, whatever is done.
    """

    tables: tuple[TableView, ...]
    runs: tuple[Standing, ...]
    counts: dict[str, int]
    seconds_left: float | None
    others: int
    absent_data: dict[str, str] = {}

    @property
    def settled(self) -> bool:
        """Whether nothing will happen any more: all is done, failed or blocked."""
        return not self.counts["running"] and not self.counts["missing"]


def graph(plan: Plan, workspace: Workspace) -> Graph:
    """Return every run in order with its state and expected cost."""
    records = workspace.records()
    states = workspace.states(plan, records)
    estimates = Estimates(records.values(), workspace.runs, plan.extent)
    runs = [
        PlannedView(**_identity(planned, states), cost=estimates.cost(planned.run, plan.scale))
        for planned in plan.runs
    ]
    return Graph(
        scale=plan.scale,
        runs=_told_apart(runs, plan),
        to_do=_sum(view.cost for view in runs if view.state != "ok"),
        gaps=_gaps(plan),
        absent_data=dict(plan.absent_data),
    )


def _told_apart(views: Sequence[View], plan: Plan) -> tuple[View, ...]:
    """Add to the label of a run what tells it from others of the same label."""
    alike: dict[str, list[Run]] = defaultdict(list)
    for planned in plan.runs:
        alike[planned.run.label].append(planned.run)
    labels = {
        run.id: f"{label}{what}"
        for label, group in alike.items()
        if len(group) > 1
        for run, what in zip(group, _differences(group), strict=True)
    }
    return tuple(
        view.model_copy(update={"label": labels[view.id]}) if view.id in labels else view
        for view in views
    )


def _differences(runs: Sequence[Run]) -> list[str]:
    """As few settings as tell runs apart, the backbone first."""
    known = [{"backbone": run.backbone, **dict(settings(run.recipe_values))} for run in runs]
    told = [""] * len(runs)
    for key in dict.fromkeys(key for values in known for key in values):
        if len(set(told)) == len(runs):
            break
        if key.rpartition(".")[2] not in NO_EFFECT:
            finer = [
                f"{so_far}, {key}={values.get(key)}"
                for so_far, values in zip(told, known, strict=True)
            ]
            told = finer if len(set(finer)) > len(set(told)) else told
    return told


def _identity(planned: PlannedRun, states: Mapping[str, str]) -> dict[str, Any]:
    run, run_id = planned.run, planned.run.id
    names = ("task", "dataset", "backbone", "init", "recipe", "seed")
    return {
        "id": run_id,
        "label": run.label,
        **{name: getattr(run, name) for name in names},
        "needs": planned.dependencies,
        "state": states[run_id].partition(":")[0],
    }


def _sum(costs: Iterable[Cost]) -> Cost:
    found = list(costs)
    total: dict[str, float | None] = {}
    for name in ("flops", "seconds", "gpu_hours", "core_hours", "disk_bytes"):
        known = [value for cost in found if (value := getattr(cost, name)) is not None]
        total[name] = sum(known) if known else None
    peaks = [cost.peak_disk_bytes for cost in found if cost.peak_disk_bytes is not None]
    sources = dict.fromkeys(cost.source for cost in found)
    # Runs come one after the other: of what is there only for a while, the largest counts.
    return Cost.model_validate({
        **total,
        "peak_disk_bytes": max(peaks, default=None),
        "source": "; ".join(sources),
    })


def _gaps(plan: Plan) -> tuple[str, ...]:
    gaps = {
        f"{key.table} {key.init}: {cell.reason}"
        for key, cell in plan.cells.items()
        if cell.run_id is None
    }
    return (*sorted(gaps), *plan.absent_tables.values())


def render_graph(view: Graph) -> RenderableType:
    """Return a graph for people."""
    grid = _grid("run", "what", "needs", "state", "FLOPs", "device time", "disk")
    for run in view.runs:
        grid.add_row(
            run.id,
            Text(run.label),
            " ".join(run.needs),
            Text(WORDS.get(run.state, run.state), style=STYLES.get(run.state, "")),
            _si(run.cost.flops),
            _device_time(run.cost),
            f"{_si(run.cost.disk_bytes)}B",
        )
    number, cost = sum(run.state != "ok" for run in view.runs), view.to_do
    lines = [f"{_count(len(view.runs))}, {number} to do"]
    if number:
        lines[0] += (
            f": {_si(cost.flops)}FLOPs, {_device_time(cost)}, {_si(cost.disk_bytes)}B of disk; up "
            f"to {_si(cost.peak_disk_bytes)}B for each run while it goes on"
        )
        lines.append(f"device time: {cost.source}; FLOPs: training, by formula")
    notes = [Text(line, style="dim") for line in (*lines[1:], *view.gaps)]
    return Group(grid, Text(lines[0]), *notes, *_absent(view.absent_data))


def _absent(data: Mapping[str, str]) -> list[Text]:
    return [Text(f"data: {why}", style="red") for why in data.values()]


def _device_time(cost: Cost) -> str:
    """ "1 min 16 s core", "2690 h GPU", or both."""
    parts = {"GPU": cost.gpu_hours, "core": cost.core_hours}
    known = {name: hours for name, hours in parts.items() if hours is not None}
    texts = [
        f"{hours:.0f} h {name}" if hours >= 100 else f"{seconds_text(3600 * hours)} {name}"
        for name, hours in known.items()
    ]
    return " + ".join(texts) or "?"


def _si(value: float | None) -> str:
    """ "1.3 T": three digits and a prefix, for a unit to follow."""
    if value is None:
        return "? "
    for prefix in ("", "k", "M", "G", "T", "P", "E", "Z"):
        if value < 1000 or prefix == "Z":
            return f"{value:.3g} {prefix}"
        value /= 1000
    raise AssertionError


def status(plan: Plan, workspace: Workspace) -> Status:
    """Return where a plan's tables and runs stand."""
    records = workspace.records()
    states, estimates = workspace.states(plan, records), Estimates(records.values())
    missing = (run_id for run_id, state in states.items() if state == "missing")
    queued = cluster.describe(workspace.root, {one: workspace.folder(one) for one in missing})
    runs = [
        _standing(planned, states, workspace, records, estimates, queued) for planned in plan.runs
    ]
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    tables = tuple(_table(table.name, plan, states) for table in plan.tables)
    others = len(records.keys() - states.keys())
    left = _left(plan, runs, estimates)
    return Status(
        tables=tables,
        runs=_told_apart(runs, plan),
        counts=counts,
        seconds_left=left,
        others=others,
        absent_data=dict(plan.absent_data),
    )


def _standing(
    planned: PlannedRun,
    states: Mapping[str, str],
    workspace: Workspace,
    records: Mapping[str, Record],
    estimates: Estimates,
    queued: Mapping[str, str],
) -> Standing:
    identity = _identity(planned, states)
    run, state = planned.run, identity["state"]
    record = records.get(str(identity["id"]))
    if state in {"ok", "failed"} and record:
        metrics = record.outcome.metrics if record.outcome else {}
        return Standing(
            **identity,
            note=headline(record),
            seconds=record.provenance.seconds,
            metrics={name: metric.value for name, metric in metrics.items()},
        )
    report = workspace.progress(run.id)
    if state == "running":
        elapsed = time.time() - workspace.since(run.id)
        left = estimates.left(run, elapsed, report)
        note = f"{step_text(report)} {loss_text(report)} {_elsewhere(workspace, run.id)}".strip()
        return Standing(**identity, note=note, seconds=elapsed, seconds_left=left)
    if state == "blocked":
        return Standing(**identity, note="needs a run that failed")
    note = f"interrupted at {step_text(report)}; will continue" if report else ""
    return Standing(**identity, note=queued.get(run.id, note), seconds_left=estimates.of(run))


def _elsewhere(workspace: Workspace, run_id: str) -> str:
    """Which machine has a run, if it is another one."""
    claim = claims.current(workspace.folder(run_id))
    return f"on {claim.holder.host}" if claim and claim.holder.host != platform.node() else ""


def _left(plan: Plan, runs: Iterable[Standing], estimates: Estimates) -> float | None:
    """Seconds until all is done; what is not known counts as the mean of what is."""
    going = [run for run in runs if run.state == "running"]
    waiting = [run for run in runs if run.state == "missing"]
    if not going and not waiting:
        return 0.0
    known = [run.seconds_left for run in going + waiting if run.seconds_left is not None]
    if not known:
        return None
    work = sum(known) + fmean(known) * (len(going) + len(waiting) - len(known))
    return max(work / max(len(going), 1), max(known))


def _table(name: str, plan: Plan, states: Mapping[str, str]) -> TableView:
    cells = [cell for key, cell in plan.cells.items() if key.table == name]
    found = [states[cell.run_id].partition(":")[0] for cell in cells if cell.run_id]
    counts = {state: found.count(state) for state in STATES}
    return TableView(name=name, cells=counts, absent=len(cells) - len(found))


def render_status(view: Status, height: int | None = None) -> RenderableType:
    """Return a status for people.

    Args:
        height: lines that there are; the runs that matter most now are shown. None for all.
    """
    tables = _grid("table", *(WORDS.get(state, state) for state in STATES), "not at this scale")
    for table in view.tables:
        tables.add_row(table.name, *map(str, table.cells.values()), str(table.absent))
    shown = list(view.runs)
    if height is not None:
        # Head and foot of both grids, their rows, the lines below.
        room = max(height - len(view.tables) - 10, 3)
        urgency = ["running", "failed", "missing", "blocked", "ok"]
        order = sorted(range(len(shown)), key=lambda i: urgency.index(shown[i].state))
        shown = [shown[index] for index in sorted(order[:room])]
    runs = _grid("run", "what", "state", "time", "left", "where it stands")
    for run in shown:
        seconds = seconds_text(run.seconds) if run.seconds is not None else ""
        unfinished = run.state in {"running", "missing"}
        left = seconds_text(run.seconds_left) if unfinished else ""
        state = Text(WORDS.get(run.state, run.state), style=STYLES.get(run.state, ""))
        runs.add_row(run.id, Text(run.label), state, seconds, left, Text(run.note))
    return Group(tables, runs, *_foot(view, len(view.runs) - len(shown)))


def _foot(view: Status, hidden: int) -> list[Text]:
    counts = [
        f"{number} {WORDS.get(state, state)}" for state, number in view.counts.items() if number
    ]
    line = f"{_count(len(view.runs))}: {', '.join(counts)}"
    if not view.settled:
        line += f"; about {seconds_text(view.seconds_left)} left"
    lines = [Text(line, style="bold")]
    if hidden:
        lines.append(Text(f"{_count(hidden)} not shown", style="dim"))
    if view.others:
        lines.append(Text(f"{view.others} more finished here, not asked for last", style="dim"))
    return lines + _absent(view.absent_data)


def _grid(*headers: str) -> Grid:
    return Grid(*headers, box=box.SIMPLE_HEAD, pad_edge=False)


def _count(number: int) -> str:
    return f"{number} run{'s' if number != 1 else ''}"
