"""The work folder: `schema.json`, and one folder a run with its claim, progress and record."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_bench import claims
from mae_bench.errors import UserError
from mae_bench.job import write_atomically
from mae_bench.plan import Plan
from mae_bench.records import READABLE, SCHEMA_VERSION, Record, Run, is_readable, read_records

MIN_FREE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Workspace:
    """A work folder; `root` need not exist to be asked about."""

    root: Path

    @property
    def runs(self) -> Path:
        """Folder of the runs' folders."""
        return self.root / "runs"

    def folder(self, run_id: str) -> Path:
        """Folder of one run."""
        return self.runs / run_id

    def check(self) -> None:
        """Refuse a work folder of another schema version, untouched.

        Raises:
            UserError: another version, or `runs/` without a version.
        """
        path = self.root / "schema.json"
        if not path.exists() and not self.runs.exists():
            return
        try:
            version = json.loads(path.read_text())["schema"]
        except (OSError, ValueError, KeyError, TypeError):
            version = None
        if not is_readable(version):
            raise UserError(
                f"work folder {self.root} has schema version {version!r}, this mae-bench needs "
                f"{READABLE}; it is left as it is. Give another --work-dir"
            )

    def create(self) -> None:
        """Make the folder ready for training.

        Raises:
            UserError: another schema version, no permission, no space.
        """
        self.check()
        require_space(self.root, "--work-dir")
        self.runs.mkdir(exist_ok=True)
        write_atomically(self.root / "schema.json", json.dumps({"schema": SCHEMA_VERSION}))

    @contextmanager
    def claim(self, run_id: str, wait: bool = True) -> Iterator[float]:
        """Hold a run's folder; see `claims.hold`.

        Yields:
            seconds that earlier, interrupted attempts had worked on it.

        Raises:
            claims.Claimed: another worker holds it, and `wait` is off.
        """
        folder = self.folder(run_id)
        with claims.hold(folder, wait):
            # Of an attempt that was killed while it wrote.
            for litter in folder.glob(".*.tmp"):
                litter.unlink(missing_ok=True)
            yield self._spent(run_id)

    def _spent(self, run_id: str) -> float:
        try:
            return float(sum(self.progress(run_id).get("phases", {}).values()))
        except (AttributeError, TypeError):
            return 0.0

    def is_claimed(self, run_id: str) -> bool:
        """Whether a worker holds the run's folder; one that cannot be asked counts as alive."""
        return claims.Watch().is_held(self.folder(run_id))

    def forget(self, run_ids: Iterable[str]) -> None:
        """Remove runs' folders: all of them, or none if one is in use.

        Raises:
            UserError: one of them is being worked on.
        """
        ids = list(run_ids)
        for run_id in ids:
            if self.is_claimed(run_id):
                raise self._in_use(run_id)
        for run_id in ids:
            try:
                claims.remove(self.folder(run_id))
            except claims.Claimed:
                raise self._in_use(run_id) from None

    def forgive(self, run_ids: Iterable[str]) -> None:
        """Have runs that failed repeated: their records go, what they saved to continue stays."""
        for run_id, record in self.records(run_ids).items():
            if record.status == "failed" and not self.is_claimed(run_id):
                (self.folder(run_id) / "record.json").unlink(missing_ok=True)

    def _in_use(self, run_id: str) -> UserError:
        claim = claims.current(self.folder(run_id))
        by = f" by process {claim.holder.pid} on {claim.holder.host}" if claim else ""
        return UserError(
            f"run {run_id} is being worked on{by}; stop that first, or wait until it has ended"
        )

    def record(self, run_id: str) -> Record | None:
        """Return a run's record, None if it left none.

        Raises:
            UserError: a record that cannot be read.
        """
        path = self.folder(run_id) / "record.json"
        return Record.read(path) if path.is_file() else None

    def records(self, run_ids: Iterable[str] | None = None) -> dict[str, Record]:
        """Return the records of these runs (of all runs) that left one."""
        ids = self.run_ids() if run_ids is None else run_ids
        paths = [self.folder(run_id) / "record.json" for run_id in ids]
        found = read_records(path for path in paths if path.is_file())
        return {path.parent.name: record for path, record in found.items()}

    def run_ids(self) -> list[str]:
        """Ids of all runs that have a folder."""
        return sorted(path.parent.name for path in self.runs.glob("*/config.json"))

    def run(self, run_id: str) -> Run:
        """Return what a run's folder is for."""
        config = json.loads((self.folder(run_id) / "config.json").read_text())
        return Run.model_validate(config["run"])

    def progress(self, run_id: str) -> dict[str, Any]:
        """Return the last progress report (phase, step, total, time, ...), empty if none."""
        try:
            found = json.loads((self.folder(run_id) / "progress.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def since(self, run_id: str) -> float:
        """Unix time at which the present worker took the run, by its own clock."""
        claim = claims.current(self.folder(run_id))
        return claim.holder.since if claim else time.time()

    def states(self, plan: Plan, records: dict[str, Record] | None = None) -> dict[str, str]:
        """Return run id -> "ok", "running", "failed: ...", "blocked" or "missing".

        Blocked runs need one that failed.
        """
        found = self.records(run.run.id for run in plan.runs) if records is None else records
        states: dict[str, str] = {}
        for planned in plan.runs:
            run_id = planned.run.id
            if self.is_claimed(run_id):
                states[run_id] = "running"
            elif run_id in found:
                states[run_id] = state_of(found[run_id])
            elif any(
                states[need].startswith(("failed", "blocked")) for need in planned.dependencies
            ):
                states[run_id] = "blocked"
            else:
                states[run_id] = "missing"
        return states


def state_of(record: Record) -> str:
    """Return "ok", or "failed: " and the last line of the error."""
    if record.status == "ok":
        return "ok"
    lines = (record.error or "no reason recorded").splitlines()
    return f"failed: {lines[-1]}"


def require_space(folder: Path, option: str) -> None:
    """Make a folder and check that it can be written to and has room.

    Raises:
        UserError: if not; `option` is what would name another folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}. Give a writable folder with {option}"
        ) from None
    if free < MIN_FREE_BYTES:
        raise UserError(
            f"{folder} has {free / 1e9:.2f} GB of disk left, {MIN_FREE_BYTES / 1e9:.0f} GB is "
            f"needed. Make room, or give another folder with {option}"
        )
