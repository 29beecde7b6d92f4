"""Records -> tables for any grouping: what is asked for makes the rows, all else the columns.

Nothing that differs is averaged: only seeds share a cell. A setting that was changed, another
dataset under the same name or another file for the same init is another row or column.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mae_bench.aggregate import OK, SeedResult, TableResult, build
from mae_bench.deviations import own_changes, upstream_changes
from mae_bench.errors import UserError, unknown
from mae_bench.plan import TABLES, load_tables
from mae_bench.records import Column, Record, Row, Scale, Setting, Table
from mae_bench.workspace import state_of

FIELDS = ("init", "backbone", "dataset", "protocol")
IN_THE_ROW = "as in the row"


@dataclass(frozen=True)
class _Place:
    """Where a run stands, in words that tell different experiments apart."""

    init: str
    backbone: str
    dataset: str
    protocol: str
    task: str


def grouped(records: Mapping[str, Record], by: Sequence[str]) -> list[TableResult]:
    """Return a table per task of everything that was scored.

    Args:
        records: run id -> record; runs that only prepare others have no row.
        by: some of `FIELDS`, the rows.

    Raises:
        UserError: another field, one given twice, or nothing to group.
    """
    for name in by:
        if name not in FIELDS:
            raise unknown("field to group by", name, FIELDS)
    if not by or len(set(by)) < len(by):
        given = ", ".join(by) or "nothing"
        raise UserError(f"group by {given}: give some of {', '.join(FIELDS)}, each once at most")
    used = {weights.run_id for one in records.values() for weights in one.run.upstream.values()}
    scored = {run_id: record for run_id, record in records.items() if run_id not in used}
    if not scored:
        raise UserError("there are no scored runs to group; run `mae-bench reproduce TABLE` first")
    places, notes = _places(scored, records)
    tasks = dict.fromkeys(place.task for place in places.values())
    return [
        _table(
            task,
            {run_id: p for run_id, p in places.items() if p.task == task},
            notes,
            records,
            by,
        )
        for task in sorted(tasks)
    ]


def _table(
    task: str,
    places: Mapping[str, _Place],
    notes: Mapping[str, str],
    records: Mapping[str, Record],
    by: Sequence[str],
) -> TableResult:
    name = f"{task}-by-{'-'.join(by)}"
    members = sorted((records[run_id] for run_id in places), key=lambda one: one.run.seed)
    scale: Scale = "mini" if all(map(_is_mini, members)) else "paper"
    metrics = _metrics(members)
    rows: dict[str, Row] = {}
    columns: dict[str, Column] = {}
    found: dict[tuple[str, str], list[SeedResult]] = {}
    for record in members:
        place = places[record.id]
        label = ", ".join(getattr(place, field) for field in by)
        rows.setdefault(label, Row(init=label, title=label))
        for metric in metrics:
            column = _column(place, by, metric, scale)
            key = column.model_dump_json()
            columns.setdefault(key, column)
            found.setdefault((label, key), []).append(_seed(record, metric))
    columns = dict(sorted(columns.items(), key=lambda one: (one[1].group, one[1].title)))
    named = dict.fromkeys(
        name for one in places.values() for name in (one.init, one.dataset, one.protocol)
    )
    table = Table(
        name=name,
        title=f"{task}, all that was scored, by {' and '.join(by)}",
        source="the records that are there",
        rows=tuple(rows.values()),
        columns=tuple(columns.values()),
        note=" ".join(f"{one}: {notes[one]}." for one in named if one in notes),
    )
    order = {key: (index, columns[key].scales[scale]) for index, key in enumerate(columns)}
    results = {
        (name, label, order[key][0], order[key][1].backbones[0]): seeds
        for (label, key), seeds in found.items()
    }
    return build(table, scale, results, records)


def _is_mini(record: Record) -> bool:
    return record.run.dataset.startswith("mini-")


def _metrics(records: Iterable[Record]) -> list[str]:
    """The scores of a task that tables show; if no table has it, its first.

    Taken from all of its runs: those that failed are holes in the same columns.
    """
    known = {column.metric for table in load_tables(TABLES) for column in table.columns}
    found: dict[str, None] = {}
    for record in records:
        names = list(record.outcome.metrics) if record.outcome else []
        found.update(dict.fromkeys([name for name in names if name in known] or names[:1]))
    return list(found) or ["score"]


def _seed(record: Record, metric: str) -> SeedResult:
    score = record.outcome.metrics.get(metric) if record.outcome else None
    if score is not None and math.isfinite(score.value):
        return SeedResult(record.run.seed, record.id, score, OK)
    state = state_of(record) if record.status != OK else f"failed: no finite {metric}"
    return SeedResult(record.run.seed, record.id, None, state)


def _column(place: _Place, by: Sequence[str], metric: str, scale: Scale) -> Column:
    setting = Setting(
        dataset=IN_THE_ROW if "dataset" in by else place.dataset,
        backbones=(IN_THE_ROW if "backbone" in by else place.backbone,),
        recipe=IN_THE_ROW if "protocol" in by else place.protocol,
    )
    return Column(
        title=metric if "protocol" in by else f"{metric}, {place.protocol.rpartition('/')[2]}",
        group=place.task if "dataset" in by else place.dataset,
        task=place.task,
        metric=metric,
        scales={scale: setting},
    )


def _places(
    scored: Mapping[str, Record], records: Mapping[str, Record]
) -> tuple[dict[str, _Place], dict[str, str]]:
    """Where each run stands; and by label, what is behind it where the name does not say."""
    names = _Names()
    found: dict[str, list[tuple[str, str, str]]] = {}
    for run_id, record in scored.items():
        run = record.run
        made = [*_file(record), *upstream_changes(run, records)]
        found[run_id] = [
            ("init", run.init, "; ".join(made)),
            ("dataset", run.dataset, f"content {run.data_fingerprint}"),
            ("protocol", run.recipe, "; ".join(own_changes(run, {}))),
        ]
    # Those as shipped keep the plain name.
    for things in sorted(found.values(), key=lambda things: [len(what) for *_, what in things]):
        for thing in things:
            names.add(*thing)
    places = {
        run_id: _Place(
            **{thing[0]: names.label(*thing) for thing in things},
            backbone=scored[run_id].run.backbone,
            task=scored[run_id].run.task,
        )
        for run_id, things in found.items()
    }
    return places, names.notes


class _Names:
    """Tells things of one name apart: "name", "name #2"; `notes` say what is behind a label."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}
        self._known: dict[tuple[str, str], dict[str, str]] = {}

    def add(self, kind: str, name: str, what: str) -> None:
        known = self._known.setdefault((kind, name), {})
        if what not in known:
            known[what] = f"{name} #{len(known) + 1}" if known else name
        if what and (kind != "dataset" or len(known) > 1):
            self.notes[known[what]] = what

    def label(self, kind: str, name: str, what: str) -> str:
        return self._known[kind, name][what]


def _file(record: Record) -> Iterator[str]:
    """The file that an init was read from; several files of one name are several inits."""
    weights = record.run.upstream.get("backbone")
    if weights and weights.sha256:
        yield f"from a file with SHA-256 {weights.sha256[:12]}"
