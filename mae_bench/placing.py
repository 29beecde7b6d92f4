"""Records of unknown origin -> cells of tables, by what was run and not by where its data lay.

A run's id holds the fingerprint of its data and, through what it started from, of other data: where
these are not at hand, the plan of a table gives other ids. So runs are matched without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_args

from mae_bench.aggregate import OK, SeedResult, TableResult, build
from mae_bench.collection import Collection, Source
from mae_bench.errors import UserError
from mae_bench.plan import TABLES, Planner, load_tables
from mae_bench.recipes import load_recipe
from mae_bench.records import Metric, Record, Row, Run, Scale, Table, Upstream
from mae_bench.selection import Cell, at_scale, cells_of, lacks, note_changes
from mae_bench.workspace import state_of
from tasks.pretraining import INITS

NO_DATA = Path("/nonexistent")
FROM_A_FILE = "file"
ANY_SEED = 0
Place = tuple[str, str, int, str]  # table, init, column, backbone


@dataclass(frozen=True)
class Settings:
    """How a place's runs differ from the recipes: runs of other settings share no table."""

    scale: Scale
    overrides: tuple[tuple[str, Any], ...] = ()
    smoke: bool = False


@dataclass
class _Filled:
    """Cells of one scale as they fill up: place -> seed -> result."""

    settings: Settings
    tables: dict[str, Table]
    cells: dict[Place, dict[int, SeedResult]] = field(default_factory=dict)

    def put(self, place: Place, result: SeedResult) -> None:
        seeds = self.cells.setdefault(place, {})
        if result.seed not in seeds or seeds[result.seed].state != OK:
            seeds[result.seed] = result


def place(collection: Collection) -> list[TableResult]:
    """Return the tables that were asked for; of sources that do not tell, those that fit.

    Raises:
        UserError: settings differ between the sources, or nothing fits any table.
    """
    found = []
    for settings in _settings(collection.sources):
        filled = _fill(settings, collection)
        names = _names(settings, collection.sources) | _fitting(filled, collection.sources)
        found += [_table(filled, name, collection) for name in filled.tables if name in names]
    if not any(cell.values for table in found for row in table.rows for cell in row.cells):
        raise UserError(
            "none of these results fits a cell of a table (their settings are not those of its "
            "columns); `--by init,dataset,protocol` makes tables of whatever is there"
        )
    return found


def _settings(sources: Iterable[Source]) -> list[Settings]:
    """The settings to make tables of: one per scale."""
    found: dict[Settings, str] = {}
    for source in sources:
        for one in _settings_of(source):
            found.setdefault(one, source.name)
    for scale in get_args(Scale):
        alike = {one: name for one, name in found.items() if one.scale == scale}
        if len(alike) > 1:
            (one, first), (two, second), *_ = alike.items()
            raise UserError(
                f"{first} was run with {_words(one)}, {second} with {_words(two)}: these are "
                "different experiments and share no table. Merge what has the same settings, or "
                "give --by init,dataset,protocol"
            )
    return sorted(found, key=lambda one: one.scale)


def _settings_of(source: Source) -> list[Settings]:
    request = source.request
    if request is not None and request.tables:
        overrides = tuple(sorted((key, str(value)) for key, value in request.overrides.items()))
        return [Settings(request.scale, overrides, request.smoke)]
    runs = [record.run for record in source.records.values()]
    scales = {line["scale"] for line in source.lines}
    scales |= {"mini" if run.dataset.startswith("mini-") else "paper" for run in runs}
    smoke = any(map(_is_smoke, runs))
    return [Settings(scale, smoke=smoke) for scale in get_args(Scale) if scale in scales]


def _is_smoke(run: Run) -> bool:
    """Whether a run has a smoke run's settings; records alone do not say so."""
    shipped, smoke = _solvers(run.recipe, run.backbone, run.init)
    return bool(shipped != smoke == run.recipe_values.get("solver"))


@cache
def _solvers(recipe: str, backbone: str, init: str) -> list[Any]:
    """A recipe's solver as shipped, and of a smoke run; twice nothing of an unknown recipe."""
    try:
        return [
            load_recipe(recipe, smoke=smoke, backbone=backbone, init=init)["solver"]
            for smoke in (False, True)
        ]
    except UserError:
        return [None, None]


def _words(settings: Settings) -> str:
    words = [f"{key}={value}" for key, value in settings.overrides]
    return " ".join([*words, *(["--smoke"] if settings.smoke else [])]) or "the recipes as shipped"


