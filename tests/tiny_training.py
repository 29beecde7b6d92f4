"""A tiny model, dataset and job for tests of the engine, and processes that run them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from mae_bench.job import Job
from mae_bench.records import Run
from tasks import engine

SOLVER = {
    "iterations": 6,
    "batch_size": 4,
    "base_lr": 0.64,
    "min_lr": 0.0,
    "optimizer": "adamw",
    "betas": [0.9, 0.999],
    "weight_decay": 0.05,
    "layer_decay": 1.0,
    "warmup_iterations": 2,
    "amp": None,
    "num_workers": 0,
    "save_every": 3,
}


class Noisy(Dataset):
    """Items that depend on Python's, NumPy's and torch's random state."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        value = torch.randn(3) + float(np.random.rand()) + index
        return {"images": value, "labels": index}


class Small(BaseModel):
    """Two layers with dropout, so that a step draws random numbers too; may die at a step."""

    def __init__(self, die_at=None, bad_at=None, dropout=0.5):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(dropout), nn.Linear(8, 1))
        self.die_at, self.bad_at, self.seen, self.calls = die_at, bad_at, [], 0

    def forward(self, images, labels, mode="loss"):
        self.calls += 1
        self.seen.append(labels.tolist())
        if self.calls == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        factor = float("nan") if self.calls == self.bad_at else 1.0
        return {"loss": self.net(images).square().mean() * factor}


class Average(Hook):
    """A running average of the weights, which has to continue as well."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.average = {name: value.clone() for name, value in model.state_dict().items()}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, 0.1)

    def state_dict(self):
        return self.average

    def load_state_dict(self, state_dict):
        self.average = state_dict


def job_in(folder: Path, **solver: Any) -> Job:
    run = Run(
        task="t",
        task_version=1,
        dataset="d",
        data_fingerprint="f",
        backbone="b",
        init="i",
        recipe="r",
        recipe_values={"solver": {**SOLVER, **solver}},
        seed=3,
    )
    folder.mkdir(exist_ok=True)
    return Job(run, folder, folder)


def train_in(folder: Path, die_at: int | None = None, **solver: Any) -> tuple[Small, Average]:
    """Train `Small` from fixed weights, or from the state in the folder."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Small(die_at)
    average = Average(model)
    engine.fit(job_in(folder, **solver), model, None, Noisy(), hooks=[average])
    return model, average


def in_processes(count: int, target: Callable[..., None], *arguments: Any) -> list[int]:
    """Call a function in fresh processes that are named as torchrun does; returns exit codes.

    They are forked off a server that has the imports done.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tasks.engine", "tasks.pretraining.mae"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        context.Process(target=_as_rank, args=(rank, count, port, target, arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _as_rank(
    rank: int, count: int, port: int, target: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    if count > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(count),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    target(*arguments)
