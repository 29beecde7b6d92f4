"""Where runs are executed. Here: on this machine, each in a process of its own.

Processes are forked from a server that has imported the engines already (60 ms and 16 MB a run
instead of 10 s and 800 MB, measured), yet a crash or the out-of-memory killer takes one run only.
"""

from __future__ import annotations

import faulthandler
import heapq
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import parent_process
from typing import Protocol

from mae_bench.errors import UserError, unknown
from mae_bench.plan import Plan, PlannedRun
from mae_bench.preload import VARIABLE
from mae_bench.records import Record, Run
from mae_bench.runner import THREADS, Site, execute, make_record, save
from tasks import data

SECONDS_BETWEEN_TICKS = 0.25
SECONDS_TO_STOP = 5.0
LAUNCHERS = ("local",)
Execute = Callable[[PlannedRun, Site], Record]


class Monitor(Protocol):
    """Who is told what happens."""

    def preparing(self, dataset: str) -> None:
        """A dataset is being checked, or drawn if it is not there: up to a minute."""

    def started(self, run: Run) -> None:
        """A run has been given to a worker."""

    def finished(self, run: Run, record: Record) -> None:
        """A run has ended, well or badly."""

    def blocked(self, run: Run) -> None:
        """A run will not start because one that it needs failed."""

    def stopped(self, run: Run) -> None:
        """A run has been stopped and left no record; the next call continues it."""

    def tick(self) -> None:
        """A quarter of a second has passed."""


def check_launcher(name: str) -> None:
    """Refuse unknown launchers.

    Raises:
        UserError: with the known names.
    """
    if name not in LAUNCHERS:
        raise unknown("launcher", name, LAUNCHERS)


class Schedule:
    """Which run starts next: of those whose needs are met, the one with the longest way behind it.

    Args:
        runs: dependencies before what needs them.
        done: ids of runs that are finished already.
        seconds: run id -> expected seconds; 1 if unknown.
    """

    def __init__(
        self, runs: Iterable[PlannedRun], done: Iterable[str], seconds: Mapping[str, float]
    ):
        finished = set(done)
        self._todo = {run.run.id: run for run in runs if run.run.id not in finished}
        self._needs = {
            run_id: set(run.dependencies) - finished for run_id, run in self._todo.items()
        }
        self._users: dict[str, list[str]] = {run_id: [] for run_id in self._todo}
        for run_id, needs in self._needs.items():
            for need in needs:
                self._users[need].append(run_id)
        self._chain: dict[str, float] = {}
        for run_id in reversed(self._todo):
            after = max((self._chain[user] for user in self._users[run_id]), default=0.0)
            self._chain[run_id] = after + seconds.get(run_id, 1.0)
        self._order = {run_id: index for index, run_id in enumerate(self._todo)}
        self._lost: set[str] = set()
        self._ready: list[tuple[float, int, str]] = []
        for run_id, needs in self._needs.items():
            if not needs:
                self._push(run_id)

    def _push(self, run_id: str) -> None:
        heapq.heappush(self._ready, (-self._chain[run_id], self._order[run_id], run_id))

    def pop(self) -> PlannedRun | None:
        """Return the run to start now, None if none can."""
        return self._todo[heapq.heappop(self._ready)[2]] if self._ready else None

    def succeed(self, run_id: str) -> None:
        """Free what waited for this run only."""
        for user in self._users[run_id]:
            self._needs[user].discard(run_id)
            if not self._needs[user]:
                self._push(user)

    def fail(self, run_id: str) -> list[Run]:
        """Return the runs that this one takes along, each once over all calls."""
        lost = []
        for user in self._users[run_id]:
            if user not in self._lost:
                self._lost.add(user)
                lost += [self._todo[user].run, *self.fail(user)]
        return lost


@dataclass
class Worker:
    """A run in its process."""

    run: Run
    process: ForkServerProcess
    started: float = field(default_factory=time.time)


def local(
    plan: Plan,
    site: Site,
    workers: int,
    monitor: Monitor,
    done: Iterable[str] = (),
    seconds: Mapping[str, float] | None = None,
    work: Execute = execute,
) -> None:
    """Execute the runs that are not done, `workers` at a time. Returns when nothing more can run.

    Raises:
        UserError: a dataset that cannot be prepared, before any training.
        KeyboardInterrupt: after the workers have been stopped; a later call continues.
    """
    done = set(done)
    todo = [planned for planned in plan.runs if planned.run.id not in done]
    if not todo:
        return
    context = _fork_server({planned.run.task for planned in todo})
    for dataset in dict.fromkeys(planned.run.dataset for planned in todo):
        monitor.preparing(dataset)
        data.prepare(dataset, site.data_root)
    schedule = Schedule(plan.runs, done, seconds or {})
    active: list[Worker] = []
    try:
        while True:
            while len(active) < workers and (planned := schedule.pop()):
                active.append(_start(context, work, planned, site))
                monitor.started(planned.run)
            if not active:
                return
            wait([worker.process.sentinel for worker in active], SECONDS_BETWEEN_TICKS)
            for worker in [worker for worker in active if not worker.process.is_alive()]:
                active.remove(worker)
                _reap(worker, site, schedule, monitor)
            monitor.tick()
    finally:
        _stop(active)


def _fork_server(tasks: set[str]) -> ForkServerContext:
    """Start the server; it imports while the caller goes on. Workers inherit its environment."""
    os.environ.update(THREADS)
    os.environ[VARIABLE] = " ".join(sorted(tasks))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mae_bench.preload"])
    from multiprocessing.forkserver import ensure_running

    ensure_running()
    return context


def _start(context: ForkServerContext, work: Execute, planned: PlannedRun, site: Site) -> Worker:
    process = context.Process(target=_work, args=(work, planned, site))
    process.start()
    return Worker(planned.run, process)


def _work(work: Execute, planned: PlannedRun, site: Site) -> None:
    # The terminal sends Ctrl-C to everybody; the parent decides and sends SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable(2)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    work(planned, site)


def _die_with_parent() -> None:
    """End this process when the launcher is gone, however it went (`kill -9` included)."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _reap(worker: Worker, site: Site, schedule: Schedule, monitor: Monitor) -> None:
    """Take in the record of a run whose process has ended, writing one for it if it died."""
    run, workspace = worker.run, site.workspace
    worker.process.join()
    try:
        record = workspace.record(run.id)
    except UserError:
        record = None
    if record is None:
        error = _cause_of_death(worker.process.exitcode)
        record = make_record(run, site, worker.started, error=error)
        save(record, workspace.folder(run.id))
    monitor.finished(run, record)
    if record.status == "ok":
        schedule.succeed(run.id)
    else:
        for lost in schedule.fail(run.id):
            monitor.blocked(lost)


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"the run's process ended with code {exitcode} and left no record; see its log.txt"
    name = signal.Signals(-exitcode).name
    hint = ", perhaps by the out-of-memory killer" if name == "SIGKILL" else ""
    return f"the run's process was killed with {name}{hint}; see its log.txt"


def _stop(active: list[Worker]) -> None:
    """Stop the workers that are left (none after a normal end)."""
    for worker in active:
        worker.process.terminate()
    deadline = time.monotonic() + SECONDS_TO_STOP
    for worker in active:
        worker.process.join(max(deadline - time.monotonic(), 0.0))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
