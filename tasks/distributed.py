"""One training over several processes: who is who, and what they tell each other.

The processes are started as torchrun starts them (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT in the environment). All of them call the task with the same job; only the main one
writes. In a process of its own everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """Number of this process among those of the run."""
    return dist.get_rank() if _running() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes work on the run."""
    return dist.get_world_size() if _running() else int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes files, progress and the record."""
    return rank() == 0


def loading_processes(asked: int) -> int:
    """How many processes load data for this one: as asked, but no more than its processors.

    Each has to import everything first, and where there are more of them they only wait for each
    other. Their number changes no result.
    """
    share = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(asked, max(1, share))


def start() -> None:
    """Join the other processes, if there are any and it has not been done: NCCL, gloo on a CPU."""
    if world_size() == 1 or _running():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def barrier() -> None:
    """Wait for all processes."""
    if _running():
        dist.barrier()


def gather(items: Iterable[Any]) -> list[Any]:
    """Items of all processes, in the order of their ranks; every process gets the whole list."""
    parts: list[Any] = [list(items)]
    if _running():
        parts = [None] * world_size()
        dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def from_main(item: Any) -> Any:
    """What the main process passes here."""
    box = [item]
    if _running():
        dist.broadcast_object_list(box)
    return box[0]


def mean(scalars: Mapping[str, float]) -> dict[str, float]:
    """Means over all processes, which must pass the same names in the same order."""
    if not _running():
        return dict(scalars)
    values = torch.tensor(list(scalars.values()), dtype=torch.float64, device=_device())
    dist.all_reduce(values)
    return dict(zip(scalars, (values / world_size()).tolist(), strict=True))


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