def _names(settings: Settings, sources: Iterable[Source]) -> set[str]:
    """Tables that were asked for at this scale."""
    asked = [one.request for one in sources if one.request and one.request.tables]
    same = [request for request in asked if request.scale == settings.scale]
    return {table.name for request in same for table in load_tables(request.tables)}


def _fitting(filled: _Filled, sources: Iterable[Source]) -> set[str]:
    """Tables with scores in several rows, where it is not known what was asked for."""
    if all(source.request and source.request.tables for source in sources):
        return set()
    rows: dict[str, set[str]] = {}
    for (table, init, *_), seeds in filled.cells.items():
        if any(result.metric for result in seeds.values()):
            rows.setdefault(table, set()).add(init)
    return {table for table, inits in rows.items() if len(inits) > 1}


def _overrides(settings: Settings, sources: Iterable[Source]) -> dict[str, Any]:
    """As they were given, not as the words that `Settings` compares."""
    for source in sources:
        request = source.request
        if request and request.tables and request.scale == settings.scale:
            return dict(request.overrides)
    return {}


def _fill(settings: Settings, collection: Collection) -> _Filled:
    scale = settings.scale
    overrides = _overrides(settings, collection.sources)
    usual = _Usual(collection.records.values())
    own = tuple(Row(init=init, title=init) for init in usual.own_inits)
    filled = _Filled(settings, {})
    for table in load_tables(TABLES):
        if not lacks(table, scale):
            there = at_scale(table, scale)
            there = there.model_copy(update={"rows": (*there.rows, *own)})
            filled.tables[table.name] = note_changes(there, overrides, settings.smoke)
    planner = Planner(scale, NO_DATA, overrides, settings.smoke, {})
    records = _by_key(collection.records, usual)
    kinds = {(one.run.task, one.run.dataset) for one in collection.records.values()}
    for table in filled.tables.values():
        for cell in cells_of(table, scale, [ANY_SEED]):
            if (cell.column.task, cell.setting.dataset) in kinds:
                _put_records(filled, cell, planner, records, usual)
    for source in collection.sources:
        for line in source.lines:
            _put_line(filled, line)
    _drop_disputed(filled, collection)
    return filled


def _put_records(
    filled: _Filled,
    cell: Cell,
    planner: Planner,
    records: Mapping[str, Mapping[int, Record]],
    usual: _Usual,
) -> None:
    """Fill a cell, for all seeds that there are."""
    key, metric = cell.key, cell.column.metric
    for name in _keys(cell, planner, usual):
        for seed, record in records.get(name, {}).items():
            score = record.outcome.metrics.get(metric) if record.outcome else None
            state = state_of(record)
            if state == OK and score is None:
                state = f"failed: its record has no metric {metric!r}"
            place = (key.table, key.init, key.column, key.backbone)
            filled.put(place, _result(seed, record.id, score, state))


def _keys(cell: Cell, planner: Planner, usual: _Usual) -> Iterator[str]:
    """What a cell's run may be known by: with weights from a file, or trained by itself."""
    init = cell.key.init
    for inits in (
        *([{init: Upstream(sha256=FROM_A_FILE)}] if init in usual.from_files else []),
        *([{}] if init in INITS else []),
    ):
        planner.inits = inits
        run_id = planner.cell(cell).run_id
        if run_id is not None:
            yield _key(run_id, lambda other: planner.runs[other].run, {})


def _put_line(filled: _Filled, line: Mapping[str, Any]) -> None:
    table = filled.tables.get(line["table"])
    if line["scale"] != filled.settings.scale or table is None:
        return
    if all(row.init != line["init"] for row in table.rows):
        row = Row(init=line["init"], title=str(line.get("row") or line["init"]))
        filled.tables[table.name] = table.model_copy(update={"rows": (*table.rows, row)})
    wanted = (line["group"], line["column"], line["metric"])
    for index, column in enumerate(table.columns):
        if (column.group, column.title, column.metric) == wanted:
            metric = None
            if line["state"] == OK:
                metric = Metric(
                    value=line["value"],
                    unit=line.get("unit") or "",
                    higher_is_better=line.get("higher_is_better", True),
                )
            result = _result(line["seed"], line.get("run_id"), metric, line["state"])
            filled.put((table.name, line["init"], index, line["backbone"]), result)


def _result(seed: int, run_id: str | None, metric: Metric | None, state: str) -> SeedResult:
    if state == OK and metric is not None and not abs(metric.value) < float("inf"):
        return SeedResult(seed, run_id, None, f"not finite: {metric.value}")
    return SeedResult(seed, run_id, metric if state == OK else None, state)


