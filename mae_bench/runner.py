"""One run in its folder: claim, effective config, seeds, log, task, provenance, record."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mae_bench import provenance, ranks
from mae_bench.accumulation import Accumulation, is_out_of_memory
from mae_bench.errors import UserError, is_disk_full, naming_full_disk
from mae_bench.job import PREVIOUS_STATE_FILE, STATE_FILE, Job, Stopped, write_atomically
from mae_bench.plan import PlannedRun
from mae_bench.provenance import Meter, Usage, utc
from mae_bench.records import Outcome, Record, Run
from mae_bench.workspace import Workspace
from tasks import TASKS, data

# For the memory of a run's process on a CPU. What PyTorch allocates is aligned to huge pages, which
# leaves fewer gaps. What a step frees stays with the process, since the next one wants it again:
# fetching it from the kernel each time took a twentieth of a pretraining step. (32 MB is the most
# that every glibc takes for the second; more is mapped, and given back, by itself.)
MEMORY = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
# For a run's process. One thread: sums keep their order, so a result depends neither on --workers
# nor on the number of cores, and a resumed run repeats the interrupted one bit by bit. No random
# hashes: sets of names have the same order every time.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    **MEMORY,
}
# What a record of a failure quotes; the whole is in the log.
LOG_LINES = 40
LINE_LENGTH = 200
TRACEBACK_LINES = 20


@dataclass(frozen=True)
class Site:
    """Where runs happen: the work folder, the datasets, and the command that asked for them."""

    work_dir: Path
    data_root: Path
    command: str = ""

    @property
    def workspace(self) -> Workspace:
        """The work folder."""
        return Workspace(self.work_dir)


class TryAgain(Exception):
    """The run did not fit in the GPU's memory; in a new process it takes smaller micro-batches."""


def execute(planned: PlannedRun, site: Site, wait: bool = True) -> Record | None:
    """Do one run unless it is done; returns its record, also when the run failed.

    An interrupted run is called again in the same folder and continues from what it left there.
    Call it in a process of its own: it takes over stdout, stderr, SIGTERM and the random
    generators. Where several processes share the run (see `ranks`), each calls it; rank 0 writes
    the record.

    Returns:
        None if SIGTERM asked it to stop: its state is saved.

    Raises:
        claims.Claimed: another worker has the run, and `wait` is off.
        TryAgain: call it again, in a new process.
        NoSpace: the disk is full; a later call continues.
    """
    run, folder = planned.run, site.workspace.folder(planned.run.id)
    with naming_full_disk(folder):
        if ranks.rank() > 0:
            return _assist(run, folder, site)
        with site.workspace.claim(run.id, wait) as spent:
            done = site.workspace.record(run.id)
            if done:
                return done
            record = _attempt(run, folder, site, spent)
            if record:
                save(record, folder)
            if record and record.status == "ok":
                # Weights and optimizer twice the size of the checkpoint, which nobody continues
                # from.
                for name in (STATE_FILE, PREVIOUS_STATE_FILE):
                    (folder / name).unlink(missing_ok=True)
            return record


def _assist(run: Run, folder: Path, site: Site) -> Record | None:
    """Do another rank's part of a run.

    Only a failure leaves a record, since it may take rank 0 along.
    """
    workspace = site.workspace
    ranks.await_summons(folder, lambda: workspace.record(run.id) is not None)
    if found := workspace.record(run.id):
        return found
    record = _attempt(run, folder, site, spent=0.0)
    if record and record.status == "failed":
        save(record, folder)
    return record


def _attempt(run: Run, folder: Path, site: Site, spent: float) -> Record | None:
    """Train and score, whatever comes of it; None if asked to stop.

    Args:
        spent: seconds of earlier attempts.
    """
    started, meter = time.time(), Meter(fresh=not spent)
    micro, log = Accumulation.read(folder), folder / ranks.log_name()
    with _log_to(log), _heeding_sigterm() as should_stop:
        print(f"{run.label} ({run.id}), started {utc(started)}", flush=True)
        try:
            outcome = _train(run, folder, site, micro, should_stop)
            return make_record(run, site, started, outcome, None, meter.read(), spent)
        except Stopped:
            print("stopped, to be continued", flush=True)
            return None
        except Exception as failure:
            if is_disk_full(failure):
                raise
            reason = _reason(failure, log)
            traceback.print_exc()
            _take_less_memory(run, folder, micro, failure)
            reason = ranks.blame(folder, reason)
            return make_record(run, site, started, None, reason, meter.read(), spent)


def _take_less_memory(run: Run, folder: Path, micro: Accumulation, failure: Exception) -> None:
    """Have the run repeated with smaller micro-batches if that is what it, or a rank of it, needs.

    Raises:
        TryAgain: it is.
    """
    if is_out_of_memory(failure):
        said = str(failure).partition("\n")[0]
        smaller = micro.more(run.recipe_values, ranks.world_size(), said)
        if smaller:
            smaller.save(folder)
    if Accumulation.read(folder) != micro:
        raise TryAgain from failure


