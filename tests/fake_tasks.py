"""A task that takes no time, behaves as its recipe says, and resumes; for tests of the harness."""

from __future__ import annotations

import errno
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from mae_bench.job import STATE_FILE, Job, Stopped, write_atomically
from mae_bench.launchers import local
from mae_bench.plan import Plan, PlannedRun
from mae_bench.progress import Board
from mae_bench.records import Metric, Outcome, Record, Run, Upstream
from mae_bench.runner import Site, execute
from mae_bench.workspace import Workspace
from tasks import TASKS, data

DEFAULTS = {
    "steps": 3,
    "seconds": 0.0,
    "raises": None,
    "signal": None,
    "aborts": False,
    "full_at": None,
}


def register() -> None:
    """Make the fake task and its data known in this process."""
    TASKS._entries["fake"] = "fake_tasks:run"
    data.DATASETS["fake-data"] = data.Dataset("imagefolder")


def run(job: Job) -> Outcome:
    """Walk at random; every step is a checkpoint, and leaves a line in steps.txt."""
    recipe = job.recipe["fake"]
    if recipe["raises"]:
        raise ValueError(recipe["raises"])
    if recipe["signal"]:
        os.kill(os.getpid(), recipe["signal"])
    if recipe["aborts"]:
        print("about to abort", flush=True)
        os.abort()
    _allocate(job)
    checkpoint = job.folder / STATE_FILE
    start, value = json.loads(checkpoint.read_text()) if checkpoint.is_file() else (0, 0.0)
    for step in range(start, recipe["steps"]):
        if step == recipe["full_at"] and not (job.data_root / "room").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        value += random.Random(f"{job.run.seed} {step}").random()
        write_atomically(checkpoint, json.dumps([step + 1, value]))
        with (job.folder / "steps.txt").open("a") as file:
            file.write(f"{step}\n")
        job.report("train", step + 1, recipe["steps"], loss=value)
        if job.should_stop():
            raise Stopped
        time.sleep(recipe["seconds"])
    upstream = sum(len(path.read_bytes()) for path in job.upstream.values())
    (job.folder / "weights.bin").write_bytes(b"weights")
    return Outcome(
        metrics={"score": Metric(value=value + upstream, unit="%")},
        checkpoint="weights.bin",
        facts={"omp_threads": os.environ.get("OMP_NUM_THREADS"), "draw": random.random()},
    )


def _allocate(job: Job) -> None:
    """Fail as torch does when more samples come at once than the recipe says that a GPU holds."""
    solver = job.recipe.get("solver", {})
    samples = solver.get("batch_size", 1) // job.accumulation
    if samples > solver.get("fits", samples):
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 TiB.\nMore text.")


def execute_fake(planned: PlannedRun, site: Site) -> Record | None:
    """Execute in a worker process, which knows no fake task yet."""
    register()
    return execute(planned, site, wait=False)


def fake_run(
    name: str,
    needs: tuple[PlannedRun, ...] = (),
    solver: dict[str, int] | None = None,
    seed: int = 0,
    **recipe: Any,
) -> PlannedRun:
    """Return a planned run of the fake task; `name` becomes its init."""
    values: dict[str, object] = {"fake": {**DEFAULTS, **recipe}}
    if solver:
        values["solver"] = solver
    upstream = {str(index): Upstream(run_id=need.run.id) for index, need in enumerate(needs)}
    fake = Run(
        task="fake",
        task_version=1,
        dataset="fake-data",
        data_fingerprint="0",
        backbone="none",
        init=name,
        recipe="fake/fake",
        recipe_values=values,
        upstream=upstream,
        seed=seed,
    )
    return PlannedRun(fake, tuple(need.run.id for need in needs))


def fake_plan(*runs: PlannedRun) -> Plan:
    """Return a plan of these runs, all asked for."""
    return Plan("mini", runs, asked=tuple(planned.run.id for planned in runs))


def launch(plan: Plan, work_dir: Path, workers: int = 2, retry_failed: bool = False) -> Board:
    """Execute a plan's missing runs; returns the board that watched."""
    register()
    workspace = Workspace(work_dir)
    workspace.create()
    if retry_failed:
        workspace.forgive(planned.run.id for planned in plan.runs)
    done = [run_id for run_id, state in workspace.states(plan).items() if state == "ok"]
    board = Board(plan, workspace, done, workers)
    local(plan, Site(work_dir, work_dir / "data"), workers, board, done, work=execute_fake)
    return board


STEPS, STEP_SECONDS = 150, 0.02
LONG = fake_run("long", steps=STEPS, seconds=STEP_SECONDS)
AFTER = fake_run("after", needs=(LONG,))

if __name__ == "__main__":
    # As a program: two runs, the second needs the first, which takes 3 seconds. To be killed.
    import fake_tasks

    try:
        fake_tasks.launch(fake_plan(LONG, AFTER), Path(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(130)
