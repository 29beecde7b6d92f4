"""The verbs that look at a work folder: status, clean."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from mae_bench.overview import Status, render_status
from mae_bench.overview import status as look_at
from mae_bench.progress import make_console
from mae_bench.request import Request
from mae_bench.workspace import Workspace

WORK_DIR = Path("work_dirs")
WorkDir = Annotated[Path, typer.Option(help="Where runs, records and logs go.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def status(
    work_dir: WorkDir = WORK_DIR,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay until nothing is left to do, or Ctrl-C.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Between looks of --watch.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Say what is done, running, failed and missing of what was asked for last."""
    workspace = Workspace(work_dir)
    plan = Request.read(workspace).plan()
    if watch:
        _watch(lambda: look_at(plan, workspace), seconds, as_json)
    elif as_json:
        typer.echo(look_at(plan, workspace).model_dump_json(indent=1))
    else:
        make_console().print(render_status(look_at(plan, workspace)))


def _watch(look: Callable[[], Status], seconds: float, as_json: bool) -> None:
    """Show what `look` sees until nothing is left to do: in place, or as lines where piped."""
    console = make_console()
    with suppress(KeyboardInterrupt):
        if as_json:
            for view in _looks(look, seconds):
                typer.echo(view.model_dump_json())
        elif console.is_terminal:
            # Drawn over in one go, and never taller than the screen: no flicker.
            with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
                for view in _looks(look, seconds):
                    live.update(render_status(view, console.height), refresh=True)
        else:
            last = ""
            for view in _looks(look, seconds):
                line = ", ".join(f"{number} {state}" for state, number in view.counts.items())
                if line != last:
                    typer.echo(line)
                last = line


def _looks(look: Callable[[], Status], seconds: float) -> Iterator[Status]:
    while True:
        started = time.monotonic()
        view = look()
        yield view
        if view.settled:
            return
        # Large folders take a while to read; do not spend more than a fifth of the time on it.
        time.sleep(max(seconds, 4 * (time.monotonic() - started)))


def clean(
    work_dir: WorkDir = WORK_DIR,
    keep: Annotated[
        list[str],
        typer.Option(metavar="FIELD=GLOB", help="Leave these runs, e.g. 'init=mine*'."),
    ] = [],  # noqa: B006 (typer copies it)
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is shown.")] = False,
) -> None:
    """Show the runs that neither a table nor the last request needs; remove them with --yes."""
    from mae_bench import cleaning

    workspace = Workspace(work_dir)
    found = cleaning.leftovers(Request.read(workspace), workspace, keep)
    if yes:
        workspace.forget([leftover.id for leftover in found])
    make_console().print(cleaning.render(found, removed=yes))
