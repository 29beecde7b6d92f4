"""One run over several processes of this machine, each with a GPU of its own where there are any.

The processes are forked, so they share what has been imported, and are named as torchrun names
them. When one dies the others would wait for it for ever: they are killed, and the record says who
was first.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from multiprocessing.process import parent_process
from typing import Any

from mae_bench import ranks
from mae_bench.plan import PlannedRun
from mae_bench.records import Record
from mae_bench.runner import Site, execute, make_record, save
from mae_bench.worker import Ending, Execute, perform

LOCAL = "127.0.0.1"
# Rank 0 ends last but for clean-up.
SECONDS_AFTER_RANK_0 = 60.0


@dataclass(frozen=True)
class Processes:
    """Executes a run in this many processes; called like `runner.execute`, in a process of its own.

    Attributes:
        number: of processes; one works right here.
        work: what each of them does.
    """

    number: int
    work: Execute = execute

    def __call__(self, planned: PlannedRun, site: Site) -> Record | None:
        """Return the record; without one, end this process as `worker.perform` would."""
        ranks.become({}, "")
        if self.number == 1:
            return self.work(planned, site)
        started, port, attempt = time.time(), _free_port(), uuid.uuid4().hex
        context = multiprocessing.get_context("fork")
        members = []
        for rank in range(self.number):
            variables = _variables(rank, self.number, port)
            arguments = (self.work, planned, site, variables, attempt)
            members.append(context.Process(target=_member, args=arguments))
        _pass_on(signal.SIGTERM, members)
        for member in members:
            member.start()
        death = _wait(members)
        for member in members:
            if member.exitcode in set(Ending):
                sys.exit(member.exitcode)
        if death:
            record = make_record(planned.run, site, started, error=death)
            save(record, site.workspace.folder(planned.run.id))
        return site.workspace.record(planned.run.id)


def _variables(rank: int, number: int, port: int) -> dict[str, str]:
    values = (rank, number, rank, number, LOCAL, port)
    return dict(zip(ranks.VARIABLES, map(str, values), strict=True))


def _free_port() -> int:
    with socket.create_server((LOCAL, 0)) as listener:
        return int(listener.getsockname()[1])


def _member(
    work: Execute, planned: PlannedRun, site: Site, variables: dict[str, str], attempt: str
) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    ranks.become(variables, attempt)
    try:
        code = int(perform(work, planned, site).status != "ok")
    except SystemExit as end:
        # All stop together, but rank 0 has a state to save first.
        code = 0 if end.code == Ending.STOPPED and ranks.rank() > 0 else int(end.code or 0)
    sys.exit(code)


def _die_with_parent() -> None:
    """End this process when the one that started it is gone, however it went (`kill -9` too)."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _pass_on(number: signal.Signals, members: list[ForkProcess]) -> None:
    """Hand a signal to the members: they know how to stop, this process only waits for them."""

    def handle(*_: Any) -> None:
        for member in members:
            if member.is_alive() and member.pid:
                os.kill(member.pid, number)

    signal.signal(number, handle)


def _wait(members: list[ForkProcess]) -> str | None:
    """Wait for all; the first that ends badly takes the others along.

    Returns:
        how one of them was killed; None if none was (one that failed has said so itself).
    """
    alive = list(members)
    while alive and not any(member.exitcode for member in members):
        patience = None if members[0] in alive else SECONDS_AFTER_RANK_0
        if not wait([member.sentinel for member in alive], patience):
            break
        alive = [member for member in alive if member.is_alive()]
    killed = [rank for rank, member in enumerate(members) if (member.exitcode or 0) < 0]
    for member in alive:
        member.kill()
        member.join()
    if not killed:
        return None
    number = signal.Signals(-int(members[killed[0]].exitcode or 0))
    return f"rank {killed[0]} of {len(members)} was killed with {number.name}"
