"""mmengine's Runner, with what it does not do: exact order, instant and exact resume, whole files.

A resumed run needs only weights, optimizer and step (see `order`), and ends bit-identical on one
device.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mae_bench.errors import UserError
from mae_bench.job import Job
from tasks import distributed
from tasks.engine.acceleration import (
    MixedPrecision,
    checkpoint_activations,
    compile_forward,
    optim_wrapper,
)
from tasks.engine.loop import Clock, MicroBatchLoop, Reporter
from tasks.engine.order import PositionSampler, PositionSeeded, end_steps
from tasks.engine.schedules import LearningRate
from tasks.engine.state import load_state


@dataclass(frozen=True)
class Trained:
    """What a training measured. Rates are of this process's time, resumed steps left out.

    Attributes:
        images_per_second: of all processes together.
        data_time_share: share of the time spent waiting for data.
        facts: how it was done, for the record: processes, micro-batches, precision, hints.
    """

    images_per_second: float | None
    data_time_share: float | None
    facts: dict[str, object] = field(default_factory=dict)


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
    accumulation: int = 1,
    activation_checkpointing: bool = False,
    compile: bool = False,
    num_workers: int = 0,
    prefetch: int = 2,
    save_every: int = 50,
    collate: Callable[[list[Any]], Any] = pseudo_collate,
    hooks: Sequence[Hook] = (),
) -> Trained:
    """Train with mmengine's Runner, from the state in the job's folder if there is one.

    Args:
        model: mmengine model; its `train_step` computes the loss and updates.
        groups: optimizer groups (`backbones.groups.parameter_groups`).
        iterations: optimizer steps.
        batch_size: images per step, over all processes and micro-batches.
        schedule: step -> lr before layer scaling.
        optimizer: called with the groups (bind its own options with `functools.partial`).
        amp: None for fp32, "bfloat16" or "float16" (GPU only) for mixed precision.
        accumulation: micro-batches per step, times the job's own.
        activation_checkpointing: keep the blocks' inputs only and compute the rest twice.
        compile: compile the forward pass, where the machine can.
        prefetch: batches that each worker loads ahead.
        hooks: more mmengine hooks; one that has `state_dict` and `load_state_dict` continues too.

    Raises:
        UserError: a batch that is larger than the dataset or cannot be divided, a precision that
            the device lacks, an lr that is no number; before anything is trained.
        FloatingPointError: the loss or the weights are no longer finite.
        Stopped: the job was asked to stop; the state is saved.
    """
    distributed.start()
    world, device = distributed.world_size(), get_device()
    passes = accumulation * job.accumulation
    _check(dataset, batch_size, passes, schedule, iterations)
    wrapper = optim_wrapper(optimizer(groups), amp, torch.device(device).type, passes)
    if activation_checkpointing:
        checkpoint_activations(model)
    not_compiled = compile_forward(model.to(device), device) if compile else None
    if not_compiled:
        print(not_compiled)
    others = {type(hook).__name__: hook for hook in hooks if hasattr(hook, "state_dict")}
    reporter = Reporter(job, iterations, batch_size, save_every, others)
    name = f"{job.run.id}-{time.time_ns()}"
    runner = Runner(
        model=_spread(model, device) if world > 1 else model,
        work_dir=str(job.folder / "mmengine"),
        train_dataloader=_loader(job, dataset, batch_size, num_workers, prefetch, collate),
        train_cfg=dict(
            type=MicroBatchLoop,
            max_iters=iterations,
            val_interval=iterations + 1,
            seed=job.run.seed,
            accumulation=passes,
        ),
        optim_wrapper=wrapper,
        default_hooks=dict(
            checkpoint=None, sampler_seed=None, logger=dict(type="LoggerHook", interval=50)
        ),
        custom_hooks=[LearningRate(schedule), *hooks, reporter],
        log_processor=dict(by_epoch=False),
        visualizer=dict(
            type="Visualizer",
            vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
            name=name,
        ),
        randomness=dict(seed=job.run.seed),
        experiment_name=name,
        default_scope="mmengine",
        log_level=logging.INFO,
    )
    runner.train_loop._iter = load_state(job.folder, model, wrapper, **others)
    try:
        if runner.train_loop._iter < iterations:
            runner.train()
    except UserError as error:
        raise _without_traceback(error) from None
    finally:
        end_steps()
        MMLogger._instance_dict.clear()
    facts: dict[str, object] = {
        "processes": world,
        "micro_batches_per_step": passes,
        "precision": amp or "float32",
        "not_compiled": not_compiled,
        "skipped_steps": wrapper.skipped if isinstance(wrapper, MixedPrecision) else None,
        "hint": reporter.clock.hint,
        "broken_images": _broken(dataset),
    }
    return _measured(reporter.clock, batch_size, facts)


def _measured(clock: Clock, batch_size: int, facts: dict[str, object]) -> Trained:
    if clock.hint:
        print(clock.hint)
    rate = clock.steps * batch_size / clock.seconds if clock.steps else None
    told = {name: value for name, value in facts.items() if value is not None}
    return Trained(rate, clock.data_share, told)


def _broken(dataset: Dataset) -> list[str] | None:
    """What an image dataset left out, if it does that."""
    broken = getattr(dataset, "broken", None)
    return broken.places or None if broken is not None else None


def _without_traceback(error: UserError) -> UserError:
    """The message alone, where the error comes from a worker of the loader with its traceback."""
    return UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip())


def _check(
    dataset: Dataset,
    batch_size: int,
    passes: int,
    schedule: Callable[[int], float],
    iterations: int,
) -> None:
    size, world = len(dataset), distributed.world_size()  # type: ignore[arg-type]
    if world * passes > size:
        raise UserError(
            f"{world} processes x solver.accumulation {passes} = {world * passes} micro-batches of "
            f"at least one image are more than the training set of {size} images; set "
            f"solver.accumulation to at most {max(1, size // world)}"
        )
    if batch_size > size:
        # It would never see a whole batch of an epoch.
        raise UserError(
            f"batch of {batch_size} is larger than the training set of {size} images; "
            f"set solver.batch_size to at most {size}"
        )
    if batch_size % (world * passes):
        raise UserError(
            f"solver.batch_size {batch_size} cannot be divided over {world} processes x {passes} "
            f"micro-batches: {batch_size} / {world * passes} is not whole; choose a multiple of "
            f"{world * passes}, or another solver.accumulation"
        )
    if not math.isfinite(schedule(iterations // 2)):
        raise UserError("the learning rate is not a finite number; check the solver's lr")
    if schedule(iterations) > schedule(iterations - 1) and distributed.is_main():
        print(
            f"WARNING: the warm-up leaves nothing of a training of {iterations} iterations, so the "
            "learning rate never reaches its peak; set solver.warmup_iterations or "
            "solver.warmup_epochs lower, or train longer"
        )


def _loader(
    job: Job,
    dataset: Dataset,
    batch_size: int,
    num_workers: int,
    prefetch: int,
    collate: Callable[[list[Any]], Any],
) -> DataLoader:
    """Batches of this process's share of each step."""
    rank, world = distributed.rank(), distributed.world_size()
    num_workers = distributed.loading_processes(num_workers)
    return DataLoader(
        PositionSeeded(dataset, job.run.seed),
        batch_size=batch_size // world,
        sampler=PositionSampler(len(dataset), job.run.seed, batch_size, rank, world),  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=collate,
        persistent_workers=num_workers > 0,
        prefetch_factor=prefetch if num_workers > 0 else None,
        pin_memory=torch.cuda.is_available(),
    )


def _spread(model: BaseModel, device: str) -> nn.Module:
    """Wrap a model for several processes. On a CPU BatchNorm sees its own process's samples only.

    Without a GPU torch has no synchronised one.
    """
    if device == "cpu":
        return MMDistributedDataParallel(revert_sync_batchnorm(model), broadcast_buffers=False)
    local = torch.cuda.current_device()
    return MMDistributedDataParallel(model.to(device), device_ids=[local], broadcast_buffers=False)
