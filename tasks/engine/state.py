"""What a training saves to continue from."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import torch
from mmengine.optim import OptimWrapper

from mae_bench.job import STATE_FILE, write_atomically


def save_state(folder: Path, model: torch.nn.Module, optimizer: OptimWrapper, step: int) -> None:
    """Write weights, optimizer and step; the file appears whole or not at all."""
    buffer = io.BytesIO()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, buffer)
    write_atomically(folder / STATE_FILE, buffer.getvalue(), durable=True)


def load_state(folder: Path, model: torch.nn.Module, optimizer: OptimWrapper) -> int:
    """Restore what `save_state` wrote; returns the step, 0 when there is nothing to restore.

    A file that a broken disk has damaged counts as nothing: the run then starts again.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        print(f"{path} cannot be read ({error}); starting again")
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
