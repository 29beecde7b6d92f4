"""detectron2's trainer and hooks, made exact: a seed per step, whole checkpoints, any device."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

# Before detectron2: it restores names that detectron2 reads.
import backbones.detectron2  # isort: skip  # noqa: F401
from detectron2.config import instantiate
from detectron2.engine import HookBase, SimpleTrainer, create_ddp_model, hooks
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils.events import JSONWriter, TensorboardXWriter

from backbones.groups import unwrapped
from mae_bench.errors import UserError
from mae_bench.job import Job, Stopped
from tasks import distributed
from tasks.detection.config import LOG_EVERY
from tasks.detection.watching import Validation
from tasks.engine import load_state, save_state
from tasks.engine.acceleration import precision
from tasks.engine.order import end_steps, seed_step

# Below this many images BatchNorm's means are noise (64 in the papers' runs).
FEW_IMAGES = 16
# fp16: the scale starts at 2^16 and halves each time, so this many in a row fit no scale at all.
MOST_SKIPPED = 30


class Trainer(SimpleTrainer):
    """detectron2's trainer with a seed per step, micro-batches and mixed precision on any device.

    Args:
        model: wrapped for several processes, if there are any.
        accumulation: forward and backward passes per step, on equal parts of this process's batch.
            BatchNorm sees one part at a time; losses are means of the parts' own.
        dtype: of the forward pass; None for fp32.
        scaler: of the loss; needed for float16.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        seed: int,
        accumulation: int = 1,
        dtype: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ):
        super().__init__(model, loader, optimizer)
        self.seed, self.accumulation = seed, accumulation
        device = next(model.parameters()).device.type
        self.autocast = dict(
            device_type=device, dtype=dtype or torch.bfloat16, enabled=dtype is not None
        )
        self.scaler = scaler or torch.amp.GradScaler(device, enabled=False)
        self.skipped_in_a_row = 0

    def run_step(self) -> None:
        """One step of the training.

        Raises:
            FloatingPointError: the loss or the proposals are no longer finite; nothing is updated.
        """
        started = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_seconds = time.perf_counter() - started
        self.optimizer.zero_grad()
        try:
            losses = self._differentiate(batch)
            self._check_together(losses)
            self._write_metrics(losses, data_seconds)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"the training diverged at step {self.iter + 1}; lower solver.lr ({error})"
            ) from error
        self._update()

    def _differentiate(self, batch: list[Any]) -> dict[str, Tensor]:
        """Add up the gradients of the micro-batches; returns the means of their losses."""
        parts, share = self.accumulation, len(batch) // self.accumulation
        first, count = distributed.rank() * parts, distributed.world_size() * parts
        means: dict[str, Tensor] = {}
        for part in range(parts):
            # After the data: what the model draws must not depend on where the samples were read.
            seed_step(self.seed, self.iter, first + part, count)
            with self._exchange(part == parts - 1):
                with torch.autocast(**self.autocast):
                    losses = self.model(batch[part * share : (part + 1) * share])
                if parts > 1:
                    losses = {name: loss / parts for name, loss in losses.items()}
                self.scaler.scale(sum(losses.values())).backward()
            means = {name: means.get(name, 0) + loss.detach() for name, loss in losses.items()}
        return means

    def _exchange(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients once per step, in its last backward pass."""
        waits = not last and isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if waits else contextlib.nullcontext()

    def _check_together(self, losses: Mapping[str, Tensor]) -> None:
        """Fail on all processes if one has to: the others would wait for it for ever."""
        if distributed.world_size() > 1:
            total = distributed.mean({"loss": float(sum(losses.values()))})["loss"]
            if not math.isfinite(total):
                raise FloatingPointError(f"loss {total}")

    def _update(self) -> None:
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        left_out = self.scaler.get_scale() < scale
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * left_out
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise FloatingPointError(
                f"{MOST_SKIPPED} fp16 steps in a row overflowed up to step {self.iter + 1}; "
                "lower solver.lr, or give solver.amp=bfloat16"
            )


class Reporter(HookBase):
    """Tells the job where the run stands, draws the learning curve, saves the state."""

    def __init__(self, job: Job, save_every: int):
        self.job, self.save_every = job, save_every
        self.steps, self.seconds, self.data_seconds = 0, 0.0, 0.0

    def before_step(self) -> None:
        self._started = time.perf_counter()
        # Read here: after the step the lr is already the next one's.
        self._lr = max(group["lr"] for group in self.trainer.optimizer.param_groups)

    def after_step(self) -> None:
        step, total = self.trainer.iter + 1, self.trainer.max_iter
        # The same on all processes: one that stopped alone would leave the others waiting.
        stop = distributed.mean({"stop": float(self.job.should_stop())})["stop"] > 0
        self.steps += 1
        self.seconds += time.perf_counter() - self._started
        if distributed.is_main():
            self._report(step, total)
            if stop or step % self.save_every == 0 or step == total:
                save_state(
                    self.job.folder,
                    unwrapped(self.trainer.model),
                    self.trainer.optimizer,
                    step,
                    scaler=self.trainer.scaler,
                )
        if stop and step < total:
            raise Stopped

    def _report(self, step: int, total: int) -> None:
        latest = self.trainer.storage.latest()
        self.data_seconds += latest["data_time"][0]
        loss = latest["total_loss"][0]
        self.job.report("train", step, total, loss=loss, lr=self._lr)
        if step % LOG_EVERY == 0 or step == total:
            parts = {name: value for name, (value, _) in latest.items() if "loss_" in name}
            self.job.log_metrics(step, loss=loss, lr=self._lr, **parts)


def train(job: Job, cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """Train from the state in the job's folder, or from the start; the model has the result.

    Returns:
        What this process measured and how it was done: images_per_second, data_time_share (neither
        if all was done), processes, micro_batches_per_step, precision, images_per_norm.

    Raises:
        UserError: a batch that cannot be divided, a precision that the device lacks.
        FloatingPointError: the loss is no longer finite.
        Stopped: the job was asked to stop; the state is saved.
    """
    solver, folder, total = job.recipe["solver"], job.folder, cfg.train.max_iter
    device = next(model.parameters()).device.type
    dtype = precision(solver["amp"], device)
    parts = solver["accumulation"] * job.accumulation
    facts = division(solver["batch_size"], parts, model)
    facts["precision"] = solver["amp"] or "float32"
    model = spread(model, cfg.train.ddp)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    start = load_state(folder, unwrapped(model), optimizer, scaler=scaler)
    if start >= total:
        return facts
    cfg.dataloader.train.start = start * solver["batch_size"]
    loader = instantiate(cfg.dataloader.train)
    trainer = Trainer(model, loader, optimizer, job.run.seed, parts, dtype, scaler)
    reporter = Reporter(job, solver["save_every"])
    trainer.register_hooks([
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        *_writers(folder),
        reporter,
        *([Validation(job, cfg, every)] if (every := job.recipe["test"]["validate_every"]) else []),
    ])
    try:
        trainer.train(start, total)
    finally:
        end_steps()
    share_buffers(unwrapped(model))
    return {
        "images_per_second": reporter.steps * solver["batch_size"] / reporter.seconds,
        "data_time_share": reporter.data_seconds / reporter.seconds,
        **facts,
    }


def _writers(folder: Path) -> list[HookBase]:
    if not distributed.is_main():
        return []
    writers = [JSONWriter(str(folder / "metrics.json")), TensorboardXWriter(str(folder))]
    return [hooks.PeriodicWriter(writers, period=LOG_EVERY)]


def division(batch_size: int, parts: int, model: nn.Module) -> dict[str, Any]:
    """How a batch is divided over processes and micro-batches, for the record.

    Raises:
        UserError: it does not come out even.
    """
    world = distributed.world_size()
    if batch_size % (world * parts):
        raise UserError(
            f"solver.batch_size {batch_size} cannot be divided over {world} processes x {parts} "
            f"micro-batches: {batch_size} / {world * parts} is not whole; choose a multiple of "
            f"{world * parts}, or another solver.accumulation"
        )
    facts: dict[str, Any] = {"processes": world, "micro_batches_per_step": parts}
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if norms:
        synchronised = any(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
        images = batch_size // parts // (1 if synchronised else world)
        facts["images_per_norm"] = images
        if images < FEW_IMAGES:
            facts["hint"] = (
                f"BatchNorm sees {images} images at a time, {FEW_IMAGES} are a safe least: give "
                "more processes, a smaller solver.accumulation, or GN for model.head_norm and "
                "model.fpn_norm"
            )
            print(facts["hint"])
    return facts


def spread(model: nn.Module, options: DictConfig) -> nn.Module:
    """Wrap a model for several processes, if there are any; detectron2's way, on CPUs too."""
    if distributed.world_size() == 1:
        return model
    if next(model.parameters()).is_cuda:
        return create_ddp_model(model, device_ids=[torch.cuda.current_device()], **options)
    synchronise_on_cpu(model)
    return create_ddp_model(model, device_ids=None, **options)


def synchronise_on_cpu(model: nn.Module) -> None:
    """Replace torch's synchronised BatchNorm, which needs a GPU, by detectron2's, in place.

    It weighs processes by their number of images or regions: what one process would see, where
    these have one size.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.SyncBatchNorm):
                own = NaiveSyncBatchNorm(child.num_features, eps=child.eps, stats_mode="N")
                own.load_state_dict(child.state_dict())
                setattr(module, name, own)


def share_buffers(model: nn.Module) -> None:
    """Give all processes the main one's buffers: each may have had a BatchNorm of its own."""
    if distributed.world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
