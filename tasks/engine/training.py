"""mmengine's Runner, with what it does not do: exact order, instant and exact resume, whole files.

A resumed run needs only weights, optimizer and step (see `order`), and ends bit-identical on one
device.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from mae_bench.errors import UserError
from mae_bench.job import STATE_FILE, Job
from tasks.engine.order import PositionSampler, PositionSeeded, seed_all
from tasks.engine.schedules import LearningRate
from tasks.engine.state import load_state, save_state


class Reporter(Hook):
    """Seeds each step, watches the loss, tells the job where the run stands, saves its state."""

    # Last of the hooks: it must see the finished step.
    priority = "LOWEST"

    def __init__(self, job: Job, total: int, save_every: int, log_every: int = 10):
        self.job, self.total = job, total
        self.save_every, self.log_every = save_every, log_every
        self.seconds = self.data_seconds = 0.0
        self.steps = 0
        self._started = self._ended = time.perf_counter()

    def before_train(self, runner: Runner) -> None:
        self._ended = time.perf_counter()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._started = time.perf_counter()
        self.data_seconds += self._started - self._ended
        seed_all(self.job.run.seed, 2, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        step, loss = runner.iter + 1, outputs["loss"].item()
        lr = max(group["lr"] for group in runner.optim_wrapper.param_groups)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss} at step {step} (lr {lr:.3g}); the last good state is "
                f"{self.job.folder / STATE_FILE}. Lower the solver's learning rate"
            )
        if step % self.log_every == 0 or step == self.total:
            parts = {k: v.item() for k, v in outputs.items() if k != "loss" and "loss" in k}
            self.job.log_metrics(step, loss=loss, lr=lr, **parts)
        self.job.report("train", step, self.total, loss=loss)
        if step % self.save_every == 0 or step == self.total:
            save_state(self.job.folder, runner.model, runner.optim_wrapper, step)
        self.steps += 1
        now = time.perf_counter()
        self.seconds += now - self._ended
        self._ended = now


@dataclass(frozen=True)
class Trained:
    """What a training measured. Rates are of this process, resumed steps not counted twice."""

    images_per_second: float | None
    data_time_share: float | None


def train(
    job: Job,
    model: BaseModel,
    dataset: Dataset,
    groups: Sequence[dict[str, Any]],
    *,
    iterations: int,
    batch_size: int,
    schedule: Callable[[int], float],
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    amp: str | None = None,
    num_workers: int = 0,
    save_every: int = 50,
    collate: Callable[[list[Any]], Any] = pseudo_collate,
) -> Trained:
    """Train with mmengine's Runner, from the state in the job's folder if there is one.

    Args:
        model: mmengine model; its `train_step` computes the loss and updates.
        groups: optimizer groups (`backbones.groups.parameter_groups`).
        schedule: step -> lr before layer scaling.
        optimizer: called with the groups (bind its own options with `functools.partial`).
        amp: None for fp32, "bfloat16" or "float16" for mixed precision.

    Raises:
        UserError: batch larger than the dataset (it would never see a whole batch of an epoch).
        FloatingPointError: the loss is no longer finite.
    """
    size = len(dataset)  # type: ignore[arg-type]
    if batch_size > size:
        raise UserError(
            f"batch of {batch_size} is larger than the training set of {size} images; "
            f"set solver.batch_size to at most {size}"
        )
    if not math.isfinite(schedule(iterations // 2)):
        raise UserError("the learning rate is not a finite number; check the solver's lr")
    steps = Reporter(job, iterations, save_every)
    wrapper = _optim_wrapper(optimizer(groups), amp)
    runner = Runner(
        model=model,
        work_dir=str(job.folder / "mmengine"),
        train_dataloader=DataLoader(
            PositionSeeded(dataset, job.run.seed),
            batch_size=batch_size,
            sampler=PositionSampler(size, job.run.seed),
            num_workers=num_workers,
            collate_fn=collate,
            persistent_workers=num_workers > 0,
        ),
        train_cfg=dict(by_epoch=False, max_iters=iterations, val_interval=iterations + 1),
        optim_wrapper=wrapper,
        default_hooks=dict(
            checkpoint=None, sampler_seed=None, logger=dict(type="LoggerHook", interval=50)
        ),
        custom_hooks=[LearningRate(schedule), steps],
        visualizer=dict(
            type="Visualizer",
            vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
            name=job.run.id,
        ),
        randomness=dict(seed=job.run.seed),
        experiment_name=f"{job.run.id}-{time.time_ns()}",
        default_scope="mmengine",
        log_level=logging.INFO,
    )
    runner.train_loop._iter = load_state(job.folder, model, wrapper)
    if runner.train_loop._iter < iterations:
        runner.train()
    MMLogger._instance_dict.clear()
    rate = steps.steps * batch_size / steps.seconds if steps.steps else None
    share = steps.data_seconds / steps.seconds if steps.steps else None
    return Trained(images_per_second=rate, data_time_share=share)


def _optim_wrapper(optimizer: torch.optim.Optimizer, amp: str | None) -> OptimWrapper:
    if amp is None:
        return OptimWrapper(optimizer=optimizer)
    return AmpOptimWrapper(optimizer=optimizer, dtype=amp)
