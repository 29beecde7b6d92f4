"""What runs inside a SLURM job: one run, requeued when its time is up or its place is taken."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from submitit import JobEnvironment
from submitit.helpers import Checkpointable, DelayedSubmission, TorchDistributedEnvironment

from mae_bench import cluster, ranks
from mae_bench.job import STATE_FILE
from mae_bench.plan import PlannedRun
from mae_bench.runner import Site, TryAgain, execute
from mae_bench.worker import Ending, Execute

# submitit asks SLURM for this signal when a job is about to be ended, and requeues the job on it.
NOTICE = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]


class RunFailed(Exception):
    """Makes the job fail too, so that SLURM starts nothing that needs the run."""


@dataclass
class RunInJob(Checkpointable):
    """The call that submitit stores and makes in the job, in each of its tasks.

    Attributes:
        minutes: time limit of the job.
        grace_seconds: between the notice that the time is nearly up and its end.
        work: what to do, as `runner.execute`.
    """

    planned: PlannedRun
    site: Site
    minutes: int
    grace_seconds: int
    work: Execute = execute
    _begun: float = field(default=0.0, init=False)
    _state: int = field(default=0, init=False)

    def __call__(self) -> None:
        """Do the run.

        Raises:
            RunFailed: the record says why.
            SystemExit: it was stopped; SLURM has it in its queue again unless it was cancelled.
        """
        self._begun, self._state = time.monotonic(), self._last_save()
        _take_rank()
        requeue = _stop_on_notice(self.grace_seconds)
        try:
            record = self.work(self.planned, self.site)
        except TryAgain:
            cluster.requeue(JobEnvironment().job_id)
            raise
        finally:
            signal.alarm(0)
            # A notice while Python shuts down would kill it, and the run not count as done.
            signal.signal(NOTICE, signal.SIG_IGN)
        if record is not None and record.status != "ok":
            raise RunFailed(record.error)
        if record is None and ranks.rank() == 0:
            requeue()
            # SLURM must not take it for done.
            sys.exit(Ending.STOPPED)

    def checkpoint(self) -> DelayedSubmission:
        """Return the call for the requeued job. submitit asks for it.

        Raises:
            RunFailed: the time limit was used up and led nowhere; it would for ever.
        """
        used = time.monotonic() - self._begun
        if used > self.minutes * 60 / 2 and self._last_save() == self._state:
            raise RunFailed(
                f"in {self.minutes} minutes the run saved nothing to continue from. Give more "
                "--time, or have it save more often"
            )
        again = RunInJob(self.planned, self.site, self.minutes, self.grace_seconds, self.work)
        return DelayedSubmission(again)

    def _last_save(self) -> int:
        state = self.site.workspace.folder(self.planned.run.id) / STATE_FILE
        return state.stat().st_mtime_ns if state.exists() else 0


def _stop_on_notice(grace_seconds: int) -> Callable[[], None]:
    """Have the run stop by itself at SLURM's notice, with its state saved, before it is requeued.

    submitit would end the process wherever it stands. That is left for a run that does not stop in
    most of the time there is: it then continues from what it saved before.

    Returns:
        what requeues the job if there was a notice, or if it is to make place for another.
    """
    requeue: Any = signal.getsignal(NOTICE)
    noticed = False

    def notice(number: int, frame: Any) -> None:
        nonlocal noticed
        noticed = True
        signal.signal(signal.SIGALRM, requeue)
        signal.alarm(max(grace_seconds * 2 // 3, 1))
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(NOTICE, notice)
    return lambda: requeue(NOTICE, None) if noticed else _requeue_if_preempted()


def _requeue_if_preempted() -> None:
    """Requeue a job that SLURM has asked to end before it takes its place away.

    SLURM would do so at the end of the grace time, but a run that stops sooner would count as
    failed. scancel asks in the same way; then the job is not running any more.
    """
    job = JobEnvironment().job_id
    if cluster.is_running(job):
        cluster.requeue(job)


def _take_rank() -> None:
    """Set what torchrun would set, from what srun has set."""
    ranks.become({}, "")
    group = TorchDistributedEnvironment()
    if group.world_size == 1:
        return
    values = (
        group.rank,
        group.world_size,
        group.local_rank,
        group.local_world_size,
        group.master_addr,
        group.master_port,
    )
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    attempt = f"{os.environ['SLURM_JOB_ID']}.{restart}"
    ranks.become(dict(zip(ranks.VARIABLES, map(str, values), strict=True)), attempt)
