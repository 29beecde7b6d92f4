"""The processes that share one run: what each of them knows, and what they agree on beforehand.

Whoever starts them names them as torchrun does (RANK, WORLD_SIZE, ...). Rank 0 owns the run: it
claims the folder, writes, and leaves the record. The others wait for it and then call the task with
the same job. They wait on a file: a claim may take hours to get, a process group gives up sooner.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from mae_bench.job import write_atomically

# Differs whenever the ranks are started anew, so that files of an earlier start say nothing.
ATTEMPT = "MAE_BENCH_ATTEMPT"
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# torchrun's: MASTER_PORT is its own, where no rank needs to listen.
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
SUMMONS = ".summons"
SECONDS_BETWEEN_LOOKS = 0.2


def rank() -> int:
    """Number of this process among those of its run."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes work on the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def are_torchruns() -> bool:
    """Whether torchrun has started this process, and named it."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def become(variables: Mapping[str, str], attempt: str) -> None:
    """Take these torchrun variables; without any, be a process of its own whatever came along.

    The shell of a cluster may hold another program's.
    """
    for name in (*VARIABLES, ATTEMPT, AGENT_STORE):
        os.environ.pop(name, None)
    if variables:
        os.environ.update(variables, **{ATTEMPT: attempt})


def summon(folder: Path) -> None:
    """Let the other ranks begin; rank 0 calls this once the folder is its own."""
    if rank() == 0 and world_size() > 1:
        for old in folder.glob(".failure.*"):
            old.unlink(missing_ok=True)
        write_atomically(folder / SUMMONS, _attempt())


def await_summons(folder: Path, is_done: Callable[[], bool]) -> None:
    """Wait until rank 0 lets the others begin, or has found the run done already."""
    while not is_done():
        with suppress(FileNotFoundError):
            if (folder / SUMMONS).read_text() == _attempt():
                return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def blame(folder: Path, reason: str) -> str:
    """Return why the run failed: what the first of its ranks to fail said.

    The first failure makes the others fail too, with a lost connection, which explains nothing.
    """
    if world_size() == 1:
        return reason
    path = folder / f".failure.{_attempt()}"
    with suppress(FileExistsError), path.open("x") as file:
        file.write(f"rank {rank()} of {world_size()}: {reason}")
    return path.read_text() or reason


def leave() -> None:
    """Leave the process group, if the task has joined one."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


def log_name() -> str:
    """Name of this process's log in the run's folder."""
    return "log.txt" if rank() == 0 else f"log.rank{rank()}.txt"


def _attempt() -> str:
    return os.environ[ATTEMPT]
