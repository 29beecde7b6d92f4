"""The workers of one command on one machine: who does what next, and what comes of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, Protocol

from mae_bench.claims import Claimed, Watch
from mae_bench.devices import Devices
from mae_bench.errors import NoSpace, UserError
from mae_bench.plan import Plan, PlannedRun
from mae_bench.records import Record, Run
from mae_bench.runner import Site, last_lines, make_record, save
from mae_bench.schedule import Schedule
from mae_bench.worker import Ending, Worker

SECONDS_BETWEEN_TICKS = 0.25
SECONDS_TO_STOP = 5.0
Start = Callable[[PlannedRun, tuple[str, ...]], Worker]


class Monitor(Protocol):
    """Who is told what happens."""

    def preparing(self, dataset: str) -> None:
        """A dataset is being checked, or drawn if it is not there: up to a minute."""

    def started(self, run: Run) -> None:
        """A run has been given to a worker, here or by another command; perhaps once more."""

    def finished(self, run: Run, record: Record) -> None:
        """A run has ended, well or badly."""

    def stopped(self, run: Run) -> None:
        """A run has ended without a record, to be continued by a later call."""

    def blocked(self, run: Run) -> None:
        """A run will not start because one that it needs failed."""

    def kept(self, run: Run, record: Record) -> None:
        """A run failed under an earlier command and is not repeated."""

    def stopping(self) -> None:
        """The user has asked to stop; the runs that are going save their states first."""

    def tick(self) -> None:
        """A quarter of a second has passed."""


class Crew:
    """Starts runs, takes in their records, and shares both with other commands.

    Args:
        done: ids of runs that are finished.
        seconds: run id -> expected seconds, as far as known.
        memory: run id -> expected peak of GPU memory in MB, as far as known.
    """

    def __init__(
        self,
        plan: Plan,
        site: Site,
        workers: int,
        monitor: Monitor,
        *,
        done: Iterable[str],
        seconds: Mapping[str, float],
        memory: Mapping[str, float],
        gpus: Devices,
    ):
        self.site, self.workers, self.monitor = site, workers, monitor
        self.memory, self.gpus = memory, gpus
        self.active: list[Worker] = []
        # Runs that other commands are working on, until they end there or come free.
        self.elsewhere: list[PlannedRun] = []
        self.watch = Watch()
        self.wishes_to_stop = 0
        finished = set(done)
        records = site.workspace.records(
            planned.run.id for planned in plan.runs if planned.run.id not in finished
        )
        failed = [run_id for run_id, record in records.items() if record.status == "failed"]
        self.schedule = Schedule(plan.runs, finished, seconds, failed)
        for run_id in failed:
            monitor.kept(records[run_id].run, records[run_id])
            self._block_users_of(run_id)

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Have Ctrl-C and SIGTERM ask to stop; the second time, interrupt at once."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._wish) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wish(self, *_: Any) -> None:
        self.wishes_to_stop += 1
        if self.wishes_to_stop > 1:
            raise KeyboardInterrupt

    @property
    def has_work(self) -> bool:
        """Whether any run can start."""
        return not self.schedule.is_empty

    def run(self, start: Start) -> None:
        """Work until nothing more can run.

        Args:
            start: starts a run's process on these GPUs.

        Raises:
            NoSpace: the disk is full.
            KeyboardInterrupt: the user asked to stop.
        """
        told = False
        try:
            while True:
                if not self.wishes_to_stop:
                    self._fill(start)
                elif not told:
                    told = True
                    self._ask_to_stop()
                if not self.active and (told or not self.elsewhere):
                    break
                self._wait()
                self.monitor.tick()
        except KeyboardInterrupt:
            self._close(patience=0.0)
            raise
        finally:
            self._close(SECONDS_TO_STOP)
        if told:
            raise KeyboardInterrupt

    def _fill(self, start: Start) -> None:
        """Start what may start while there are workers and GPUs for it."""
        while len(self.active) < self.workers and (planned := self.schedule.pop()):
            run_id = planned.run.id
            if self._is_elsewhere(planned):
                self.elsewhere.append(planned)
                self.monitor.started(planned.run)
                continue
            gpus = self.gpus.take(run_id, self.memory.get(run_id))
            if gpus is None:
                self.schedule.put_back(planned)
                return
            self.active.append(start(planned, gpus))
            self.monitor.started(planned.run)

    def _is_elsewhere(self, planned: PlannedRun) -> bool:
        """Whether another command has the run, or has done it since this one was planned."""
        folder = self.site.workspace.folder(planned.run.id)
        return (folder / "record.json").exists() or self.watch.is_held(folder)

    def _wait(self) -> None:
        """Wait for a moment, then take in what has ended, here and elsewhere."""
        sentinels = [worker.process.sentinel for worker in self.active]
        if sentinels:
            wait(sentinels, SECONDS_BETWEEN_TICKS)
        else:
            time.sleep(SECONDS_BETWEEN_TICKS)
        for worker in [worker for worker in self.active if not worker.is_alive]:
            self.active.remove(worker)
            self._reap(worker)
        for planned in list(self.elsewhere):
            if not self.watch.is_held(self.site.workspace.folder(planned.run.id)):
                self.elsewhere.remove(planned)
                self._take_back(planned)

    def _take_back(self, planned: PlannedRun) -> None:
        """Settle a run that nobody works on any more by its record, or have it run here."""
        record = self._record(planned.run)
        if record:
            self._settle(planned.run, record)
        else:
            self.schedule.put_back(planned)

    def _reap(self, worker: Worker) -> None:
        """Take in the record of a run whose process has ended, writing one for it if it died."""
        planned, run = worker.planned, worker.planned.run
        worker.kill()
        self.gpus.give_back(run.id)
        record, ending = self._record(run), worker.process.exitcode
        if record:
            self._settle(run, record)
        elif ending == Ending.FULL:
            raise NoSpace(
                f"no space left for run {run.id} below {self.site.work_dir}; what was saved is "
                "whole. Make room and give the same command again: it continues"
            )
        elif ending in {Ending.CLAIMED, Ending.LOST}:
            self.elsewhere.append(planned)
        elif ending == Ending.AGAIN:
            self.schedule.put_back(planned)
        elif ending == Ending.STOPPED:
            self.monitor.stopped(run)
        else:
            self._bury(worker)

    def _bury(self, worker: Worker) -> None:
        """Write the record of a run whose process died, unless another command has it by now."""
        run, workspace = worker.planned.run, self.site.workspace
        try:
            with workspace.claim(run.id, wait=False) as spent:
                record = self._record(run)
                if record is None:
                    log = last_lines(workspace.folder(run.id) / "log.txt")
                    error = "\n".join([*log, worker.cause_of_death()])
                    # Of what was told, this attempt's share is counted from its start again.
                    before = max(spent - (time.time() - worker.started), 0.0)
                    record = make_record(run, self.site, worker.started, error=error, spent=before)
                    save(record, workspace.folder(run.id))
        except Claimed:
            self.elsewhere.append(worker.planned)
        else:
            self._settle(run, record)

    def _record(self, run: Run) -> Record | None:
        """The run's record; one that cannot be read is written anew."""
        try:
            return self.site.workspace.record(run.id)
        except UserError:
            return None

    def _settle(self, run: Run, record: Record) -> None:
        self.monitor.finished(run, record)
        if record.status == "ok":
            self.schedule.succeed(run.id)
        else:
            self._block_users_of(run.id)

    def _block_users_of(self, run_id: str) -> None:
        for lost in self.schedule.fail(run_id):
            self.monitor.blocked(lost)

    def _ask_to_stop(self) -> None:
        self.monitor.stopping()
        for worker in self.active:
            worker.ask_to_stop()

    def _close(self, patience: float) -> None:
        """Stop the workers that are left (none after a normal end), kindly for so many seconds."""
        for worker in self.active:
            worker.ask_to_stop()
        deadline = time.monotonic() + patience
        for worker in self.active:
            worker.process.join(max(deadline - time.monotonic(), 0.0))
            worker.kill()
        self.active.clear()
