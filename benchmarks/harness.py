"""What the harness itself costs: planning, reading records, a finished table, one run of nothing.

    python benchmarks/harness.py [--runs 1000] [--records 10000] [--out harness.json]

Records are made up; nothing is trained. Prints wall-clock seconds, the least of three, beside their
budget: what else the machine does only adds to them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mae_bench.job import Job
from mae_bench.launchers import local
from mae_bench.plan import Plan, PlannedRun, load_tables, make_plan
from mae_bench.progress import Board
from mae_bench.records import Metric, Outcome, Provenance, Record, Run
from mae_bench.request import Request
from mae_bench.runner import Site, execute
from mae_bench.workspace import Workspace
from tasks import TASKS, data

REPEATS = 3
RUNS_OF_NOTHING = 10
METRICS = {
    "classification": ("top1",),
    "detection": ("box_ap", "mask_ap"),
    "segmentation": ("miou",),
}


def seconds_of(action: Callable[[], Any]) -> float:
    """Least wall-clock seconds of a call."""
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        found.append(time.perf_counter() - started)
    return min(found)


def made_up_record(run: Run) -> Record:
    """A good record, of about the size of a real one."""
    metrics = {
        name: Metric(value=50.0 + run.seed % 7, unit="%") for name in METRICS.get(run.task, ())
    }
    facts = {
        f"fact {index}": {"loaded": 100 + index, "names": ["a" * 20] * 4} for index in range(9)
    }
    provenance = Provenance(
        started="2025-01-31T12:00:00+00:00",
        seconds=60.0,
        phases={"prepare": 2.0, "train": 50.0, "evaluate": 8.0},
        peak_memory_mb=800.0,
        commit="0" * 40,
        dirty=False,
        packages={f"package-{index}": "1.2.3" for index in range(12)},
        hardware={"cpu": "made up"},
        recipe_sha256="0" * 64,
    )
    outcome = Outcome(metrics=metrics, images_per_second=100.0, facts=facts)
    return Record(id=run.id, run=run, status="ok", outcome=outcome, provenance=provenance)


def fill(workspace: Workspace, runs: list[Run]) -> None:
    """Leave runs as if they had been done."""
    workspace.create()
    for run in runs:
        folder = workspace.folder(run.id)
        folder.mkdir()
        config = {"id": run.id, "run": run.model_dump(mode="json")}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "record.json").write_text(made_up_record(run).model_dump_json(indent=1))
        points = [json.dumps({"step": step, "loss": 1 / (step + 1)}) for step in range(20)]
        (folder / "metrics.jsonl").write_text("\n".join(points) + "\n")


def plan_of(number: int, tables: str) -> tuple[Plan, int]:
    """A plan of at least `number` runs, and the seeds that it takes."""
    one = len(make_plan(load_tables([tables]), "mini", [0], Path("data")).runs)
    seeds = -(-number // one)
    return make_plan(load_tables([tables]), "mini", range(seeds), Path("data")), seeds


def command(folder: Path, *arguments: str) -> float:
    """Seconds of the command line in a process of its own, imports included."""
    line = [sys.executable, "-m", "mae_bench", *arguments]
    return seconds_of(lambda: subprocess.run(line, cwd=folder, check=True, capture_output=True))


def finished_table(number: int, folder: Path) -> dict[str, float]:
    """`reproduce` and `status` where every run is there."""
    plan, seeds = plan_of(number, "table6")
    work, names = folder / "work", ",".join(map(str, range(seeds)))
    fill(Workspace(work), [planned.run for planned in plan.runs])
    Request(
        tables=("table6",), scale="mini", seeds=tuple(range(seeds)), data_root=work / "data"
    ).save(Workspace(work))
    where = ("--seeds", names, "--work-dir", str(work))
    return {
        f"dry run of {len(plan.runs)} runs": command(
            folder, "reproduce", "table6", *where, "--dry-run"
        ),
        f"reproduce, all {len(plan.runs)} runs done": command(
            folder, "reproduce", "table6", *where, "--out", str(folder / "report")
        ),
        f"status of {len(plan.runs)} runs": command(folder, "status", "--work-dir", str(work)),
    }


def nothing(job: Job) -> Outcome:
    """A task that takes no time."""
    job.report("train", 1, 1)
    return Outcome(metrics={})


def execute_nothing(planned: PlannedRun, site: Site) -> Record:
    """Execute where the task is not known yet."""
    TASKS._entries["nothing"] = f"{Path(__file__).stem}:nothing"
    data.DATASETS["nothing"] = data.Dataset("imagefolder")
    return execute(planned, site)


def overhead(folder: Path) -> float:
    """Seconds of one run that does nothing, in its own process, engines imported before."""
    runs = tuple(
        PlannedRun(
            Run(
                task="nothing",
                task_version=1,
                dataset="nothing",
                data_fingerprint="0",
                backbone="none",
                init="none",
                recipe="none",
                recipe_values={},
                seed=seed,
            )
        )
        for seed in range(1 + RUNS_OF_NOTHING)
    )
    site, workspace = Site(folder, folder / "data"), Workspace(folder)
    workspace.create()
    data.DATASETS["nothing"] = data.Dataset("imagefolder")

    def go(part: tuple[PlannedRun, ...]) -> None:
        plan = Plan("mini", part)
        local(plan, site, 1, Board(plan, workspace, (), 1), work=execute_nothing)

    go(runs[:1])  # starts the server that the others are forked from
    started = time.perf_counter()
    go(runs[1:])
    seconds = (time.perf_counter() - started) / RUNS_OF_NOTHING
    assert all(record.status == "ok" for record in workspace.records().values())
    return seconds


def main(
    runs: Annotated[int, typer.Option(help="Runs of the finished table.")] = 1000,
    records: Annotated[int, typer.Option(help="Records to read.")] = 10_000,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Measure, print, and write JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan, _ = plan_of(records, "transfer")
        many = Workspace(folder / "many")
        fill(many, [planned.run for planned in plan.runs][:records])
        measured = {
            f"{records} records": (seconds_of(many.records), 2.0),
            "dry run of all tables": (command(folder, "reproduce", "all", "--dry-run"), 1.0),
        }
        budgets = (1.0, 2.0, 2.0)
        measured |= {
            what: (seconds, budget)
            for (what, seconds), budget in zip(
                finished_table(runs, folder).items(), budgets, strict=True
            )
        }
        measured["one run of nothing"] = (overhead(folder / "nothing"), 2.0)
    for what, (seconds, budget) in measured.items():
        typer.echo(f"{what:40} {seconds:7.3f} s   budget {budget:.0f} s")
    if out:
        figures = {what: {"seconds": s, "budget": b} for what, (s, b) in measured.items()}
        out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    typer.run(main)
