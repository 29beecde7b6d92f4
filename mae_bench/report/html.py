"""The page: one self-contained file that asks the network for nothing.

Everything from a record or a config goes through Jinja2's autoescaping; the page's own
Content-Security-Policy forbids scripts and requests.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mae_bench.aggregate import TableResult
from mae_bench.records import Picture, Record
from mae_bench.report import charts, wording

# The page is to load on a phone: pictures are shrunk to this, and stop at the budget.
LARGEST_PICTURE_BYTES = 120_000
PICTURES_BUDGET_BYTES = 1_800_000
WIDEST_PICTURE_PX = 1400
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
# Task -> heading of its part of the gallery, in the page's order; other tasks follow by name.
GALLERY = {
    "pretraining": "Reconstructions",
    "detection": "Detections",
    "segmentation": "Segmentations",
    "classification": "Classification",
    "tokenizer": "Tokenizer",
    "supervised": "Supervised pretraining",
}


@dataclass(frozen=True)
class Shown:
    """A picture in the page, as a data URI."""

    run: Record
    caption: str
    uri: str


@dataclass(frozen=True)
class RunView:
    """What the page shows of one run."""

    record: Record
    title: str
    curve: charts.Curve | None
    recipe: tuple[tuple[str, str], ...]
    facts: str


@dataclass
class _Album:
    """Embeds pictures until the page's budget is used up."""

    folder: Path
    left: int = PICTURES_BUDGET_BYTES
    left_out: list[str] = field(default_factory=list)

    def embed(self, record: Record, picture: Picture) -> Shown | None:
        """Return the picture, or None (and remember it) when it cannot be in the page."""
        data = _read_picture(self.folder / record.id, picture.path)
        if data is None or len(data[1]) > self.left:
            self.left_out.append(f"{record.id}/{picture.path}")
            return None
        self.left -= len(data[1])
        encoded = base64.b64encode(data[1]).decode()
        return Shown(record, picture.caption, f"data:{data[0]};base64,{encoded}")


def render(results: Sequence[TableResult], records: Mapping[str, Record], runs_folder: Path) -> str:
    """Return the page.

    Args:
        records: run id -> record, of all runs to describe (those that prepare others too).
        runs_folder: holds a folder per run id, for learning curves and pictures.
    """
    ordered = _ordered(records.values(), results)
    album = _Album(runs_folder)
    panels = charts.panels(results)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    return environment.get_template("index.html").render(
        results=results,
        wording=wording,
        panels=panels,
        colours=_colours(panels),
        gallery=_gallery(ordered, album),
        left_out=album.left_out,
        runs=[_view(record, runs_folder) for record in ordered],
        known=records.keys(),
        facts=_facts(results, ordered),
        scale=" and ".join(dict.fromkeys(result.scale for result in results)) or "empty",
        duration=duration,
    )


def _visible(value: object) -> object:
    """What an expression of the template becomes: text (not markup) without control characters."""
    return wording.printable(value) if type(value) is str else value


def duration(seconds: float) -> str:
    """ "41 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _ordered(records: Iterable[Record], results: Iterable[TableResult]) -> list[Record]:
    """Pretraining before transfer, inits in the order of the tables' rows, then by seed."""
    tasks = ["tokenizer", "supervised", *GALLERY]
    inits = list(dict.fromkeys(row.row.init for result in results for row in result.rows))

    def place(record: Record) -> tuple[int | str, ...]:
        run = record.run
        task = tasks.index(run.task) if run.task in tasks else len(tasks)
        init = inits.index(run.init) if run.init in inits else len(inits)
        return (task, run.task, run.dataset, run.recipe, run.backbone, init, run.init, run.seed)

    return sorted(records, key=place)


def _colours(panels: Iterable[charts.Panel]) -> dict[str, int]:
    """Init -> number of its colour, the same in every chart; `random` is the neutral one."""
    inits = dict.fromkeys(bar.init for panel in panels for bar in panel.bars)
    others = [init for init in inits if init != "random"]
    return {"random": 0, **{init: 1 + index % 7 for index, init in enumerate(others)}}


def _facts(results: Iterable[TableResult], records: Sequence[Record]) -> dict[str, str]:
    """The line under the page's title: what it took to make the numbers."""
    facts = {
        "runs": str(len(records)),
        "seeds": str(max((result.num_seeds for result in results), default=0)),
    }
    if records:
        made = [record.provenance for record in records]
        facts["compute"] = duration(sum(run.seconds for run in made))
        facts["peak memory"] = f"{max(run.peak_memory_mb for run in made) / 1024:.1f} GB"
        facts["last run"] = max(run.started for run in made)[:16].replace("T", " ") + " UTC"
        commits = dict.fromkeys((run.commit or "unknown")[:8] for run in made)
        facts["commit"] = ", ".join(commits)
    return facts


def _gallery(records: Iterable[Record], album: _Album) -> dict[str, list[Shown]]:
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
                shown = album.embed(record, picture)
                if shown:
                    gallery.setdefault(GALLERY.get(task, task), []).append(shown)
    return gallery


def _read_picture(folder: Path, name: str) -> tuple[str, bytes] | None:
    """Media type and content of a picture inside the run's folder; shrunk when large."""
    path = (folder / name).resolve()
    media = MEDIA_TYPES.get(path.suffix.lower())
    if media is None or not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    data = path.read_bytes()
    return (media, data) if len(data) <= LARGEST_PICTURE_BYTES else _shrink(data)


def _shrink(data: bytes) -> tuple[str, bytes] | None:
    from PIL import Image, UnidentifiedImageError  # not every page has a large picture

    try:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None
    picture.thumbnail((WIDEST_PICTURE_PX, WIDEST_PICTURE_PX * 2))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85, optimize=True)
    return "image/jpeg", file.getvalue()


def _view(record: Record, runs_folder: Path) -> RunView:
    facts = record.outcome.facts if record.outcome else {}
    return RunView(
        record=record,
        title=record.run.label,
        curve=charts.curve(_metrics_lines(runs_folder / record.id / "metrics.jsonl")),
        recipe=tuple(_flatten(record.run.recipe_values)),
        facts=json.dumps(facts, indent=1, ensure_ascii=False, default=str) if facts else "",
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and value of every setting, as `--set` takes them."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)


def _metrics_lines(path: Path) -> list[dict[str, Any]]:
    """The learning curve's points; a line that a killed run left half-written is passed over."""
    if not path.is_file():
        return []
    points = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            point = json.loads(line)
        except ValueError:
            continue
        if isinstance(point, dict):
            points.append(point)
    return points
