"""What in a work folder no table needs any more, and why; shown first, removed when told to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import get_args

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from mae_bench.cost import folder_bytes
from mae_bench.errors import UserError, unknown
from mae_bench.plan import TABLES, Plan, load_tables, make_plan
from mae_bench.recipes import settings
from mae_bench.records import Run, Scale, Strict
from mae_bench.request import Request
from mae_bench.workspace import Workspace

FIELDS = ("id", "task", "dataset", "backbone", "init", "recipe", "seed")
NUM_SETTINGS_SHOWN = 3


class Leftover(Strict):
    """A run's folder that can go."""

    id: str
    label: str
    reason: str
    bytes: int


def leftovers(request: Request, workspace: Workspace, keep: Sequence[str] = ()) -> list[Leftover]:
    """Return the runs that neither a table in its own settings nor the last request needs.

    Seeds are those that were ever run. Left alone are runs that are being worked on, folders that
    say nothing readable, and runs of recipes whose data is not here now: nobody can tell which of
    them count.

    Args:
        keep: filters FIELD=GLOB over `FIELDS`; what passes one of them stays.

    Raises:
        UserError: a filter of another form, or over an unknown field.
    """
    filters = [_parse(expression) for expression in keep]
    found = dict(_runs(workspace))
    plans = [request.plan(), *_all_tables(request, {run.seed for run in found.values()})]
    needed = {planned.run.id: planned.run for plan in plans for planned in plan.runs}
    doubtful = {planned.run.recipe for plan in plans if plan.absent_data for planned in plan.runs}
    return [
        Leftover(
            id=run_id,
            label=run.label,
            reason=_reason(run, needed.values()),
            bytes=folder_bytes(workspace.folder(run_id)),
        )
        for run_id, run in found.items()
        if run_id not in needed
        and run.recipe not in doubtful
        and not any(fnmatchcase(_field(run_id, run, name), glob) for name, glob in filters)
        and not workspace.is_claimed(run_id)
    ]


def _parse(expression: str) -> tuple[str, str]:
    name, equals, glob = expression.partition("=")
    if not equals:
        raise UserError(f"--keep {expression!r} is not of the form FIELD=GLOB, e.g. init=mine*")
    if name not in FIELDS:
        raise unknown("field in --keep", name, FIELDS)
    return name, glob


def _field(run_id: str, run: Run, name: str) -> str:
    return run_id if name == "id" else str(getattr(run, name))


def _runs(workspace: Workspace) -> Iterable[tuple[str, Run]]:
    for run_id in workspace.run_ids():
        try:
            yield run_id, workspace.run(run_id)
        except (OSError, ValueError, KeyError):
            continue


def _all_tables(request: Request, seeds: set[int]) -> list[Plan]:
    tables, order = load_tables(TABLES), sorted(seeds | set(request.seeds))
    return [
        make_plan(having, scale, order, request.data_root)
        for scale in get_args(Scale)
        if (having := [t for t in tables if any(scale in c.scales for c in t.columns)])
    ]


def _reason(run: Run, needed: Iterable[Run]) -> str:
    """Say what sets a run apart from the needed one that it was once meant to be."""

    def name(other: Run) -> tuple[object, ...]:
        return (other.task, other.dataset, other.backbone, other.init, other.recipe, other.seed)

    successor = next((other for other in needed if name(other) == name(run)), None)
    if successor is None:
        return "in no table, and not asked for last"
    if run.task_version != successor.task_version:
        return f"by version {run.task_version} of the task, now {successor.task_version}"
    if run.recipe_values != successor.recipe_values:
        return f"other settings: {_differences(run, successor)}"
    if run.data_fingerprint != successor.data_fingerprint:
        return "on data that has changed"
    if run.upstream != successor.upstream:
        return "from other weights"
    return "under the id that an older mae-bench gave it"


def _differences(run: Run, successor: Run) -> str:
    mine, its = dict(settings(run.recipe_values)), dict(settings(successor.recipe_values))
    changed = [key for key in mine if mine[key] != its.get(key)] + [k for k in its if k not in mine]
    shown = [
        f"{key}={mine[key]!r}" if key in mine else f"no {key}"
        for key in changed[:NUM_SETTINGS_SHOWN]
    ]
    rest = len(changed) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def render(found: Sequence[Leftover], removed: bool) -> RenderableType:
    """Return the list for people."""
    if not found:
        return Text("nothing to remove")
    grid = Grid("run", "what", "why it can go", "size", box=box.SIMPLE_HEAD, pad_edge=False)
    for leftover in found:
        size = f"{leftover.bytes / 1e6:.1f} MB"
        grid.add_row(leftover.id, Text(leftover.label), Text(leftover.reason), size)
    total = f"{len(found)} run{'s' if len(found) != 1 else ''}, "
    total += f"{sum(leftover.bytes for leftover in found) / 1e6:.1f} MB"
    text = f"removed {total}" if removed else f"{total}; nothing is removed without --yes"
    return Group(grid, Text(text, style="bold"))
