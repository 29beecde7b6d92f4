"""Runs as SLURM jobs, through submitit.

Runs that need the same other runs form an array that depends on those runs' jobs alone, so SLURM
follows the graph by itself: one may log out. A link `slurm-<job>.log` in a run's folder leads to
the job's output and names the job, by which the same command finds it again.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_bench import cluster
from mae_bench.cluster import LINK, job_of, queue_name
from mae_bench.errors import UserError
from mae_bench.plan import Plan, PlannedRun
from mae_bench.processes import SECONDS_AFTER_RANK_0
from mae_bench.records import Record, Run
from mae_bench.runner import ENVIRONMENT, Site
from mae_bench.worker import Execute

# SLURM's own default for MaxArraySize, less one.
ARRAY_SIZE = 1000
DEFAULT_MINUTES = 24 * 60
# A notice that comes before Python is up to it must not kill: ignored signals stay so over exec.
DEAF = 'bash -c \'trap "" USR2; exec "$@"\' bash'
# How often a run may be requeued at the end of its time; one that does not advance fails sooner.
REQUEUES = 10_000


@dataclass(frozen=True)
class Resources:
    """What to ask SLURM for, for each run.

    Attributes:
        partition: None for the cluster's default.
        time: limit as SLURM writes it; None for a day, or less where the partition gives less. A
            run that needs longer is requeued and continues.
        nodes: machines that share one run.
        gpus_per_run: over all nodes, a process each; None for 1 where the partition has GPUs.
        processes_per_run: over all nodes, without GPUs.
        array_parallelism: jobs of one array that run at the same time.
        options: any other option of sbatch, without its dashes; True for a flag.
        grace_seconds: how long before the end of its time a run is told, so that it can save.
    """

    partition: str | None = None
    time: str | None = None
    nodes: int = 1
    gpus_per_run: int | None = None
    processes_per_run: int | None = None
    constraint: str | None = None
    account: str | None = None
    qos: str | None = None
    array_parallelism: int = 64
    options: Mapping[str, str | bool] = field(default_factory=dict)
    grace_seconds: int = 90

    def parameters(self) -> dict[str, Any]:
        """Return them as submitit names them.

        Raises:
            UserError: no SLURM here, no such partition, or what that cannot give.
        """
        partition = cluster.partition(self.partition)
        gpus = int(partition.has_gpus) if self.gpus_per_run is None else self.gpus_per_run
        if gpus and not partition.has_gpus:
            raise UserError(
                f"--gpus-per-run {gpus}: partition {partition.name} has no GPUs; give another "
                "--partition, or --gpus-per-run 0"
            )
        if gpus and self.processes_per_run not in {None, gpus}:
            raise UserError(
                f"--processes-per-run {self.processes_per_run} with --gpus-per-run {gpus}: a "
                "process has one GPU; leave --processes-per-run out"
            )
        processes = gpus or self.processes_per_run or self.nodes
        if processes % self.nodes:
            raise UserError(
                f"{processes} processes per run on {self.nodes} nodes: the nodes must have "
                f"equally many; give a multiple of {self.nodes}"
            )
        return {
            "timeout_min": self._minutes(partition),
            "nodes": self.nodes,
            "tasks_per_node": processes // self.nodes,
            "gpus_per_node": gpus // self.nodes or None,
            "slurm_partition": partition.name,
            "slurm_constraint": self.constraint,
            "slurm_account": self.account,
            "slurm_qos": self.qos,
            "slurm_array_parallelism": self.array_parallelism,
            "slurm_signal_delay_s": self.grace_seconds,
            "slurm_setup": [f"export {name}={value}" for name, value in ENVIRONMENT.items()],
            "slurm_stderr_to_stdout": True,
            # The others would wait for a rank that died for ever.
            "slurm_srun_args": ["--kill-on-bad-exit=1", f"--wait={SECONDS_AFTER_RANK_0:.0f}"],
            # What needs a run that failed or was cancelled leaves the queue.
            "slurm_additional_parameters": {
                "requeue": True,
                "kill-on-invalid-dep": "yes",
                **self.options,
            },
        }

    def _minutes(self, partition: cluster.Partition) -> int:
        wanted = cluster.minutes(self.time) if self.time else None
        if self.time and wanted is None:
            wanted = partition.minutes
        limit = partition.minutes or wanted or DEFAULT_MINUTES
        if wanted is not None and wanted > limit:
            raise UserError(
                f"--time {self.time} ({wanted} min) is more than partition {partition.name} "
                f"allows ({limit} min); give less, a run continues in the next job"
            )
        return wanted or min(DEFAULT_MINUTES, limit)


class Queue:
    """The jobs of a plan.

    Attributes:
        jobs: run id -> job, of the runs that are in SLURM's hands.
        failed: records of runs that failed before.
        blocked: runs that need one that failed.
    """

    def __init__(
        self,
        plan: Plan,
        site: Site,
        parameters: Mapping[str, Any],
        work: Execute,
        done: set[str],
    ):
        self.name = queue_name(site.work_dir)
        self.jobs: dict[str, str] = {}
        self.failed: list[Record] = []
        self.blocked: list[Run] = []
        self.runs = {planned.run.id: planned for planned in plan.runs}
        self._site, self._parameters, self._work = site, parameters, work
        self._done, self._lost = done, set[str]()

    def missing(self) -> Iterator[PlannedRun]:
        """Runs that nobody works on yet."""
        for run_id, planned in self.runs.items():
            if run_id not in self._done and run_id not in self._lost and run_id not in self.jobs:
                yield planned

    def attach(self) -> None:
        """Find the runs that have a record by now, or are in the queue already."""
        workspace = self._site.workspace
        records = workspace.records(planned.run.id for planned in self.missing())
        self.failed = [record for record in records.values() if record.status == "failed"]
        self._lost |= {record.id for record in self.failed}
        self._done |= records.keys() - self._lost
        found = {one.run.id: job_of(workspace.folder(one.run.id)) for one in self.missing()}
        states = cluster.jobs(self.name) if any(found.values()) else {}
        for run_id, job in found.items():
            if job in states and not states[job].is_over:
                self.jobs[run_id] = job

    def submit(self) -> None:
        """Submit what is missing, in arrays of runs that need the same."""
        groups: dict[tuple[str, ...], list[PlannedRun]] = {}
        for planned in self.missing():
            if any(need in self._lost for need in planned.dependencies):
                self._lost.add(planned.run.id)
                self.blocked.append(planned.run)
                continue
            needs = tuple(need for need in planned.dependencies if need not in self._done)
            groups.setdefault(needs, []).append(planned)
        # What a group needs stands before it in the plan, so its jobs are known by now.
        for needs, group in groups.items():
            for start in range(0, len(group), ARRAY_SIZE):
                self._submit_array(group[start : start + ARRAY_SIZE], needs)

    def _submit_array(self, group: Sequence[PlannedRun], needs: Sequence[str]) -> None:
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError

        from mae_bench.slurm_job import RunInJob

        executor = AutoExecutor(
            self._site.work_dir / "slurm",
            cluster="slurm",
            slurm_max_num_timeout=REQUEUES,
            slurm_python=f"{DEAF} {shlex.quote(sys.executable)}",
        )
        executor.update_parameters(
            **self._parameters,
            name=self.name,
            cpus_per_task=1 + max(_data_workers(planned.run) for planned in group),
            slurm_dependency=":".join(["afterok", *(self.jobs[need] for need in needs)])
            if needs
            else None,
        )
        minutes, grace = self._parameters["timeout_min"], self._parameters["slurm_signal_delay_s"]
        calls = [RunInJob(planned, self._site, minutes, grace, self._work) for planned in group]
        try:
            jobs = executor.submit_array(calls)
        except FailedJobError as error:
            going = f" ({len(self.jobs)} runs were submitted before and go on)" if self.jobs else ""
            raise UserError(f"SLURM refuses the jobs{going}: {error}") from None
        for planned, job in zip(group, jobs, strict=True):
            self.jobs[planned.run.id] = job.job_id
            _leave_link(self._site.workspace.folder(planned.run.id), job.job_id, job.paths.stdout)


def _leave_link(folder: Path, job: str, output: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(LINK.format("*")):
        old.unlink(missing_ok=True)
    (folder / LINK.format(job)).symlink_to(os.path.relpath(output, folder))


def _data_workers(run: Run) -> int:
    """Largest number of data-loading processes that a run's recipe asks for."""
    sections = [values for values in run.recipe_values.values() if isinstance(values, dict)]
    return max((int(values.get("num_workers") or 0) for values in sections), default=0)
