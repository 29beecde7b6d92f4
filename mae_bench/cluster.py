"""What SLURM says: which partitions there are, and where jobs stand. Reads its commands' output.

A link in a run's folder leads to the output of its job and has the job in its name, by which any
machine that sees the folder finds the job.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from mae_bench.errors import UserError, unknown

COMMANDS = ("sinfo", "squeue", "sbatch", "srun", "scancel")
SECONDS_TO_ANSWER = 60
LINK = "slurm-{}.log"
# Words of squeue and sacct, as in SLURM's list of job state codes.
STOPPED = {"BOOT_FAIL", "CANCELLED", "DEADLINE", "NODE_FAIL", "PREEMPTED", "REVOKED", "TIMEOUT"}
FAILED = {"COMPLETED", "FAILED", "OUT_OF_MEMORY"}
BEGUN = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
# Reasons for which a pending job will stay pending, whatever becomes free.
HOPELESS = {
    "AccountNotAllowed",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "PartitionConfig",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "QOSNotAllowed",
}
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Partition:
    """A partition; `minutes` is its time limit, None for none."""

    name: str
    is_default: bool
    minutes: int | None
    has_gpus: bool


@dataclass(frozen=True)
class JobState:
    """Where a job stands: SLURM's word for it, and its reason to wait."""

    word: str
    reason: str = ""

    def __str__(self) -> str:
        said = self.word.lower()
        return said if self.reason in {"", "None"} else f"{said} ({self.reason})"

    @property
    def is_over(self) -> bool:
        """Whether it will not start or go on by itself."""
        return self.word in STOPPED or self.word in FAILED

    @property
    def is_hopeless(self) -> bool:
        """Whether it waits for what cannot come."""
        return self.word == "PENDING" and self.reason in HOPELESS


def partition(name: str | None) -> Partition:
    """Return the partition of this name, or the default one.

    Raises:
        UserError: no such partition, no default, no SLURM here, or its controller is silent.
    """
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        raise UserError(
            f"no SLURM here: {', '.join(missing)} not found. Call mae-bench on a machine that can "
            "submit jobs, or give --launcher local"
        )
    found = read_partitions(_ask("sinfo", "--noheader", "--all", "--format=%R|%P|%l|%G"))
    if name is not None:
        if name not in found:
            raise unknown("partition", name, found)
        return found[name]
    default = [one for one in found.values() if one.is_default]
    if not default:
        known = ", ".join(sorted(found)) or "(none)"
        raise UserError(f"this cluster has no default partition; give --partition. Known: {known}")
    return default[0]


def read_partitions(text: str) -> dict[str, Partition]:
    """Read lines of sinfo: name, name with * if default, time limit, generic resources."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        name, starred, limit, resources = line.split("|")
        has_gpus = "gpu" in resources or (name in found and found[name].has_gpus)
        found[name] = Partition(name, starred.endswith("*"), minutes(limit), has_gpus)
    return found


def minutes(text: str) -> int | None:
    """Read a time as SLURM writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None if unlimited.

    Raises:
        UserError: none of these.
    """
    if text.lower() in {"infinite", "unlimited"}:
        return None
    match = TIME.fullmatch(text.strip())
    if match is None:
        raise UserError(
            f"time {text!r}: give minutes, HH:MM:SS or DAYS-HH:MM:SS, as in --time 8:00:00"
        )
    days, *rest = match.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None:
        hours, mins, seconds = numbers + [0] * (3 - len(numbers))
    elif len(numbers) == 3:
        hours, mins, seconds = numbers
    else:
        hours, (mins, seconds) = 0, numbers + [0] * (2 - len(numbers))
    return ceil((int(days or 0) * 24 + hours) * 60 + mins + seconds / 60)


def queue_name(work_dir: Path) -> str:
    """Return the name of all jobs of a work folder, for squeue and scancel."""
    return f"mae-bench-{hashlib.sha256(str(work_dir.resolve()).encode()).hexdigest()[:8]}"


def job_of(folder: Path) -> str | None:
    """Return the job that the run of a folder was last submitted as, None if it never was."""
    prefix, suffix = LINK.split("{}")
    names = [path.name for path in folder.glob(LINK.format("*"))]
    return names[0].removeprefix(prefix).removesuffix(suffix) if names else None


def describe(work_dir: Path, folders: Mapping[str, Path]) -> dict[str, str]:
    """Return run id -> its job and where that stands, for the runs that SLURM has in hand."""
    found = {run_id: job_of(folder) for run_id, folder in folders.items()}
    try:
        states = jobs(queue_name(work_dir)) if any(found.values()) else {}
    except (UserError, OSError):
        # Another machine submitted them; this one need not even have SLURM.
        return {}
    return {
        run_id: f"SLURM job {job}: {states[job]}"
        for run_id, job in found.items()
        if job in states and not states[job].is_over
    }


def jobs(name: str) -> dict[str, JobState]:
    """Return id -> state of the jobs of this name, those that ended minutes ago too.

    Raises:
        UserError: SLURM does not answer.
    """
    text = _ask(
        "squeue", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%i|%T|%r"
    )
    rows = (line.split("|") for line in text.splitlines())
    return {job.strip(): JobState(word, reason) for job, word, reason in rows}


def ended(job_ids: Iterable[str]) -> dict[str, JobState]:
    """Return the states of jobs that squeue has forgotten, where the cluster keeps accounts."""
    wanted = ",".join(job_ids)
    if not wanted or shutil.which("sacct") is None:
        return {}
    command = ("sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State")
    try:
        text = _ask(*command, f"--jobs={wanted}")
    except UserError:
        return {}
    # "CANCELLED by 1000" says who did it.
    rows = (line.split("|") for line in text.splitlines())
    return {job: JobState(state.split(" ")[0]) for job, state in rows}


def is_running(job_id: str) -> bool:
    """Whether SLURM has a job down as running; no longer once it is cancelled."""
    try:
        state = _ask("squeue", "--noheader", f"--jobs={job_id}", "--format=%T")
    except (UserError, OSError):
        return False
    return state.strip() == "RUNNING"


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs; those that are over already do no harm."""
    if job_ids:
        subprocess.run(["scancel", *job_ids], capture_output=True, check=False)


def requeue(job_id: str) -> None:
    """Put a running job back into the queue, this process's own for one, which then is killed."""
    subprocess.run(["scontrol", "requeue", job_id], capture_output=True, check=False)


def _ask(*command: str) -> str:
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=SECONDS_TO_ANSWER
        )
    except subprocess.CalledProcessError as error:
        raise UserError(f"SLURM does not answer: {command[0]}: {error.stderr.strip()}") from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"SLURM does not answer: {command[0]} took more than {SECONDS_TO_ANSWER} s"
        ) from None
    return answer.stdout
