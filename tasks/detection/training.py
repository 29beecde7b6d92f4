"""detectron2's trainer and hooks, made exact: a seed per step, whole checkpoints, any device."""

from __future__ import annotations

import time

import torch
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader

# Before detectron2: it restores names that detectron2 reads.
import backbones.detectron2  # isort: skip  # noqa: F401
from detectron2.config import instantiate
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.utils.events import JSONWriter, TensorboardXWriter

from mae_bench.job import Job
from tasks.detection.config import LOG_EVERY
from tasks.engine import load_state, save_state, seed_all


class Trainer(SimpleTrainer):
    """detectron2's trainer with a seed per step and mixed precision on any device."""

    def __init__(
        self,
        model: nn.Module,
        loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        seed: int,
        amp: str | None = None,
    ):
        super().__init__(model, loader, optimizer)
        self.seed = seed
        self.autocast = dict(
            device_type=model.device.type,
            dtype=getattr(torch, amp or "bfloat16"),
            enabled=amp is not None,
        )

    def run_step(self) -> None:
        """One step of the training.

        Raises:
            FloatingPointError: the loss or the proposals are no longer finite; nothing is updated.
        """
        started = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_seconds = time.perf_counter() - started
        # After the data: what the model draws must not depend on where the samples were read.
        seed_all(self.seed, 2, self.iter)
        try:
            with torch.autocast(**self.autocast):
                losses = self.model(batch)
            self._write_metrics(losses, data_seconds)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"the training diverged at step {self.iter + 1}; lower solver.lr ({error})"
            ) from error
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()


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
        trainer, latest = self.trainer, self.trainer.storage.latest()
        step, total = trainer.iter + 1, trainer.max_iter
        self.steps += 1
        self.seconds += time.perf_counter() - self._started
        self.data_seconds += latest["data_time"][0]
        loss = latest["total_loss"][0]
        self.job.report("train", step, total, loss=loss, lr=self._lr)
        if step % LOG_EVERY == 0 or step == total:
            parts = {name: value for name, (value, _) in latest.items() if "loss_" in name}
            self.job.log_metrics(step, loss=loss, lr=self._lr, **parts)
        if step % self.save_every == 0 or step == total:
            save_state(self.job.folder, trainer.model, trainer.optimizer, step)


def train(job: Job, cfg: DictConfig, model: nn.Module) -> dict[str, float]:
    """Train from the state in the job's folder, or from the start.

    Returns:
        What this process measured: images_per_second, data_time_share; nothing if all was done.
    """
    solver, folder = job.recipe["solver"], job.folder
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    start = load_state(folder, model, optimizer)
    if start >= solver["iterations"]:
        return {}
    cfg.dataloader.train.start = start * solver["batch_size"]
    trainer = Trainer(
        model, instantiate(cfg.dataloader.train), optimizer, job.run.seed, solver["amp"]
    )
    reporter = Reporter(job, solver["save_every"])
    writers = [JSONWriter(str(folder / "metrics.json")), TensorboardXWriter(str(folder))]
    trainer.register_hooks([
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        hooks.PeriodicWriter(writers, period=LOG_EVERY),
        reporter,
    ])
    trainer.train(start, solver["iterations"])
    return {
        "images_per_second": reporter.steps * solver["batch_size"] / reporter.seconds,
        "data_time_share": reporter.data_seconds / reporter.seconds,
    }
