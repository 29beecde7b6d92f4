"""Work folders that look as if runs had been done: planned runs with made-up scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from made_up import provenance

from mae_bench.records import Metric, Outcome, Record, Run, content_hash
from mae_bench.request import Request
from mae_bench.workspace import Workspace

METRICS = ("box_ap", "mask_ap", "miou", "top1", "hours", "speedup", "val_loss", "mean_per_class")
SCORES = {"pretraining": ("val_loss",), "tokenizer": ("psnr",)}


def usual_score(run: Run, metric: str) -> float:
    """Inits, metrics and seeds apart, and the same in every folder."""
    return len(run.init) + 10.0 * (1 + METRICS.index(metric) if metric in METRICS else 0) + run.seed


def record_of(run: Run, score: Callable[[Run, str], float] = usual_score, **fields: Any) -> Record:
    names = SCORES.get(run.task, METRICS)
    weights = {role: weights.sha256 or "ab" * 32 for role, weights in run.upstream.items()}
    made = provenance(
        recipe_sha256=content_hash(run.recipe_values), weights_sha256=weights, command="mae-bench"
    )
    content = {
        "id": run.id,
        "run": run,
        "status": "ok",
        "outcome": Outcome(metrics={n: Metric(value=score(run, n), unit="%") for n in names}),
        "provenance": made,
    }
    return Record(**{**content, **fields})


def fill(
    root: Path,
    tables: tuple[str, ...] = ("table5",),
    seeds: tuple[int, ...] = (0, 1),
    score: Callable[[Run, str], float] = usual_score,
    **options: Any,
) -> dict[str, Record]:
    """Make a work folder in which a request is done; returns its records by run id."""
    defaults: Mapping[str, Any] = {"scale": "mini", "data_root": root / "data"}
    request = Request(tables=tables, seeds=seeds, **{**defaults, **options})
    workspace = Workspace(root)
    workspace.create()
    request.save(workspace)
    records = {}
    for planned in request.plan().runs:
        record = record_of(planned.run, score)
        put(root, record)
        records[record.id] = record
    return records


def put(root: Path, record: Record) -> Path:
    """Write one record where its run would have left it."""
    folder = root / "runs" / record.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"run": record.run.model_dump(mode="json")}))
    path = folder / "record.json"
    path.write_text(record.model_dump_json(indent=1))
    return path
