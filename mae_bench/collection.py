"""Results of several places: work folders, folders of records, exported JSON, brought together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_bench.errors import UserError
from mae_bench.records import Record, read_records
from mae_bench.request import FILE, Request
from mae_bench.workspace import Workspace

# What tells a line of `results.json` from a record, and what is read of it.
LINE_FIELDS = ("table", "scale", "init", "group", "column", "backbone", "metric", "seed", "state")


@dataclass(frozen=True)
class Score:
    """One number of one run.

    Attributes:
        place: task, dataset, backbone, init, recipe, seed, metric: what stays the same when
            settings or code change, and the id with them.
    """

    run_id: str
    metric: str
    value: float
    unit: str
    place: tuple[str, ...]

    @property
    def label(self) -> str:
        task, dataset, backbone, init, recipe, seed, metric = self.place
        name = recipe.rpartition("/")[2]
        return f"{task} {dataset} {backbone} {init} [{name}] seed {seed}: {metric}"


@dataclass(frozen=True)
class Source:
    """What one place holds.

    Attributes:
        records: run id -> record.
        lines: of an exported `results.json`, which holds scores of tables and no records.
        request: what was asked for there, of a work folder.
        runs: folder with a folder per run, of a work folder.
    """

    name: str
    records: Mapping[str, Record] = field(default_factory=dict)
    lines: Sequence[Mapping[str, Any]] = ()
    request: Request | None = None
    runs: Path | None = None

    def scores(self) -> Iterator[Score]:
        """Every number that is there, finite or not."""
        for record in self.records.values():
            yield from scores_of(record)
        for line in self.lines:
            if line["state"] == "ok":
                place = ("task", "dataset", "backbone", "init", "recipe", "seed", "metric")
                where = tuple(str(line.get(name)) for name in place)
                value, unit = float(line["value"]), str(line.get("unit") or "")
                yield Score(line["run_id"], line["metric"], value, unit, where)


@dataclass(frozen=True)
class Conflict:
    """One run, one metric, other numbers: source -> value."""

    run_id: str
    label: str
    values: Mapping[str, float]

    def __str__(self) -> str:
        found = ", ".join(f"{value!r} in {source}" for source, value in self.values.items())
        return f"{self.run_id} ({self.label}): {found}"


@dataclass(frozen=True)
class Collection:
    """Several sources as one.

    Attributes:
        records: run id -> record, the first of several; one that went well goes before one that
            failed.
        conflicts: runs whose numbers belong in no table.
        folders: run id -> folder of the run, where a source has one.
    """

    sources: tuple[Source, ...]
    records: Mapping[str, Record]
    conflicts: tuple[Conflict, ...]
    folders: Mapping[str, Path]

    @property
    def undisputed(self) -> dict[str, Record]:
        """The records without those in conflict."""
        disputed = {conflict.run_id for conflict in self.conflicts}
        return {key: record for key, record in self.records.items() if key not in disputed}


def scores_of(record: Record) -> Iterator[Score]:
    """The numbers of a record."""
    run, outcome = record.run, record.outcome
    if record.status != "ok" or outcome is None:
        return
    where = (run.task, run.dataset, run.backbone, run.init, run.recipe, str(run.seed))
    for name, metric in outcome.metrics.items():
        yield Score(record.id, name, metric.value, metric.unit, (*where, name))


def read_source(path: Path) -> Source:
    """Read what a place holds.

    Args:
        path: a work folder, a folder of record files (as `--format records` writes it, or one that
            has it inside), a record, or a `results.json`.

    Raises:
        UserError: not there, empty, or none of these.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such folder or file")
    if path.is_file():
        return _read_file(path)
    if (path / "runs").is_dir():
        workspace = Workspace(path)
        workspace.check()
        request = Request.read(workspace) if (path / FILE).is_file() else None
        source = Source(str(path), workspace.records(), (), request, workspace.runs)
    else:
        folder = path / "records" if (path / "records").is_dir() else path
        found = read_records(record_files(folder)).values()
        source = Source(str(path), {record.id: record for record in found})
    if not source.records:
        raise UserError(
            f"{path} holds no records; give a work folder with finished runs, or a folder or file "
            "that `mae-bench report --format records,json` wrote"
        )
    return source


def record_files(folder: Path) -> list[Path]:
    """The files of a folder of records, in order."""
    return sorted(path for path in folder.glob("*.json") if path.name != "results.json")


def _read_file(path: Path) -> Source:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); give a results.json or a record") from None
    if isinstance(content, dict):
        record = Record.read(path)
        return Source(str(path), {record.id: record})
    for number, line in enumerate(content if isinstance(content, list) else [None], 1):
        if not _is_line(line):
            raise UserError(
                f"{path} is not a results.json of mae-bench (entry {number} is no line of one); "
                "give a work folder, a folder of records, or a file made by --format json"
            )
    return Source(str(path), lines=content)


def _is_line(line: object) -> bool:
    if not isinstance(line, dict) or not all(name in line for name in LINE_FIELDS):
        return False
    scored = isinstance(line.get("value"), int | float) and isinstance(line.get("run_id"), str)
    return isinstance(line["seed"], int) and (scored or line["state"] != "ok")


def collect(sources: Iterable[Source]) -> Collection:
    """Bring sources together; see `Collection`."""
    sources = tuple(sources)
    conflicts = tuple(_conflicts(sources))
    records: dict[str, Record] = {}
    folders: dict[str, Path] = {}
    for source in sources:
        for run_id, record in source.records.items():
            known = records.get(run_id)
            better = known is None or (known.status != "ok" and record.status == "ok")
            if better:
                records[run_id] = record
                if source.runs is not None:
                    folders[run_id] = source.runs / run_id
    return Collection(sources, records, conflicts, folders)


def _conflicts(sources: Iterable[Source]) -> Iterator[Conflict]:
    found: dict[tuple[str, str], tuple[Score, dict[str, float]]] = {}
    for source in sources:
        for score in source.scores():
            _, values = found.setdefault((score.run_id, score.metric), (score, {}))
            values[source.name] = score.value
    for (run_id, _), (score, values) in found.items():
        first = next(iter(values.values()))
        if any(not same(first, value) for value in values.values()):
            yield Conflict(run_id, score.label, values)


def same(one: float, other: float) -> bool:
    """Whether two numbers are equal; NaN is NaN."""
    return one == other or (math.isnan(one) and math.isnan(other))
