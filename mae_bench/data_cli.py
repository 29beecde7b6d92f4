"""`mae-bench data`: what datasets there are, whether one is whole, and drawing the miniature."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mae_bench.errors import UserError, unknown
from mae_bench.printing import print_json, print_table
from mae_bench.progress import make_console
from mae_bench.work_cli import WORK_DIR, AsJson

if TYPE_CHECKING:
    from tasks.data.catalog import Dataset
    from tasks.data.verify import Finding, Report
    from tasks.data.verify import Progress as Told

app = typer.Typer(help="Datasets: names, checks, the miniature.", no_args_is_help=True)

DataRoot = Annotated[Path, typer.Option(help="Where the datasets are.")]
DATA_ROOT = WORK_DIR / "data"
TASKS = {"labelled": "pretraining, classification", "coco": "detection", "ade20k": "segmentation"}
# Findings of one rule that are printed; --json has all of them.
SHOWN = 10
# The histogram of so many classes is printed, too.
HISTOGRAM_SHOWN = 20


@app.command("list")
def list_data(data_root: DataRoot = DATA_ROOT, as_json: AsJson = False) -> None:
    """Print the datasets that have a name, and how one's own are named."""
    from tasks.data.catalog import DATASETS, OWN, Dataset

    rows = [_about(name, known, data_root) for name, known in DATASETS.items()]
    own = [_about(f"{kind}:{place}", Dataset(kind), data_root) for kind, place in OWN.items()]
    if as_json:
        print_json(rows + own)
        return
    columns = ("name", "for", "classes", "train", "val", "below --data-root", "there")
    print_table(columns, [[_cell(row[column]) for column in columns] for row in rows + own])


def _about(name: str, known: Dataset, data_root: Path) -> dict[str, Any]:
    counts = known.counts
    there = any((data_root / place).exists() for place in known.places)
    return {
        "name": name,
        "for": TASKS[known.kind],
        "classes": counts.classes if counts else None,
        "train": counts.train if counts else None,
        "val": counts.val if counts else None,
        "below --data-root": known.places[0] if known.places else None,
        "there": there if known.places else None,
    }


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


@app.command()
def verify(
    name: Annotated[
        str | None, typer.Argument(help="A dataset's name, or one's own: coco-format:DIR, ...")
    ] = None,
    data_root: DataRoot = DATA_ROOT,
    subset: Annotated[
        bool,
        typer.Option(
            "--subset", help="Fewer images or classes than published are there on purpose."
        ),
    ] = False,
    lists_only: Annotated[
        bool, typer.Option("--lists-only", help="Do not read the images: lists, files, counts.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that read.  [default: one for each core]")
    ] = None,
    rules: Annotated[bool, typer.Option("--rules", help="Print all rules and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a dataset from its lists to its last image; exit code 1 if it has a fault."""
    from tasks import data
    from tasks.data.verify import verify as look

    if rules:
        _print_rules(as_json)
        return
    if name is None:
        raise UserError("which dataset? `mae-bench data list` names them")
    name = data.absolute(name)
    with _progress(shown=not as_json and not lists_only) as told:
        report = look(
            name,
            data_root,
            subset=subset,
            read_images=not lists_only,
            workers=workers,
            progress=told,
        )
    if as_json:
        print_json({**dataclasses.asdict(report), "faults": len(report.faults)})
    else:
        _print_report(report)
    if report.faults:
        raise typer.Exit(1)


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="mini (all of the miniature) or one of its sets.")],
    data_root: Annotated[Path, typer.Option(help="Where to put it.")] = DATA_ROOT,
) -> None:
    """Generate the miniature datasets, unless they are there."""
    from mae_bench.workspace import require_space
    from tasks import data

    mini = [known for known, dataset in data.DATASETS.items() if dataset.spec]
    if name in data.DATASETS and name not in mini:
        raise UserError(
            f"dataset {name!r} cannot be generated: get it from its owner, put it below "
            f"{data_root} and check it with `mae-bench data verify {name}`"
        )
    if name != "mini" and name not in mini:
        raise unknown("dataset", name, ["mini", *mini])
    require_space(data_root, "--data-root")
    for dataset in mini if name == "mini" else [name]:
        data.prepare(dataset, data_root)
        typer.echo(data_root / dataset)


def _print_rules(as_json: bool) -> None:
    from tasks.data.verify import RULES

    if as_json:
        print_json({rule: about._asdict() for rule, about in RULES.items()})
        return
    rows = [
        (
            rule,
            "note" if about.is_note else "fault",
            about.reads,
            ", ".join(about.kinds),
            about.says,
        )
        for rule, about in RULES.items()
    ]
    print_table(("rule", "level", "reads", "of", "says"), rows)


@contextmanager
def _progress(shown: bool) -> Iterator[Told]:
    """A bar on a terminal, nothing in a pipe."""
    console = make_console()
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_report(report: Report) -> None:
    title = f"{report.dataset} in {report.home}" + (", a subset" if report.subset else "")
    typer.echo(_printable(title))
    for split, facts in report.splits.items():
        said = (f"{_plain(value)} {what}" for what, value in facts.items() if _is_plain(value))
        typer.echo(f"{split}: {', '.join(said)}")
        histogram = facts.get("histogram", {})
        if 0 < len(histogram) <= HISTOGRAM_SHOWN:
            counted = (f"{_printable(name)} {number}" for name, number in histogram.items())
            typer.echo(f"  {', '.join(counted)}")
    by_rule: dict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings:
        by_rule[finding.rule].append(finding)
    for rule, found in by_rule.items():
        _print_findings(rule, found)
    read = f"{report.files_read} files read" if report.files_read else "no image read"
    faults, notes = len(report.faults), len(report.findings) - len(report.faults)
    typer.echo(
        f"{read}, fingerprint {report.fingerprint or '-'}: "
        + (f"{faults} faults" if faults else "no fault")
        + (f", {notes} notes" if notes else "")
    )


def _print_findings(rule: str, found: list[Finding]) -> None:
    from tasks.data.verify import RULES

    number = f" ({len(found)} times)" if len(found) > 1 else ""
    typer.echo(f"{found[0].level} {rule}{number}: {RULES[rule].says}")
    for finding in found[:SHOWN]:
        typer.echo(f"  {_printable(finding.file)}: {_printable(finding.value)}")
    if len(found) > SHOWN:
        typer.echo(f"  and {len(found) - SHOWN} more, all of them with --json")


def _printable(text: str) -> str:
    """Names of files may hold anything: line ends, terminal codes, bytes that are no text."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped)


def _is_plain(value: object) -> bool:
    return not isinstance(value, dict)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
