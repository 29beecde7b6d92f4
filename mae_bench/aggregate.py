"""Records and published references -> tables: values, spread, ties, verdicts, what is missing.

Nothing here prints; `mae_bench.report` turns a `TableResult` into words. No torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mae_bench import published, significance
from mae_bench.deviations import deviations
from mae_bench.plan import CellPlan
from mae_bench.published import Comparison
from mae_bench.records import Column, Metric, Record, Reference, Row, Scale, Setting, Table
from mae_bench.selection import CellKey
from mae_bench.significance import Difference

OK = "ok"
# The row that the others are compared with: the first of these that a table has.
SUBJECTS = ("mae-norm-pixel", "mae-pixel", "mae-pixel/baseline")
# A verdict's reason names that many deviations.
MOST_DEVIATIONS = 3
Runs = Mapping[str, Record]


@dataclass(frozen=True)
class SeedResult:
    """One run's share in a cell: its score, or in `state` why there is none.

    Attributes:
        metric: finite score at full precision; None unless `state` is "ok".
        state: "ok", "missing", "running", "blocked", "failed: ...", "not finite: ..." or
            "not available: ...".
    """

    seed: int
    run_id: str | None
    metric: Metric | None
    state: str


@dataclass(frozen=True)
class Cell:
    """One init under one column: what every asked-for seed gave, beside the published numbers.

    Attributes:
        ties: letters shared with the cells of the column that it is not told apart from, "a" for
            the best mean (`significance.tie_groups`); "" when it is incomplete or nothing is
            known about the noise.
        best: in the best group of a column without holes, where not all are in that group.
        comparison: verdict beside the paper's number; None at mini scale or without a number.
    """

    seeds: tuple[SeedResult, ...]
    published: tuple[Reference, ...] = ()
    ties: str = ""
    best: bool = False
    comparison: Comparison | None = None

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(result.metric for result in self.seeds if result.metric)

    @cached_property
    def values(self) -> tuple[float, ...]:
        """Scores that are there, in the order of the seeds."""
        return tuple(metric.value for metric in self.metrics)

    @cached_property
    def complete(self) -> bool:
        return bool(self.seeds) and len(self.values) == len(self.seeds)

    @cached_property
    def mean(self) -> float | None:
        """Mean over all asked-for seeds; None when one of them is not there."""
        return statistics.fmean(self.values) if self.complete else None

    @cached_property
    def sd(self) -> float | None:
        """Sample standard deviation; None when incomplete or from a single seed."""
        return statistics.stdev(self.values) if self.complete and len(self.values) > 1 else None

    @cached_property
    def states(self) -> tuple[str, ...]:
        """The distinct reasons for what is not there; empty when complete."""
        if not self.seeds:
            return ("not asked for",)
        return tuple(dict.fromkeys(result.state for result in self.seeds if result.state != OK))

    @cached_property
    def not_available(self) -> bool:
        """True when this scale cannot have the cell, whatever is run."""
        return any(state.startswith("not available") for state in self.states)


@dataclass(frozen=True)
class ColumnResult:
    """A column of a table for one backbone.

    Attributes:
        setting: None where the scale lacks the column.
        unit, higher_is_better: as the task says; the published unit as long as nothing is run.
        minimum_difference: what the tie groups could have found here; None without spreads.
        several_groups: whether any cells of it are told apart.
    """

    column: Column
    setting: Setting | None
    backbone: str
    unit: str
    higher_is_better: bool
    minimum_difference: float | None = None
    several_groups: bool = False


@dataclass(frozen=True)
class RowResult:
    """A row of a table; `cells` are in the order of the table's columns."""

    row: Row
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Contrast:
    """What one row has more than another in one column (index into `TableResult.columns`)."""

    subject: Row
    other: Row
    column: int
    difference: Difference


@dataclass(frozen=True)
class TableResult:
    """A table as measured: columns x backbones side by side, rows by init."""

    table: Table
    scale: Scale
    columns: tuple[ColumnResult, ...]
    rows: tuple[RowResult, ...]

    @property
    def num_seeds(self) -> int:
        """Seeds asked for per cell (the largest number, should cells differ)."""
        return max((len(cell.seeds) for row in self.rows for cell in row.cells), default=0)

    @property
    def contrasts(self) -> tuple[Contrast, ...]:
        """MAE's row (see `SUBJECTS`) minus each other row, column by column, where both are."""
        by_init = {row.row.init: row for row in self.rows}
        subject = next((by_init[init] for init in SUBJECTS if init in by_init), None)
        if subject is None:
            return ()
        return tuple(
            Contrast(subject.row, row.row, index, significance.difference(ours.values, its.values))
            for row in self.rows
            if row is not subject
            for index, (ours, its) in enumerate(zip(subject.cells, row.cells, strict=True))
            if ours.complete and its.complete
        )


def aggregate(
    tables: Sequence[Table],
    scale: Scale,
    cells: Mapping[CellKey, CellPlan],
    records: Runs,
    states: Mapping[str, str],
) -> list[TableResult]:
    """Build the tables.

    Args:
        cells: which run fills which cell; the seeds asked for are the seeds named here.
        records: run id -> record, of whatever has finished or failed (pretraining runs too).
        states: run id -> where it stands ("missing", "running", "blocked", "failed: ..."), for
            runs without a good record.
    """
    results: dict[tuple[str, str, int, str], list[SeedResult]] = {}
    metrics = {table.name: [column.metric for column in table.columns] for table in tables}
    for key, plan in sorted(cells.items(), key=lambda item: item[0].seed):
        if key.table in metrics:
            metric = metrics[key.table][key.column]
            result = _seed_result(key.seed, plan, metric, records, states)
            results.setdefault(key[:4], []).append(result)
    return [build(table, scale, results, records) for table in tables]


