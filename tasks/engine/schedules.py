"""Learning rates: functions of the step, and the hook that sets them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mae_bench.errors import UserError


def cosine_lr(step: int, total: int, warmup: int, peak: float, floor: float = 0.0) -> float:
    """Linear warm-up from exactly 0, then half a cosine down to `floor`, per iteration.

    Source: facebookresearch/mae util/lr_sched.py.
    """
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def polynomial_lr(
    step: int,
    total: int,
    warmup: int,
    peak: float,
    floor: float = 0.0,
    start: float | None = None,
) -> float:
    """Linear warm-up, then linear to `floor` (mmseg's "poly" of power 1).

    Args:
        start: share of `peak` at the first step; None for the warm-up's first even part.
    """
    if step < warmup:
        if start is not None:
            return peak * (start + (1 - start) * step / warmup)
        return peak * (step + 1) / (warmup + 1)
    return floor + (peak - floor) * (1.0 - (step - warmup) / max(1, total - warmup))


def duration(solver: Mapping[str, Any], images: int) -> tuple[int, int]:
    """Steps of a training and of its warm-up.

    Args:
        solver: with iterations and warmup_iterations; where one of them is None, epochs and
            warmup_epochs stand for it.
        images: in the training set. An epoch is images / batch_size steps, not rounded: order
            goes on from one epoch to the next in the middle of a batch.

    Raises:
        UserError: neither is given.
    """
    per_epoch = images / solver["batch_size"]
    iterations, warmup = solver["iterations"], solver["warmup_iterations"]
    if iterations is None:
        if solver["epochs"] is None:
            raise UserError("training has no length: give solver.iterations or solver.epochs")
        iterations = max(1, round(solver["epochs"] * per_epoch))
    if warmup is None:
        warmup = round((solver["warmup_epochs"] or 0) * per_epoch)
    return iterations, warmup


def scaled_lr(base_lr: float, batch_size: int) -> float:
    """Actual lr = base lr x effective batch / 256 (arXiv:2111.06377 A.1)."""
    return base_lr * batch_size / 256


class LearningRate(Hook):
    """Sets each group's lr before every step: schedule(step) x the group's lr_scale."""

    def __init__(self, schedule: Callable[[int], float]):
        self.schedule = schedule

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        lr = self.schedule(runner.iter)
        for group in runner.optim_wrapper.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