def _reason(failure: Exception, log: Path) -> str:
    """What the record says: the message for bad input, else the log's end and the traceback."""
    if isinstance(failure, UserError):
        return str(failure)
    lines = "".join(traceback.format_exception(failure)).strip().splitlines()
    return "\n".join([*last_lines(log), *lines[-TRACEBACK_LINES:]])


def last_lines(log: Path) -> list[str]:
    """Return the end of what the last attempt at a run has written to its log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2 * LINE_LENGTH * LOG_LINES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    began = [index for index, line in enumerate(lines) if re.search(r"\), started \S+$", line)]
    recent = lines[began[-1] + 1 if began else 0 :]
    return [line[:LINE_LENGTH] for line in recent[-LOG_LINES:]]


def save(record: Record, folder: Path) -> None:
    """Leave the record in the run's folder, whole and durable."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "record.json", record.model_dump_json(indent=1), durable=True)


def _train(
    run: Run, folder: Path, site: Site, micro: Accumulation, should_stop: Callable[[], bool]
) -> Outcome:
    config = {"id": run.id, "run": run.model_dump(mode="json"), "data_root": str(site.data_root)}
    write_atomically(folder / "config.json", json.dumps(config, indent=1))
    upstream = _upstream(run, site.workspace)
    data.prepare(run.dataset, site.data_root)
    ranks.summon(folder)
    task = TASKS[run.task]
    _seed(run.seed)
    outcome = task(Job(run, folder, site.data_root, upstream, micro.factor, should_stop))
    ranks.leave()
    assert isinstance(outcome, Outcome), f"task {run.task} returned {type(outcome).__name__}"
    return outcome.model_copy(update={"facts": {**outcome.facts, **micro.facts()}})


def _upstream(run: Run, workspace: Workspace) -> dict[str, Path]:
    """Return role -> checkpoint file, each verified against the hash that was recorded for it."""
    found = {}
    for role, weights in run.upstream.items():
        if weights.run_id is None:
            path, expected = Path(str(weights.checkpoint)), weights.sha256
        else:
            record = workspace.record(weights.run_id)
            if record is None or record.outcome is None or record.outcome.checkpoint is None:
                raise FileNotFoundError(f"run {weights.run_id} left no {role} checkpoint")
            path = workspace.folder(weights.run_id) / record.outcome.checkpoint
            expected = record.checkpoint_sha256
        if not path.is_file() or _sha256(path) != expected:
            raise FileNotFoundError(
                f"{role} checkpoint {path} is gone or has changed since it was recorded; "
                "remove the folder of the run that made it, and run again"
            )
        found[role] = path
    return found


def _seed(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)


@contextmanager
def _heeding_sigterm() -> Iterator[Callable[[], bool]]:
    """Make SIGTERM a wish: yields whether it has come. Only the main thread can have signals."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send stdout and stderr, of C code and child processes too, to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2), sys.stdout, sys.stderr
    with path.open("a", buffering=1) as log:
        try:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.stdout = sys.stderr = log
            yield
        finally:
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
            sys.stdout, sys.stderr = saved[2:]


def make_record(
    run: Run,
    site: Site,
    started: float,
    outcome: Outcome | None = None,
    error: str | None = None,
    usage: Usage | None = None,
    spent: float = 0.0,
) -> Record:
    """Return the record of a run that has just ended, in this process or in one that died.

    Args:
        started: Unix time.
        error: why it failed; None if it did not.
        usage: of its process; None when that died and took it along.
        spent: seconds of interrupted attempts.
    """
    workspace, digest = site.workspace, None
    # Rank 0 writes checkpoint and record; another may be here before the file is.
    if outcome and outcome.checkpoint and ranks.rank() == 0:
        digest = _sha256(workspace.folder(run.id) / outcome.checkpoint)
    made = provenance.collect(
        run,
        command=site.command,
        started=started,
        seconds=time.time() - started + spent,
        usage=usage or Usage(),
        phases=workspace.progress(run.id).get("phases", {}),
        weights_sha256=_weights(run, workspace),
    )
    return Record(
        id=run.id,
        run=run,
        status="ok" if error is None else "failed",
        error=error,
        outcome=outcome,
        checkpoint_sha256=digest,
        provenance=made,
    )


def _weights(run: Run, workspace: Workspace) -> dict[str, str]:
    """Role -> hash of the file that a run starts from, as far as it was recorded."""
    found = {}
    for role, weights in run.upstream.items():
        digest = weights.sha256
        if weights.run_id:
            # That record may be what the run failed of.
            with suppress(UserError):
                record = workspace.record(weights.run_id)
                digest = record.checkpoint_sha256 if record else None
        if digest:
            found[role] = digest
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
