"""Runs on SLURM: submitted, then watched until none is left, which one may leave to come back."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress

from mae_bench import claims, cluster
from mae_bench.cluster import LINK, JobState
from mae_bench.crew import Monitor
from mae_bench.errors import UserError
from mae_bench.plan import Plan
from mae_bench.records import Record, Run
from mae_bench.runner import Site, execute, make_record, save
from mae_bench.slurm import Queue, Resources
from mae_bench.worker import Execute
from tasks import data

SECONDS_BETWEEN_LOOKS = 10.0
# A network file system may show a record that much later than SLURM the end of its job.
SECONDS_OF_LAG = 20.0
LAST_LINES = 6


def launch(
    plan: Plan,
    site: Site,
    resources: Resources,
    monitor: Monitor,
    done: Iterable[str] = (),
    detach: bool = False,
    work: Execute = execute,
    seconds_between_looks: float = SECONDS_BETWEEN_LOOKS,
    seconds_of_lag: float = SECONDS_OF_LAG,
) -> list[str]:
    """Submit the runs that have no record and are not in the queue, and watch them all.

    Runs that failed before are not repeated (`Workspace.forgive` has them repeated).

    Args:
        done: ids of runs that are finished.
        detach: return once all are submitted.

    Returns:
        what there is to say beside the records: jobs that were cancelled, or go on.

    Raises:
        UserError: what SLURM refuses, or will never start; no SLURM here.
        KeyboardInterrupt: the jobs go on; its message says so.
    """
    parameters = resources.parameters()
    queue = Queue(plan, site, parameters, work, set(done))
    for dataset in dict.fromkeys(planned.run.dataset for planned in queue.missing()):
        monitor.preparing(dataset)
        data.prepare(dataset, site.data_root)
    with claims.hold(site.work_dir / "slurm"):
        queue.attach()
        queue.submit()
    for record in queue.failed:
        monitor.kept(record.run, record)
    for run in queue.blocked:
        monitor.blocked(run)
    number = len(queue.jobs)
    farewell = (
        f"{'1 run goes' if number == 1 else f'{number} runs go'} on in SLURM as {queue.name}; the "
        f"same command watches again, scancel --name={queue.name} stops"
    )
    if detach:
        return [farewell]
    try:
        return Watch(queue, site, monitor, seconds_of_lag).until_over(seconds_between_looks)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(farewell) from None


class Watch:
    """Tells a monitor what becomes of jobs."""

    def __init__(self, queue: Queue, site: Site, monitor: Monitor, seconds_of_lag: float):
        self._queue, self._site, self._monitor = queue, site, monitor
        self._lag = seconds_of_lag
        self._since = time.time()
        self._started: set[str] = set()
        self._over: dict[str, float] = {}
        self._lost: set[str] = set()
        self._notes: list[str] = []

    def until_over(self, seconds_between_looks: float) -> list[str]:
        """Watch until no job is left; returns what is not in the records."""
        while self._queue.jobs:
            self._look()
            next_look = time.monotonic() + seconds_between_looks
            while self._queue.jobs and time.monotonic() < next_look:
                self._monitor.tick()
                time.sleep(min(0.25, seconds_between_looks))
        return self._notes

    def _look(self) -> None:
        jobs = self._queue.jobs
        try:
            states = cluster.jobs(self._queue.name)
        except UserError:
            # The controller is busy or restarts: its jobs go on meanwhile.
            return
        states |= cluster.ended(job for job in jobs.values() if job not in states)
        hopeless = [job for job in jobs.values() if job in states and states[job].is_hopeless]
        if hopeless:
            cluster.cancel(hopeless)
            reasons = ", ".join(sorted({states[job].reason for job in hopeless}))
            raise UserError(
                f"SLURM would never start these jobs ({reasons}), so they are cancelled; ask for "
                "less, or for another --partition"
            )
        for run_id, job in list(jobs.items()):
            self._judge(run_id, job, states.get(job))

    def _judge(self, run_id: str, job: str, state: JobState | None) -> None:
        run = self._queue.runs[run_id].run
        if state is not None and not state.is_over:
            self._over.pop(run_id, None)
            if state.word in cluster.BEGUN:
                self._start(run)
            return
        record, now = self._record(run_id), time.monotonic()
        if record is None and now - self._over.setdefault(run_id, now) < self._lag:
            return
        del self._queue.jobs[run_id]
        if record is None and state is not None and state.word in cluster.FAILED:
            record = self._obituary(run, job, state)
        if record is not None:
            self._start(run)
            self._monitor.finished(run, record)
            if record.status != "ok":
                self._lost.add(run_id)
        else:
            self._stop(run, job, state)

    def _start(self, run: Run) -> None:
        if run.id not in self._started:
            self._started.add(run.id)
            self._monitor.started(run)

    def _stop(self, run: Run, job: str, state: JobState | None) -> None:
        """Take note of a run that left no record and did not fail."""
        self._lost.add(run.id)
        if self._lost.intersection(self._queue.runs[run.id].dependencies):
            self._monitor.blocked(run)
            return
        word = state.word if state else "gone"
        self._notes.append(f"{run.label}: job {job} {word}; the same command continues it")
        self._start(run)
        self._monitor.stopped(run)

    def _record(self, run_id: str) -> Record | None:
        with suppress(UserError):
            return self._site.workspace.record(run_id)
        return None

    def _obituary(self, run: Run, job: str, state: JobState) -> Record:
        """Leave the record of a run whose processes could not."""
        log = self._site.workspace.folder(run.id) / LINK.format(job)
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        reason = "\n".join([
            *lines[-LAST_LINES:],
            f"SLURM job {job} ended as {state.word} and left no record; see {log}",
        ])
        record = make_record(run, self._site, self._since, error=reason)
        save(record, self._site.workspace.folder(run.id))
        return record