def _seed_result(
    seed: int,
    plan: CellPlan,
    metric: str,
    records: Runs,
    states: Mapping[str, str],
) -> SeedResult:
    if plan.run_id is None:
        return SeedResult(seed, None, None, f"not available: {plan.reason}")
    record = records.get(plan.run_id)
    if record is None:
        return SeedResult(seed, plan.run_id, None, states.get(plan.run_id, "missing"))
    if record.status != OK or record.outcome is None:
        failed = f"failed: {record.error or 'no reason recorded'}"
        return SeedResult(seed, plan.run_id, None, states.get(plan.run_id, failed))
    score = record.outcome.metrics.get(metric)
    if score is None:
        return SeedResult(seed, plan.run_id, None, f"failed: its record has no metric {metric!r}")
    if not math.isfinite(score.value):
        return SeedResult(seed, plan.run_id, None, f"not finite: {score.value}")
    return SeedResult(seed, plan.run_id, score, OK)


def build(
    table: Table,
    scale: Scale,
    results: Mapping[tuple[str, str, int, str], Sequence[SeedResult]],
    records: Runs,
) -> TableResult:
    """Build one table from its seeds' results, by (table, init, column, backbone)."""
    settings = [column.scales.get(scale) for column in table.columns]
    backbones = dict.fromkeys(name for setting in settings if setting for name in setting.backbones)
    columns, grid = [], []
    for index, (column, setting) in enumerate(zip(table.columns, settings, strict=True)):
        for backbone in setting.backbones if setting else backbones:
            found = [
                tuple(results.get((table.name, row.init, index, backbone), ()))
                for row in table.rows
            ]
            references = [published.published(row, column) for row in table.rows]
            unit, higher = _unit(found, references)
            cells = [
                Cell(_in_unit(seeds, unit, higher), its)
                for seeds, its in zip(found, references, strict=True)
            ]
            if scale == "paper" and setting is not None:
                cells = [_compared(cell, backbone, setting, records) for cell in cells]
            ranked = _ranked(cells, higher)
            grid.append(ranked)
            smallest = significance.minimum_difference(_samples(cells))
            apart = len({cell.ties for cell in ranked if cell.complete}) > 1
            columns.append(ColumnResult(column, setting, backbone, unit, higher, smallest, apart))
    rows = tuple(
        RowResult(row, tuple(cells[index] for cells in grid))
        for index, row in enumerate(table.rows)
    )
    return TableResult(table, scale, tuple(columns), rows)


def _unit(
    found: Sequence[Sequence[SeedResult]], references: Sequence[Sequence[Reference]]
) -> tuple[str, bool]:
    """Unit and direction of a column: of its first score, else as published."""
    for seeds in found:
        for result in seeds:
            if result.metric:
                return result.metric.unit, result.metric.higher_is_better
    return next((its[0].unit for its in references if its), ""), True


def _in_unit(seeds: Sequence[SeedResult], unit: str, higher: bool) -> tuple[SeedResult, ...]:
    """Refuse scores that cannot stand in one column: of another unit, or direction."""
    wrong = f"failed: its score is not in {unit!r} as the others of the column"
    return tuple(
        replace(result, metric=None, state=wrong)
        if result.metric and (result.metric.unit, result.metric.higher_is_better) != (unit, higher)
        else result
        for result in seeds
    )


def _compared(cell: Cell, backbone: str, setting: Setting, records: Runs) -> Cell:
    reference = published.of_backbone(cell.published, backbone, setting)
    if reference is None:
        return cell
    found: dict[str, None] = {}
    for result in cell.seeds:
        record = records.get(result.run_id or "")
        if record is not None:
            found.update(dict.fromkeys(deviations(record.run, setting, records)))
    named = [*list(found)[:MOST_DEVIATIONS], *(["..."] if len(found) > MOST_DEVIATIONS else [])]
    values = cell.values if cell.complete else ()
    reason = "" if cell.complete else cell.states[0]
    verdict = published.compare(reference, values, reason, "; ".join(named) or None)
    return replace(cell, comparison=verdict)


def _samples(cells: Sequence[Cell]) -> list[tuple[float, ...]]:
    return [cell.values for cell in cells if cell.complete]


def _ranked(cells: Sequence[Cell], higher_is_better: bool) -> list[Cell]:
    """Give the complete cells of a column their tie groups, and mark the best.

    A cell that may still come could be the best one, so that a column with a hole has no mark;
    cells that the scale cannot have do not count.
    """
    sign = 1 if higher_is_better else -1
    samples = [[sign * value for value in values] for values in _samples(cells)]
    letters = iter(significance.tie_groups(samples))
    ranked = [replace(cell, ties=next(letters)) if cell.complete else cell for cell in cells]
    possible = [cell for cell in ranked if not cell.not_available]
    leading = [cell for cell in possible if "a" in cell.ties]
    if not all(cell.complete for cell in possible) or len(leading) == len(possible):
        return ranked
    return [replace(cell, best="a" in cell.ties) for cell in ranked]
