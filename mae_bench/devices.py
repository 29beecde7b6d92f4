"""Which GPU a run gets: one of its own, or one it is known to fit on beside the others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from mae_bench.errors import UserError

QUERY = "--query-gpu=index,uuid,memory.free"
# Beside what torch allocates: the CUDA context and libraries, and what its allocator keeps back.
CONTEXT_MB = 600.0
RESERVED = 1.25


@dataclass(frozen=True)
class Device:
    """A GPU: its name in CUDA_VISIBLE_DEVICES, its free memory before any run (None: unknown)."""

    name: str
    free_mb: float | None = None


def find() -> list[Device]:
    """Return the GPUs that this process may use, without waking any of them up."""
    try:
        command = ["nvidia-smi", QUERY, "--format=csv,noheader,nounits"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return visible(lines.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(listing: str, allowed: str | None) -> list[Device]:
    """Return the GPUs of nvidia-smi's listing that CUDA_VISIBLE_DEVICES allows.

    A name that the listing lacks (a slice of a GPU) is kept; nothing is known of its memory.

    Args:
        listing: a line "index, uuid, free MB" per GPU.
        allowed: the variable's value, None if it is not set.
    """
    free: dict[str, float] = {}
    indices = []
    for line in listing.splitlines():
        index, uuid, memory = (part.strip() for part in line.split(","))
        indices.append(index)
        free[index] = free[uuid] = float(memory) if memory.replace(".", "").isdigit() else 0.0
    names = indices if allowed is None else [name.strip() for name in allowed.split(",")]
    return [Device(name, free.get(name) or None) for name in names if name and name != "-1"]


class Devices:
    """Hands GPUs out to runs; without any, every run may start and computes on the CPU.

    Args:
        found: see `find`.
        per_run: GPUs that each run gets.

    Raises:
        UserError: there are GPUs, but fewer than a run needs.
    """

    def __init__(self, found: Sequence[Device], per_run: int = 1):
        if found and per_run > len(found):
            raise UserError(
                f"a run needs {per_run} GPUs, this machine lets us use {len(found)} "
                f"({', '.join(device.name for device in found)}); give fewer GPUs per run"
            )
        self._found, self._per_run = list(found), per_run
        # Device -> run -> MB that it needs, None if unknown.
        self._users: dict[str, dict[str, float | None]] = {device.name: {} for device in found}

    def take(self, run_id: str, peak_mb: float | None) -> tuple[str, ...] | None:
        """Return the names of the run's GPUs (none on a CPU), None if it has to wait.

        A run has a GPU to itself unless it and all the others there have been measured and fit
        together.

        Args:
            peak_mb: largest memory that torch allocated in a run like this one, None if unknown.
        """
        if not self._found:
            return ()
        need = None if peak_mb is None else RESERVED * peak_mb + CONTEXT_MB
        idle = [device.name for device in self._found if not self._users[device.name]]
        chosen = tuple(idle[: self._per_run])
        if len(chosen) < self._per_run:
            room = {device.name: self._room(device) for device in self._found}
            best = max(room, key=lambda name: room[name])
            if self._per_run > 1 or need is None or need > room[best]:
                return None
            chosen = (best,)
        for name in chosen:
            self._users[name][run_id] = need
        return chosen

    def give_back(self, run_id: str) -> None:
        """Take a run off its GPUs."""
        for users in self._users.values():
            users.pop(run_id, None)

    def _room(self, device: Device) -> float:
        """MB that are left on a GPU; nothing where somebody's need is unknown."""
        needs = self._users[device.name].values()
        known = [need for need in needs if need is not None]
        if device.free_mb is None or len(known) < len(needs):
            return 0.0
        return device.free_mb - sum(known)
