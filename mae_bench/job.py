"""What a task sees of its run: the resolved recipe, its folder, what lies upstream, a voice.

A task is a function `run(job: Job) -> Outcome` named in `tasks.TASKS`. It may be killed at any
moment and called again in the same folder: it then continues from what it saved there and must end
with the same numbers.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_bench.records import Run

SECONDS_BETWEEN_REPORTS = 0.5
# What a task saves to continue from; the runner removes it once the record is there.
STATE_FILE = "state.pth"
PREVIOUS_STATE_FILE = "state.previous.pth"


class Stopped(Exception):
    """The task was asked to stop and did, with its state saved: neither done nor failed."""


@dataclass
class Job:
    """One run in its folder.

    Attributes:
        run: what is to be measured.
        folder: the run's own folder; everything the task writes goes here.
        data_root: folder that holds the datasets (see `tasks.data`).
        upstream: role ("backbone", "tokenizer") -> checkpoint file to start from.
        accumulation: micro-batches per step, times the recipe's own `solver.accumulation`. More
            than 1 when the step did not fit in the GPU's memory; the effective batch is the same.
        should_stop: whether the task is asked to save its state and to raise `Stopped`.
    """

    run: Run
    folder: Path
    data_root: Path
    upstream: Mapping[str, Path] = field(default_factory=dict)
    accumulation: int = 1
    should_stop: Callable[[], bool] = lambda: False
    _last_report: float = 0.0
    _last_mark: float = field(default_factory=time.monotonic)
    _phases: dict[str, float] | None = None

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe: sections of plain values, overrides applied."""
        return self.run.recipe_values

    def format_of(self, role: str) -> str | None:
        """Format of an upstream checkpoint file where the user gave it, None to detect it."""
        weights = self.run.upstream.get(role)
        return weights.format if weights else None

    def report(self, phase: str, step: int, total: int, **scalars: float) -> None:
        """Tell where the run stands; cheap enough for every step (written at most twice a second).

        Args:
            phase: "train", "evaluate", "prepare", ...
            step: steps done, from 0; `total`: steps of this phase.
            scalars: what to show and plot (loss, lr, ...).

        Raises:
            Stopped: asked to, outside of "train", where the task saves its state first.
        """
        if phase != "train" and self.should_stop():
            raise Stopped
        now = time.monotonic()
        phases = self._account(phase, now)
        if step < total and now - self._last_report < SECONDS_BETWEEN_REPORTS:
            return
        self._last_report = now
        state = {"phase": phase, "step": step, "total": total, "time": time.time(), **scalars}
        write_atomically(self.folder / "progress.json", json.dumps({**state, "phases": phases}))

    def _account(self, phase: str, now: float) -> dict[str, float]:
        """Add the seconds since the last report to a phase; those before the first are "prepare".

        Continues the account of an interrupted attempt.
        """
        if self._phases is None:
            self._phases, phase = _phases(self.folder / "progress.json"), "prepare"
        self._phases[phase] = self._phases.get(phase, 0.0) + now - self._last_mark
        self._last_mark = now
        return self._phases

    def log_metrics(self, step: int, **scalars: float) -> None:
        """Append one point of the learning curve to `metrics.jsonl`.

        A resumed run repeats the steps since its last checkpoint; readers keep the last line of a
        step.
        """
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")


def _phases(path: Path) -> dict[str, float]:
    try:
        return dict(json.loads(path.read_text())["phases"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_atomically(path: Path, content: str | bytes, durable: bool = False) -> None:
    """Write a file so that readers see the old one or the whole new one, never a part.

    On a full disk the old one stays, and nothing is left beside it.

    Args:
        durable: also after a power failure (records, checkpoints; not progress).
    """
    # Unique on all machines that share the folder.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename is not until its folder is flushed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
