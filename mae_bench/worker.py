"""A run's process, from both sides: how it starts, how it ends, and what its end means."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import parent_process

from mae_bench import claims
from mae_bench.errors import NoSpace
from mae_bench.plan import PlannedRun
from mae_bench.records import Record
from mae_bench.runner import Site, TryAgain

Execute = Callable[[PlannedRun, Site], Record | None]


class Ending(IntEnum):
    """Exit codes of a process that leaves no record, and is right not to."""

    STOPPED = 75
    CLAIMED = 76
    AGAIN = 77
    FULL = 78
    LOST = claims.LOST


def perform(work: Execute, planned: PlannedRun, site: Site) -> Record:
    """Execute a run and return its record; without one this process ends, with an `Ending`."""
    try:
        record = work(planned, site)
    except claims.Claimed:
        sys.exit(Ending.CLAIMED)
    except TryAgain:
        sys.exit(Ending.AGAIN)
    except NoSpace:
        sys.exit(Ending.FULL)
    if record is None:
        sys.exit(Ending.STOPPED)
    return record


@dataclass
class Worker:
    """A run in its process."""

    planned: PlannedRun
    process: ForkServerProcess
    started: float = field(default_factory=time.time)

    @classmethod
    def start(
        cls,
        context: ForkServerContext,
        work: Execute,
        planned: PlannedRun,
        site: Site,
        gpus: tuple[str, ...] = (),
    ) -> Worker:
        """Start the process; it sees these GPUs only (any, if none are named)."""
        process = context.Process(target=_work, args=(work, planned, site, gpus))
        process.start()
        return cls(planned, process)

    @property
    def is_alive(self) -> bool:
        """Whether the process goes on."""
        return bool(self.process.is_alive())

    def ask_to_stop(self) -> None:
        """Have the run save its state and end."""
        self.process.terminate()

    def kill(self) -> None:
        """End the process and all that it has started, now; of a dead one, what it has left."""
        with suppress(ProcessLookupError):
            os.killpg(int(self.process.pid or 0), signal.SIGKILL)
        self.process.join()

    def cause_of_death(self) -> str:
        """Say how the process ended that should have left a record."""
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"the run's process ended with code {code} and left no record"
        name = signal.Signals(-code).name
        hint = ", perhaps by the out-of-memory killer" if name == "SIGKILL" else ""
        return f"the run's process was killed with {name}{hint}"


def _work(work: Execute, planned: PlannedRun, site: Site, gpus: tuple[str, ...]) -> None:
    # A group of its own: Ctrl-C goes to the launcher alone, which decides, and whatever this
    # process starts can be ended with it.
    os.setpgrp()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable(2, all_threads=False)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    perform(work, planned, site)


def _die_with_parent() -> None:
    """End this process and its group when the launcher is gone, however it went."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)
