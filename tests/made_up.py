"""Made-up runs and records for tests of tables and reports; nothing here was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mae_bench.plan import CellKey, CellPlan
from mae_bench.records import Metric, Outcome, Provenance, Record, Run, Table

Score = Callable[[str, str, int], float]


def run(task: str = "detection", init: str = "random", seed: int = 0, **fields: Any) -> Run:
    defaults = {
        "task_version": 1,
        "dataset": "mini-coco",
        "data_fingerprint": "0123456789ab",
        "backbone": "vit_mini_patch8",
        "recipe": "detection/mini",
        "recipe_values": {"solver": {"base_lr": 1e-3, "iterations": 300}},
    }
    return Run(task=task, init=init, seed=seed, **{**defaults, **fields})


def provenance(**fields: Any) -> Provenance:
    defaults = {
        "started": "2025-01-31T12:00:00+00:00",
        "seconds": 61.25,
        "peak_memory_mb": 1024.5,
        "commit": "0123456789abcdef",
        "dirty": False,
        "packages": {"torch": "2.14.0"},
        "hardware": {"cpu": "two cores"},
        "recipe_sha256": "00ff" * 16,
    }
    return Provenance(**{**defaults, **fields})


def record(which: Run, scores: Mapping[str, float | Metric] | None = None, **fields: Any) -> Record:
    """A good record of these scores (in "%" unless a Metric is given)."""
    metrics = {
        name: score if isinstance(score, Metric) else Metric(value=score, unit="%")
        for name, score in (scores or {}).items()
    }
    defaults = {
        "id": which.id,
        "run": which,
        "status": "ok",
        "outcome": Outcome(metrics=metrics, images_per_second=24.5),
        "provenance": provenance(),
    }
    return Record(**{**defaults, **fields})


def world(
    tables: Iterable[Table], seeds: Sequence[int], score: Score, imported: Iterable[str] = ()
) -> tuple[dict[CellKey, CellPlan], dict[str, Record]]:
    """Cells of these tables at mini scale, each filled by a good record.

    Args:
        score: (init, metric, seed) -> value.
        imported: inits that the scale cannot have.
    """
    cells: dict[CellKey, CellPlan] = {}
    scores: dict[str, tuple[Run, dict[str, float | Metric]]] = {}
    for table in tables:
        for index, column in enumerate(table.columns):
            setting = column.scales["mini"]
            for row in table.rows:
                for seed in seeds:
                    key = CellKey(table.name, row.init, index, setting.backbones[0], seed)
                    if row.init in imported:
                        cells[key] = CellPlan(None, f"only imported: give --init {row.init}=FILE")
                        continue
                    which = run(
                        column.task, row.init, seed, dataset=setting.dataset, recipe=setting.recipe
                    )
                    which = which.model_copy(
                        update={"recipe_values": {"name": setting.recipe, **which.recipe_values}}
                    )
                    cells[key] = CellPlan(which.id)
                    metric = Metric(value=score(row.init, column.metric, seed), unit="%")
                    scores.setdefault(which.id, (which, {}))[1][column.metric] = metric
    return cells, {run_id: record(which, found) for run_id, (which, found) in scores.items()}
