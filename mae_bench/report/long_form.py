"""results.csv and results.json: one line per cell and seed, the same fields in both.

What each field means is in docs/records.md.

In the CSV, text that a spreadsheet would run as a formula has an apostrophe before it, and control
characters are replaced by a mark. To load:

    text = {"run_id": str, "commit": str}  # digits only, one of these would turn into a number
    pandas.read_csv("results.csv", dtype=text)  # pandas 2: float_precision="round_trip" too
    pandas.DataFrame(json.loads(Path("results.json").read_text()))
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mae_bench.aggregate import Cell, ColumnResult, RowResult, SeedResult, TableResult
from mae_bench.records import Record
from mae_bench.report import wording

FIELDS = (
    *("table", "scale", "init", "row", "group", "column"),
    *("task", "dataset", "backbone", "recipe", "metric"),
    *("seed", "run_id", "state", "value", "unit", "higher_is_better"),
    *("mean", "sd", "num_seeds", "ties", "paper", "difference", "tolerance", "verdict"),
    *("seconds", "peak_memory_mb", "images_per_second", "started", "commit"),
    "paper_at_paper_scale",
)
# The wide forms count in East Asian spreadsheets; white space before any of them is passed over.
FORMULA = re.compile(r"\s|[=+@\uff1d\uff0b\uff0d\uff20-]")


def lines(
    results: Iterable[TableResult], records: Mapping[str, Record]
) -> Iterator[dict[str, Any]]:
    """Yield one flat dictionary per cell and seed, in the tables' order."""
    for result in results:
        for row in result.rows:
            for column, cell in zip(result.columns, row.cells, strict=True):
                about_cell = _cell(cell)
                for seed in cell.seeds:
                    yield {
                        **_place(result, row, column),
                        **_number(column, seed),
                        **about_cell,
                        **_run(records.get(seed.run_id or "")),
                        "paper_at_paper_scale": _paper(cell),
                    }


def render_json(results: Iterable[TableResult], records: Mapping[str, Record]) -> str:
    """Return a JSON list of the lines."""
    return json.dumps(list(lines(results, records)), indent=1, allow_nan=False) + "\n"


def render_csv(results: Iterable[TableResult], records: Mapping[str, Record]) -> str:
    """Return the lines as CSV with a header."""
    file = io.StringIO()
    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in lines(results, records):
        writer.writerow({name: harmless(value) for name, value in row.items()})
    return file.getvalue()


def _place(result: TableResult, row: RowResult, column: ColumnResult) -> dict[str, Any]:
    setting = column.setting
    return {
        "table": result.table.name,
        "scale": result.scale,
        "init": row.row.init,
        "row": row.row.title,
        "group": column.column.group,
        "column": column.column.title,
        "task": column.column.task,
        "dataset": setting.dataset if setting else None,
        "backbone": column.backbone,
        "recipe": setting.recipe if setting else None,
        "metric": column.column.metric,
    }


def _number(column: ColumnResult, seed: SeedResult) -> dict[str, Any]:
    return {
        "seed": seed.seed,
        "run_id": seed.run_id,
        "state": seed.state,
        "value": seed.metric.value if seed.metric else None,
        "unit": column.unit,
        "higher_is_better": column.higher_is_better,
    }


def _cell(cell: Cell) -> dict[str, Any]:
    found = cell.comparison
    return {
        "mean": cell.mean,
        "sd": cell.sd,
        "num_seeds": len(cell.seeds),
        "ties": cell.ties,
        "paper": found.paper if found else None,
        "difference": found.difference if found else None,
        "tolerance": found.tolerance.value if found and found.tolerance else None,
        "verdict": found.verdict if found else None,
    }


def _run(record: Record | None) -> dict[str, Any]:
    provenance = record.provenance if record else None
    speed = record.outcome.images_per_second if record and record.outcome else None
    return {
        "seconds": _finite(provenance.seconds if provenance else None),
        "peak_memory_mb": _finite(provenance.peak_memory_mb if provenance else None),
        "images_per_second": _finite(speed),
        "started": provenance.started if provenance else None,
        "commit": provenance.commit if provenance else None,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _paper(cell: Cell) -> str:
    return "; ".join(
        f"{wording.paper_backbone(reference.backbone)} {reference.value}"
        for reference in cell.published
        if reference.value is not None
    )


def harmless(value: Any) -> Any:
    """A value as a cell that a spreadsheet shows and does not run."""
    if not isinstance(value, str):
        return value
    text = wording.printable(value)
    return f"'{text}" if FORMULA.match(text) else text
