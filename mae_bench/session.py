"""From a request to its tables: what is missing is run, what is there is shown."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mae_bench import overview, placing
from mae_bench.aggregate import TableResult, aggregate
from mae_bench.collection import collect, read_source
from mae_bench.errors import UserError
from mae_bench.grouping import grouped
from mae_bench.launch import Launch
from mae_bench.plan import Plan
from mae_bench.progress import make_board, make_console
from mae_bench.records import Record, Run
from mae_bench.report import terminal, write_report
from mae_bench.report.wording import printable
from mae_bench.request import Request
from mae_bench.workspace import Workspace, require_space


@dataclass(frozen=True)
class Options:
    """How to go about it; none of this changes a number.

    Attributes:
        launch: where runs are executed.
        out: folder of the report; None for none.
        command: as typed, for the records.
        retry_failed: have runs that failed before done again.
    """

    work_dir: Path
    launch: Launch
    force: bool
    out: Path | None
    command: str
    retry_failed: bool = False


def dry_run(request: Request, options: Options, as_json: bool = False) -> bool:
    """Print the graph of runs."""
    workspace = Workspace(options.work_dir)
    workspace.check()
    graph = overview.graph(request.plan(), workspace)
    if as_json:
        print(graph.model_dump_json(indent=1))
    else:
        make_console().print(overview.render_graph(graph))
    return True


def run(request: Request, options: Options) -> bool:
    """Run what is missing, print the tables, write the report.

    Returns:
        whether everything that this scale can have is there.

    Raises:
        UserError: bad input; said before any training.
    """
    plan, workspace = request.plan(), Workspace(options.work_dir)
    plan.check_data()
    workspace.check()
    ids = [planned.run.id for planned in plan.runs]
    records = workspace.records(ids)
    states = workspace.states(plan, records)
    missing = any(state != "ok" for state in states.values())
    if missing or options.force:
        options.launch.require()
        wanted = [p.run for p in plan.runs if options.force or states[p.run.id] != "ok"]
        _check_weights(wanted)
        _check_data(wanted, request)
    if missing or options.force or not workspace.root.exists():
        _make_room(request, options)
    request.save(workspace)
    if options.force:
        workspace.forget(ids)
    elif options.retry_failed:
        workspace.forgive(ids)
    console = make_console()
    if missing or options.force:
        for line in _train(request, plan, options):
            console.print(Text(line), soft_wrap=True)
        if options.launch.detach:
            return True
        records = workspace.records(ids)
        states = workspace.states(plan, records)
    if plan.asked:
        return _show_runs(plan, workspace, records, states, console)
    results = aggregate(plan.tables, plan.scale, plan.cells, records, states)
    console.print(terminal.render(results))
    if options.out:
        pages = write_report(results, records, options.out, work_dir=options.work_dir)
        console.print(Text(f"report: {pages[0]}"))
    _show_failures(workspace, records, states, console)
    return all(_is_there(result) for result in results)


def report(request: Request, workspace: Workspace, out: Path, formats: Iterable[str]) -> list[Path]:
    """Write the report as far as its runs are there; returns the files."""
    plan = request.plan()
    if not plan.tables:
        raise UserError(
            f"the last request in {workspace.root} was a single run, which has no table; "
            "run `mae-bench reproduce TABLE` first"
        )
    records = workspace.records(planned.run.id for planned in plan.runs)
    states = workspace.states(plan, records)
    results = aggregate(plan.tables, plan.scale, plan.cells, records, states)
    return write_report(results, records, out, formats, work_dir=workspace.root)


def report_grouped(
    workspace: Workspace, out: Path, formats: Iterable[str], by: Sequence[str]
) -> list[Path]:
    """Print and write tables of everything in a work folder; see `grouping.grouped`."""
    workspace.check()
    records = workspace.records()
    results = grouped(records, by)
    make_console().print(terminal.render(results))
    return write_report(results, records, out, formats, work_dir=workspace.root)


def report_merged(
    places: Sequence[Path], out: Path, formats: Iterable[str], by: Sequence[str] | None
) -> tuple[bool, list[Path]]:
    """Print and write tables of several places together; see `collection` and `placing`.

    Returns:
        whether no two places tell different numbers of one run, and the files.
    """
    found = collect(read_source(place) for place in places)
    results = placing.place(found) if by is None else grouped(found.undisputed, by)
    console = make_console()
    console.print(terminal.render(results))
    for conflict in found.conflicts:
        console.print(Text(f"conflict: {printable(str(conflict))}", style="red"), soft_wrap=True)
    for label in placing.left_out(found.records):
        console.print(Text(printable(f"left out, other data: {label}")), soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:  # one work folder out of several
        (Path(folder) / "runs").mkdir()
        for run_id, place in found.folders.items():
            (Path(folder) / "runs" / run_id).symlink_to(place.absolute())
        pages = write_report(results, found.undisputed, out, formats, work_dir=Path(folder))
    return not found.conflicts, pages


def _check_weights(runs: Iterable[Run]) -> None:
    """Refuse files of weights that fit none of the backbones that are to start from them."""
    files: dict[tuple[str, str | None], dict[str, None]] = {}
    for run in runs:
        weights = run.upstream.get("backbone")
        if weights and weights.checkpoint:
            files.setdefault((weights.checkpoint, weights.format), {})[run.backbone] = None
    if files:
        from backbones.checkpoints import check_fits  # and torch with it

        for (path, format), names in files.items():
            check_fits(path, format, names)


def _check_data(runs: Iterable[Run], request: Request) -> None:
    """Refuse datasets with faults that show without reading images."""
    from tasks.data.verify import check

    for dataset, task in dict.fromkeys((run.dataset, run.task) for run in runs):
        check(dataset, request.data_root, task, subset=request.smoke)


def _make_room(request: Request, options: Options) -> None:
    Workspace(options.work_dir).create()
    require_space(request.data_root, "--data-root")
    if options.out:
        require_space(options.out, "--out")


def _train(request: Request, plan: Plan, options: Options) -> list[str]:
    from mae_bench.runner import Site

    workspace = Workspace(options.work_dir)
    done = [run_id for run_id, state in workspace.states(plan).items() if state == "ok"]
    site = Site(options.work_dir.absolute(), request.data_root, options.command)
    board = make_board(plan, workspace, done, options.launch.width(), make_console())
    seconds = {run.run.id: board.estimates.of(run.run) or 1.0 for run in plan.runs}
    peaks = {run.run.id: board.estimates.gpu_memory_mb(run.run) for run in plan.runs}
    memory = {run_id: peak for run_id, peak in peaks.items() if peak is not None}
    with board:
        return options.launch.execute(plan, site, board, done, seconds, memory)


def _is_there(result: TableResult) -> bool:
    cells = [cell for row in result.rows for cell in row.cells if cell.seeds]
    return all(cell.complete or cell.not_available for cell in cells)


def _show_runs(
    plan: Plan,
    workspace: Workspace,
    records: dict[str, Record],
    states: dict[str, str],
    console: Console,
) -> bool:
    good = True
    for run_id in plan.asked:
        record = records.get(run_id)
        good = good and record is not None and record.status == "ok"
        if record is None or record.outcome is None:
            continue
        console.print(Text(record.run.label, style="bold"))
        for name, metric in record.outcome.metrics.items():
            console.print(Text(f"  {name} {metric.value:.2f} {metric.unit}"))
        if record.outcome.checkpoint:
            console.print(Text(f"  {workspace.folder(run_id) / record.outcome.checkpoint}"))
    _show_failures(workspace, records, states, console)
    return good


def _show_failures(
    workspace: Workspace, records: dict[str, Record], states: dict[str, str], console: Console
) -> None:
    for run_id, state in states.items():
        if state.startswith("failed"):
            label = records[run_id].run.label
            log = workspace.folder(run_id) / "log.txt"
            console.print(Text(f"{label}: {state}; see {log}", style="red"), soft_wrap=True)
