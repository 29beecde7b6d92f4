"""What is planned and where it stands, for `reproduce --dry-run` and `status`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from mae_bench.plan import Plan, PlannedRun
from mae_bench.progress import Estimates, headline, loss_text, seconds_text, step_text
from mae_bench.records import Record
from mae_bench.workspace import Workspace

STYLES = {"ok": "green", "running": "cyan", "failed": "red", "blocked": "yellow"}


def graph(plan: Plan, workspace: Workspace) -> RenderableType:
    """Every run in order: id, label, what it needs, its state, its expected seconds."""
    records = workspace.records()
    states, estimates = workspace.states(plan, records), Estimates(records.values())
    grid = _grid("run", "what", "needs", "state", "seconds")
    todo: list[float | None] = []
    for planned in plan.runs:
        run, state = planned.run, states[planned.run.id].partition(":")[0]
        expected = estimates.of(run)
        if state != "ok":
            todo.append(expected)
        grid.add_row(
            run.id,
            Text(run.label),
            " ".join(planned.dependencies),
            Text("done" if state == "ok" else "todo"),
            "" if expected is None else f"{expected:.0f}",
        )
    return Group(grid, Text(f"{_count(plan.runs)}, {len(todo)} to do{_total(todo)}"), *_gaps(plan))


def _total(todo: Iterable[float | None]) -> str:
    seconds = [expected for expected in todo if expected is not None]
    return f", {seconds_text(sum(seconds))} of work in those measured before" if seconds else ""


def _gaps(plan: Plan) -> list[Text]:
    gaps = {
        (key.table, key.init, cell.reason)
        for key, cell in plan.cells.items()
        if cell.run_id is None
    }
    return [Text(f"{table} {init}: {reason}", style="dim") for table, init, reason in sorted(gaps)]


def status(plan: Plan, workspace: Workspace) -> RenderableType:
    """Cells per table, then a line for each run that is not simply waiting."""
    records = workspace.records()
    states = workspace.states(plan, records)
    runs = _grid("run", "what", "state", "where it stands")
    for planned in plan.runs:
        state = states[planned.run.id].partition(":")[0]
        where = _where(planned, state, workspace, records)
        runs.add_row(planned.run.id, Text(planned.run.label), _word(state), where)
    others = records.keys() - states.keys()
    note = [Text(f"{len(others)} more finished in {workspace.root}, not asked for last")]
    return Group(_tables(plan, states), runs, *(note if others else []))


def _where(
    planned: PlannedRun, state: str, workspace: Workspace, records: Mapping[str, Record]
) -> Text:
    run = planned.run
    if state in {"ok", "failed"}:
        record = records[run.id]
        return Text(f"{headline(record)}  {seconds_text(record.provenance.seconds)}")
    if state == "running":
        elapsed = time.time() - workspace.since(run.id)
        report = workspace.progress(run.id)
        left = Estimates(records.values()).left(run, elapsed, report)
        return Text(f"{step_text(report)} {loss_text(report)} {seconds_text(left)} left")
    if state == "blocked":
        return Text("needs a run that failed")
    report = workspace.progress(run.id)
    return Text(f"interrupted at {step_text(report)}; will continue" if report else "")


def _tables(plan: Plan, states: Mapping[str, str]) -> Grid:
    words = ("ok", "running", "failed", "blocked", "missing")
    grid = _grid("table", *words, "not at this scale")
    for table in plan.tables:
        cells = [cell for key, cell in plan.cells.items() if key.table == table.name]
        found = [states[cell.run_id].partition(":")[0] for cell in cells if cell.run_id]
        counts = [str(found.count(word)) for word in words]
        grid.add_row(table.name, *counts, str(len(cells) - len(found)))
    return grid


def _grid(*headers: str) -> Grid:
    return Grid(*headers, box=box.SIMPLE_HEAD, pad_edge=False)


def _word(state: str) -> Text:
    return Text("done" if state == "ok" else state, style=STYLES.get(state, ""))


def _count(runs: Iterable[PlannedRun]) -> str:
    number = len(list(runs))
    return f"{number} run{'s' if number != 1 else ''}"
