"""The verb `report`: tables of one place or of several, what changed between two, what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mae_bench.errors import UserError
from mae_bench.report import DEFAULT_FORMATS, FORMATS
from mae_bench.request import Request
from mae_bench.work_cli import WORK_DIR, WorkDir
from mae_bench.workspace import Workspace

Out = Annotated[Path | None, typer.Option(help="Folder of the report  [default: report]")]


def report(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PLACE]...",
            help="Of these together instead of --work-dir: work folders, folders of records, "
            "results.json files.",
            show_default=False,
        ),
    ] = None,
    work_dir: WorkDir = WORK_DIR,
    out: Out = None,
    formats: Annotated[
        str, typer.Option("--format", help=f"Comma-separated: {', '.join(FORMATS)}.")
    ] = ",".join(DEFAULT_FORMATS),
    by: Annotated[
        str | None,
        typer.Option(
            metavar="FIELDS",
            help="Tables of all that was scored here, with these rows: init, backbone, dataset, "
            "protocol, comma-separated.",
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="OLD NEW", help="List the scores that differ between two places."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Say what is wrong with a folder of records."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="REVISION", help="With --check: nothing that git had then is gone."),
    ] = None,
) -> None:
    """Write the report of what was asked for last, as far as it is there."""
    if since is not None and check is None:
        raise UserError("--since is for --check FOLDER")
    if sum(one is not None for one in (sources or None, compare, check)) > 1:
        raise UserError("give places to merge, --compare OLD NEW or --check FOLDER; one of them")
    if check is not None:
        _check(check, since)
    elif compare is not None:
        _compare(*compare)
    else:
        names = [name.strip() for name in formats.split(",") if name.strip()]
        fields = None if by is None else [name.strip() for name in by.split(",") if name.strip()]
        _write(sources or [], work_dir, out or Path("report"), names, fields)


def _write(
    sources: list[Path], work_dir: Path, out: Path, formats: list[str], by: list[str] | None
) -> None:
    from mae_bench import session

    workspace = Workspace(work_dir)
    good = True
    if sources:
        good, written = session.report_merged(sources, out, formats, by)
    elif by is None:
        written = session.report(Request.read(workspace), workspace, out, formats)
    else:
        written = session.report_grouped(workspace, out, formats, by)
    typer.echo("\n".join(str(path) for path in written))
    if not good:
        raise typer.Exit(1)


def _compare(old: Path, new: Path) -> None:
    from mae_bench.collection import read_source
    from mae_bench.comparison import compare
    from mae_bench.report.wording import printable

    found = compare(read_source(old).scores(), read_source(new).scores())
    for change in found.changed:
        typer.echo(printable(f"changed: {change}"))
    for score in found.added:
        typer.echo(printable(f"new: {score.label} {score.value:.4g} {score.unit}"))
    for score in found.removed:
        typer.echo(printable(f"gone: {score.label} {score.value:.4g} {score.unit}"))
    numbers = (len(found.changed), len(found.added), len(found.removed), found.num_equal)
    typer.echo("{} changed, {} new, {} gone, {} equal".format(*numbers))
    if found.changed or found.removed:
        raise typer.Exit(1)


def _check(folder: Path, since: str | None) -> None:
    from mae_bench import lint
    from mae_bench.report.wording import printable

    num_records, found = lint.check(folder, since)
    for one in found:
        typer.echo(printable(str(one)))
    faults = [one for one in found if not one.is_note]
    typer.echo(f"{_count(num_records, 'record')}, {_count(len(faults), 'fault')}")
    if faults:
        raise typer.Exit(1)


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' * (number != 1)}"
