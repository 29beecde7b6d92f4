"""The page: one self-contained file that asks the network for nothing.

Everything from a record or a config goes through Jinja2's autoescaping, or into the page's data
that its script shows as text; the page's own Content-Security-Policy forbids requests, and scripts
other than its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mae_bench.aggregate import TableResult
from mae_bench.records import Record
from mae_bench.report import charts, curves, plots, protocols, runs, wording
from mae_bench.report.album import Album, Shown

# With tables, charts and the data of 200 runs the page stays below 3 MB.
PICTURES_ROOM = 1_800_000
TEMPLATES = Path(__file__).parent / "templates"
# Task -> heading of its part of the gallery, in the page's order; other tasks follow by name.
GALLERY = {
    "pretraining": "Reconstructions",
    "detection": "Detections",
    "segmentation": "Segmentations",
    "classification": "Classification",
    "tokenizer": "Tokenizer",
    "supervised": "Supervised pretraining",
}
# Marks differ in shape as well as in colour; centred on (0, 0).
SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "M-4-4h8v8h-8z",
    "M0-5L5 4H-5z",
    "M0-5L5 0L0 5L-5 0z",
    "M-5-4H5L0 5z",
    "M-2-5h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "M-5 0L-2.5-4.5h5L5 0L2.5 4.5h-5z",
    "M-1.2-5h2.4v10h-2.4z",
)


@dataclass(frozen=True)
class Page:
    """The page's text, and the pictures it has no room for: name -> content."""

    text: str
    pictures: Mapping[str, bytes]


def render(
    results: Sequence[TableResult],
    records: Mapping[str, Record],
    runs_folder: Path,
    cache: Path,
) -> Page:
    """Return the page.

    Args:
        records: run id -> record, of all runs to describe (those that prepare others too).
        runs_folder: holds a folder per run id, for learning curves and pictures.
        cache: folder for shrunk pictures.
    """
    ordered = _ordered(records.values(), results)
    album = Album(runs_folder, cache, PICTURES_ROOM)
    gallery = _gallery(ordered, album)
    script = (TEMPLATES / "page.js").read_text()
    inits = _inits(results, ordered)
    colours = {init: index for index, init in enumerate(inits, "random" not in inits)}
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    text = environment.get_template("index.html").render(
        results=results,
        wording=wording,
        panels=charts.panels(results),
        figures=plots.figures(results),
        costs=plots.costs(results, records),
        tasks=plots.tasks(results),
        protocols={result.table.name: protocols.cards(result, records) for result in results},
        learning=curves.learning(ordered, runs_folder, colours),
        colours=colours,
        shapes=SHAPES,
        gallery=gallery,
        left_out=album.left_out,
        packed=runs.pack(runs.views(ordered, runs_folder, _keys(gallery))),
        num_runs=len(ordered),
        choices=_choices(results, ordered, inits),
        known=records.keys(),
        facts=_facts(results, ordered),
        scale=" and ".join(dict.fromkeys(result.scale for result in results)) or "empty",
        duration=runs.duration,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(_inline(script)).digest()).decode(),
    )
    return Page(text, album.beside)


def _inline(script: str) -> bytes:
    """The script as it stands between its tags."""
    return f"\n{script}\n".encode()


def _visible(value: object) -> object:
    """What an expression of the template becomes: text (not markup) without control characters."""
    return wording.printable(value) if type(value) is str else value


def _ordered(records: Iterable[Record], results: Iterable[TableResult]) -> list[Record]:
    """Pretraining before transfer, inits in the order of the tables' rows, then by seed."""
    order = {task: place for place, task in enumerate(["tokenizer", "supervised", *GALLERY])}
    names = dict.fromkeys(row.row.init for result in results for row in result.rows)
    inits = {init: place for place, init in enumerate(names)}

    def place(record: Record) -> tuple[int | str, ...]:
        run = record.run
        task, init = order.get(run.task, len(order)), inits.get(run.init, len(inits))
        return (task, run.task, run.dataset, run.recipe, run.backbone, init, run.init, run.seed)

    return sorted(records, key=place)


def _inits(results: Iterable[TableResult], records: Iterable[Record]) -> list[str]:
    """Every init, in an order that fixes colours and shapes; `random` has the neutral ones."""
    rows = (row.row.init for result in results for row in result.rows)
    names = dict.fromkeys([*rows, *(record.run.init for record in records)])
    return sorted(names, key=lambda name: name != "random")


def _choices(
    results: Sequence[TableResult], records: Sequence[Record], inits: Sequence[str]
) -> dict[str, list[str]]:
    """What can be filtered by: label -> values."""
    columns = [column for result in results for column in result.columns]
    recipes = [column.setting.recipe for column in columns if column.setting]
    seen = {
        "backbone": [column.backbone for column in columns],
        "task": [column.column.task for column in columns],
        "protocol": recipes,
    }
    for record in records:
        seen["backbone"].append(record.run.backbone)
        seen["task"].append(record.run.task)
        seen["protocol"].append(record.run.recipe)
    return {"init": list(inits), **{name: list(dict.fromkeys(all)) for name, all in seen.items()}}


def _facts(results: Iterable[TableResult], records: Sequence[Record]) -> dict[str, str]:
    """The line under the page's title: what it took to make the numbers."""
    facts = {
        "runs": str(len(records)),
        "seeds": str(max((result.num_seeds for result in results), default=0)),
    }
    if records:
        made = [record.provenance for record in records]
        facts["compute"] = runs.duration(sum(run.seconds for run in made))
        facts["peak memory"] = f"{max(run.peak_memory_mb for run in made) / 1024:.1f} GB"
        facts["last run"] = max(run.started for run in made)[:16].replace("T", " ") + " UTC"
        commits = list(dict.fromkeys((run.commit or "unknown")[:8] for run in made))
        more = f" and {len(commits) - 3} more" if len(commits) > 3 else ""
        facts["commit"] = ", ".join(commits[:3]) + more
    return facts


def _gallery(records: Iterable[Record], album: Album) -> dict[str, list[Shown]]:
    """Heading -> pictures of each run's first seed (the others would show the same again)."""
    first: dict[tuple[str, ...], Record] = {}
    for record in records:
        run = record.run
        first.setdefault((run.task, run.dataset, run.recipe, run.backbone, run.init), record)
    chosen: dict[str, list[Record]] = {task: [] for task in GALLERY}
    for record in first.values():
        chosen.setdefault(record.run.task, []).append(record)
    gallery: dict[str, list[Shown]] = {}
    for task, members in chosen.items():
        for record in members:
            for picture in record.outcome.pictures if record.outcome else ():
                shown = album.show(record, picture)
                if shown:
                    gallery.setdefault(GALLERY.get(task, task), []).append(shown)
    return gallery


def _keys(gallery: Mapping[str, Sequence[Shown]]) -> dict[str, list[str]]:
    """Run id -> keys of its pictures in the gallery."""
    keys: dict[str, list[str]] = {}
    for pictures in gallery.values():
        for shown in pictures:
            keys.setdefault(shown.run.id, []).append(shown.key)
    return keys
