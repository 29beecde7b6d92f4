"""Records and published references -> tables: values, mean and spread, what is missing.

Nothing here prints; `mae_bench.report` turns a `TableResult` into words. No torch.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import configs
from mae_bench.plan import CellPlan
from mae_bench.records import Column, Metric, Record, Reference, Row, Scale, Setting, Table
from mae_bench.selection import CellKey

OK = "ok"
SIGNIFICANCE = 0.05
# Published numbers name a method as the paper does; every other init has the same name there.
PAPER_METHODS = {"supervised": "supervised-in1k", "random": "random-init"}


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
    """One init under one column: what every asked-for seed gave, beside the published numbers."""

    seeds: tuple[SeedResult, ...]
    published: tuple[Reference, ...] = ()
    best: bool = False

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(result.metric for result in self.seeds if result.metric)

    @property
    def values(self) -> tuple[float, ...]:
        """Scores that are there, in the order of the seeds."""
        return tuple(metric.value for metric in self.metrics)

    @property
    def complete(self) -> bool:
        return bool(self.seeds) and len(self.values) == len(self.seeds)

    @property
    def mean(self) -> float | None:
        """Mean over all asked-for seeds; None when one of them is not there."""
        return statistics.fmean(self.values) if self.complete else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None when incomplete or from a single seed."""
        return statistics.stdev(self.values) if self.complete and len(self.values) > 1 else None

    @property
    def states(self) -> tuple[str, ...]:
        """The distinct reasons for what is not there; empty when complete."""
        if not self.seeds:
            return ("not asked for",)
        return tuple(dict.fromkeys(result.state for result in self.seeds if result.state != OK))

    @property
    def not_available(self) -> bool:
        """True when this scale cannot have the cell, whatever is run."""
        return any(state.startswith("not available") for state in self.states)


@dataclass(frozen=True)
class ColumnResult:
    """A column of a table for one backbone; `setting` is None where the scale lacks the column."""

    column: Column
    setting: Setting | None
    backbone: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class RowResult:
    """A row of a table; `cells` are in the order of the table's columns."""

    row: Row
    cells: tuple[Cell, ...]


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


@cache
def published_results() -> tuple[Reference, ...]:
    """Return every number of configs/tables/paper_results.json."""
    path = Path(configs.__path__[0]) / "tables" / "paper_results.json"
    return tuple(
        Reference.model_validate(entry) for entry in json.loads(path.read_text())["records"]
    )


def aggregate(
    tables: Sequence[Table],
    scale: Scale,
    cells: Mapping[CellKey, CellPlan],
    records: Mapping[str, Record],
    states: Mapping[str, str],
) -> list[TableResult]:
    """Build the tables.

    Args:
        cells: which run fills which cell; the seeds asked for are the seeds named here.
        records: run id -> record, of whatever has finished or failed.
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
    return [_table(table, scale, results) for table in tables]


def _seed_result(
    seed: int,
    plan: CellPlan,
    metric: str,
    records: Mapping[str, Record],
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


def _table(
    table: Table, scale: Scale, results: Mapping[tuple[str, str, int, str], Sequence[SeedResult]]
) -> TableResult:
    settings = [column.scales.get(scale) for column in table.columns]
    backbones = dict.fromkeys(name for setting in settings if setting for name in setting.backbones)
    columns, grid = [], []
    for index, (column, setting) in enumerate(zip(table.columns, settings, strict=True)):
        for backbone in setting.backbones if setting else backbones:
            cells = [
                Cell(
                    tuple(results.get((table.name, row.init, index, backbone), ())),
                    _published(row, column),
                )
                for row in table.rows
            ]
            found = [metric for cell in cells for metric in cell.metrics]
            unit = found[0].unit if found else ""
            higher = found[0].higher_is_better if found else True
            columns.append(ColumnResult(column, setting, backbone, unit, higher))
            grid.append(_mark_best(cells, higher))
    rows = tuple(
        RowResult(row, tuple(cells[index] for cells in grid))
        for index, row in enumerate(table.rows)
    )
    return TableResult(table, scale, tuple(columns), rows)


def _published(row: Row, column: Column) -> tuple[Reference, ...]:
    """The paper's values for an init, one per backbone, in the paper's order."""
    if column.published is None:
        return ()
    method = row.init.partition("/")[0]
    wanted = {**column.published.model_dump(), "method": PAPER_METHODS.get(method, method)}
    if row.ablation is not None:
        wanted["ablation"] = row.ablation
    return tuple(
        reference
        for reference in published_results()
        if all(getattr(reference, name) == value for name, value in wanted.items())
    )


def _mark_best(cells: Sequence[Cell], higher_is_better: bool) -> list[Cell]:
    """Mark the best cell of a column when it is separated from the runner-up.

    A cell that may still come could be the best one, so that a column with a hole has no mark;
    cells that the scale cannot have do not count.
    """
    possible = [cell for cell in cells if not cell.not_available]
    if len(possible) < 2 or not all(cell.complete and cell.sd is not None for cell in possible):
        return list(cells)
    sign = 1 if higher_is_better else -1
    best, second = sorted(possible, key=lambda cell: -sign * (cell.mean or 0.0))[:2]
    if not _separated(best.values, second.values):
        return list(cells)
    return [replace(cell, best=cell is best) for cell in cells]


def _separated(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the means of two samples differ by Welch's t-test."""
    return welch_p(first, second) < SIGNIFICANCE


def welch_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value of Welch's t-test; 1 when neither sample has a spread to measure against.

    Agrees with `scipy.stats.ttest_ind(..., equal_var=False)`, whose import takes seconds.
    """
    from scipy.special import stdtr  # not needed with one seed

    shares = [statistics.variance(values) / len(values) for values in (first, second)]
    if not any(shares):
        return 1.0
    t = (statistics.fmean(first) - statistics.fmean(second)) / math.sqrt(sum(shares))
    freedom = sum(shares) ** 2 / sum(
        share**2 / (len(values) - 1) for share, values in zip(shares, (first, second), strict=True)
    )
    return float(2 * stdtr(freedom, -abs(t)))