def _drop_disputed(filled: _Filled, collection: Collection) -> None:
    """A run with several numbers has none in the tables; the reason names them."""
    disputed = {conflict.run_id: conflict for conflict in collection.conflicts}
    for seeds in filled.cells.values():
        for seed, result in seeds.items():
            if result.run_id in disputed:
                reason = f"conflict: {disputed[result.run_id]}"
                seeds[seed] = SeedResult(seed, result.run_id, None, reason)


def _table(filled: _Filled, name: str, collection: Collection) -> TableResult:
    """A table with every seed that any source has: what is not there is missing."""
    table, scale = filled.tables[name], filled.settings.scale
    seeds = _seeds(collection)
    results: dict[Place, Sequence[SeedResult]] = {}
    for cell in cells_of(table, scale, [ANY_SEED]):
        where: Place = (name, cell.key.init, cell.key.column, cell.key.backbone)
        there = filled.cells.get(where, {})
        results[where] = [there.get(seed, _missing(seed, where[1])) for seed in seeds]
    return build(table, scale, results, collection.records)


def _missing(seed: int, init: str) -> SeedResult:
    if init in INITS and INITS[init].imported:
        return SeedResult(seed, None, None, f"not available: only imported: --init {init}=FILE")
    return SeedResult(seed, None, None, "missing")


def _seeds(collection: Collection) -> list[int]:
    asked = [one.request.seeds for one in collection.sources if one.request]
    lines = {line["seed"] for source in collection.sources for line in source.lines}
    runs = {record.run.seed for record in collection.records.values()}
    return sorted(lines | runs | {seed for seeds in asked for seed in seeds})


class _Usual:
    """The content that most runs have seen: of a dataset, and of the file behind an init."""

    def __init__(self, records: Iterable[Record]) -> None:
        counts: dict[tuple[str, ...], Counter[str]] = {}
        self.from_files: set[str] = set()
        for record in records:
            for what, content in self._contents(record.run):
                counts.setdefault(what, Counter())[content] += 1
            if any(weights.run_id is None for weights in record.run.upstream.values()):
                self.from_files.add(record.run.init)
        self.own_inits = sorted(self.from_files - set(INITS))
        self._content = {what: found.most_common(1)[0][0] for what, found in counts.items()}

    def is_usual(self, run: Run, runs: Mapping[str, Record]) -> bool:
        """Whether a run, and all that it was made from, has seen what the others have."""
        if any(self._content[what] != content for what, content in self._contents(run)):
            return False
        made = [runs.get(weights.run_id or "") for weights in run.upstream.values()]
        return all(self.is_usual(one.run, runs) for one in made if one is not None)

    @staticmethod
    def _contents(run: Run) -> Iterator[tuple[tuple[str, ...], str]]:
        yield ("dataset", run.dataset), run.data_fingerprint
        for role, weights in run.upstream.items():
            if weights.sha256 is not None:
                yield (role, run.init, run.backbone), weights.sha256


def left_out(records: Mapping[str, Record]) -> list[str]:
    """Runs that no table shows since they have seen other data, or other weights of one name."""
    usual = _Usual(records.values())
    return [one.run.label for one in records.values() if not usual.is_usual(one.run, records)]


def _by_key(records: Mapping[str, Record], usual: _Usual) -> dict[str, dict[int, Record]]:
    """Records by what was run, and seed; one that went well goes before one that failed."""
    keys: dict[str, str] = {}
    found: dict[str, dict[int, Record]] = {}
    for run_id, record in records.items():
        if usual.is_usual(record.run, records):
            key = _key(run_id, lambda other: records[other].run, keys)
            seeds, seed = found.setdefault(key, {}), record.run.seed
            if seed not in seeds or seeds[seed].status != OK:
                seeds[seed] = record
    return found


def _key(run_id: str, find: Callable[[str], Run], keys: dict[str, str]) -> str:
    """The id that a run would have without seed and fingerprint, here and in what it is from."""
    if run_id not in keys:
        run, upstream = find(run_id), {}
        for role, weights in run.upstream.items():
            name = FROM_A_FILE
            if weights.run_id is not None:
                try:
                    name = _key(weights.run_id, find, keys)
                except KeyError:  # not among the records
                    name = weights.run_id
            upstream[role] = Upstream(run_id=name)
        same = {"data_fingerprint": "", "seed": ANY_SEED, "upstream": upstream}
        masked = run.model_copy(update=same)
        keys[run_id] = masked.id
    return keys[run_id]
