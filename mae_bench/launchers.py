"""Where runs are executed. Here: on this machine, each in a process of its own.

Processes are forked from a server that has imported the engines already (60 ms and 16 MB a run
instead of 10 s and 800 MB, measured), yet a crash or the out-of-memory killer takes one run only.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Mapping
from functools import partial
from multiprocessing.context import ForkServerContext

from mae_bench import devices
from mae_bench.crew import Crew, Monitor
from mae_bench.errors import naming_full_disk
from mae_bench.plan import Plan, PlannedRun
from mae_bench.preload import VARIABLE
from mae_bench.runner import ENVIRONMENT, Site, execute
from mae_bench.worker import Execute, Worker
from tasks import data

execute_if_free = partial(execute, wait=False)


def local(
    plan: Plan,
    site: Site,
    workers: int,
    monitor: Monitor,
    done: Iterable[str] = (),
    seconds: Mapping[str, float] | None = None,
    work: Execute = execute_if_free,
    memory: Mapping[str, float] | None = None,
    gpus: devices.Devices | None = None,
) -> None:
    """Execute the runs that have no record, `workers` at a time. Returns when no more can run.

    Other commands may do so in the same work folder: each run is done by one of them. Runs that
    failed before are not repeated (`Workspace.forgive` has them repeated).

    Args:
        done: ids of runs that are finished.
        seconds: run id -> expected seconds, as far as known.
        work: what a run's process does.
        memory: run id -> expected peak of its GPU memory in MB, as far as known.
        gpus: hands out the GPUs; by default each run gets one, if there are any.

    Raises:
        UserError: a dataset that cannot be prepared, before any training; a full disk.
        KeyboardInterrupt: asked to stop by Ctrl-C or SIGTERM. Once: the runs that were going have
            saved their states; twice: they were killed. A later call continues either way.
    """
    finished = set(done)
    todo = [planned for planned in plan.runs if planned.run.id not in finished]
    crew = Crew(
        plan,
        site,
        workers,
        monitor,
        done=finished,
        seconds=seconds or {},
        memory=memory or {},
        gpus=gpus or devices.Devices(devices.find()),
    )
    if not crew.has_work:
        return
    context = _fork_server({planned.run.task for planned in todo})
    for dataset in dict.fromkeys(planned.run.dataset for planned in todo):
        monitor.preparing(dataset)
        data.prepare(dataset, site.data_root)

    def start(planned: PlannedRun, names: tuple[str, ...]) -> Worker:
        return Worker.start(context, work, planned, site, names)

    with naming_full_disk(site.work_dir), crew.heeding_signals():
        crew.run(start)


def _fork_server(tasks: set[str]) -> ForkServerContext:
    """Start the server; it imports while the caller goes on. Workers inherit its environment."""
    os.environ.update(ENVIRONMENT)
    os.environ[VARIABLE] = " ".join(sorted(tasks))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mae_bench.preload"])
    from multiprocessing.forkserver import ensure_running

    ensure_running()
    return context
