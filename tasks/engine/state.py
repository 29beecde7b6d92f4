"""What a training saves to continue from: the last state, and the one before it.

torch writes a zip archive, with a CRC-32 of every member. torch does not look at it when it reads;
`load_state` does, so that a file damaged after it was written is noticed.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mae_bench.errors import UserError
from mae_bench.job import PREVIOUS_STATE_FILE, STATE_FILE, write_atomically


class Stateful(Protocol):
    """Part of a training that continues: model, optimizer, averaged weights."""

    def state_dict(self) -> dict[str, Any]:
        """What to save."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Restore it."""


def save_state(
    folder: Path, model: Stateful, optimizer: Stateful, step: int, **others: Stateful
) -> None:
    """Write the state after a step; what was the last state becomes the previous one.

    Args:
        others: name -> what else continues (averaged weights).

    Raises:
        UserError: no space or no permission; the states that were there remain.
    """
    parts = {"model": model, "optimizer": optimizer, **others}
    buffer = io.BytesIO()
    torch.save({**{name: part.state_dict() for name, part in parts.items()}, "step": step}, buffer)
    path, fresh = folder / STATE_FILE, folder / f"{STATE_FILE}.new"
    try:
        write_atomically(fresh, buffer.getvalue(), durable=True)
        if path.exists():
            path.replace(folder / PREVIOUS_STATE_FILE)
        fresh.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot save the state of step {step} to {path}: {error.strerror or error}; make room "
            "there and give the same command again, it continues from the last state"
        ) from error


def load_state(folder: Path, model: Stateful, optimizer: Stateful, **others: Stateful) -> int:
    """Restore what `save_state` wrote; returns the step, 0 when there is nothing to restore.

    A damaged file counts as nothing: the run then continues from the previous one, if that is
    whole, or starts again.
    """
    for name in (STATE_FILE, PREVIOUS_STATE_FILE):
        state = _read(folder / name)
        if state is not None:
            for key, part in {"model": model, "optimizer": optimizer, **others}.items():
                part.load_state_dict(state[key])
            return int(state["step"])
    return 0


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
        reason = f"{damaged} does not match its checksum"
    except Exception as error:  # whatever a damaged archive makes of its readers
        reason = str(error)
    print(f"{path} cannot be read ({reason}); continuing from what was saved before it")
    return None


def is_finite(state: object) -> bool:
    """Whether no number in a state (tensors in dictionaries and lists) is infinite or NaN."""
    if isinstance(state, Tensor):
        return not state.is_floating_point() or bool(state.isfinite().all())
    if isinstance(state, Mapping):
        return all(is_finite(value) for value in state.values())
    if isinstance(state, list | tuple):
        return all(is_finite(value) for value in state)
    return True
