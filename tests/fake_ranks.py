"""The fake task over several processes: each adds its part to every step, as in DDP."""

from __future__ import annotations

import json
import os
import random
import time

import fake_tasks
import torch
import torch.distributed as dist

from mae_bench.job import STATE_FILE, Job, Stopped, write_atomically
from mae_bench.plan import PlannedRun
from mae_bench.records import Metric, Outcome, Record
from mae_bench.runner import Site, execute
from tasks import TASKS, distributed


def run(job: Job) -> Outcome:
    """Sum draws that all ranks share out among themselves; the state is rank 0's.

    `raising_rank` and `dying_rank` in the recipe go wrong after half of the steps.
    """
    recipe = job.recipe["fake"]
    distributed.start()
    rank, size = distributed.rank(), distributed.world_size()
    state = job.folder / STATE_FILE
    start, value = json.loads(state.read_text()) if state.is_file() else (0, 0.0)
    start, value = distributed.from_main((start, value))
    for step in range(start, recipe["steps"]):
        if step == recipe["steps"] // 2:
            _go_wrong(recipe, rank)
        draws = [random.Random(f"{job.run.seed} {step} {part}").random() for part in range(4)]
        shared = torch.tensor(sum(draws[rank::size]), dtype=torch.float64)
        if size > 1:
            dist.all_reduce(shared)
        value += shared.item()
        if distributed.is_main():
            write_atomically(state, json.dumps([step + 1, value]))
            job.report("train", step + 1, recipe["steps"], loss=value)
        if distributed.mean({"stop": float(job.should_stop())})["stop"]:
            raise Stopped
        time.sleep(recipe["seconds"])
    nodes = distributed.gather([os.environ.get("SLURMD_NODENAME", "here")])
    if distributed.is_main():
        time.sleep(0.3)  # writing takes its time, and the others do not wait for it
        (job.folder / "weights.bin").write_bytes(b"weights")
    return Outcome(
        metrics={"score": Metric(value=value, unit="%")},
        checkpoint="weights.bin",
        facts={"world_size": size, "nodes": nodes},
    )


def _go_wrong(recipe: dict, rank: int) -> None:
    if recipe.get("raising_rank") == rank:
        raise ValueError(f"rank {rank} cannot go on")
    if recipe.get("dying_rank") == rank:
        os.kill(os.getpid(), 9)


def register() -> None:
    """Make this the fake task of this process."""
    fake_tasks.register()
    TASKS._entries["fake"] = "fake_ranks:run"


def execute_shared(planned: PlannedRun, site: Site) -> Record | None:
    """Execute in a process that knows no fake task yet."""
    register()
    return execute(planned, site)


def execute_alone(planned: PlannedRun, site: Site) -> Record | None:
    """Execute the fake task of one process in one that knows none yet."""
    fake_tasks.register()
    return execute(planned, site)
