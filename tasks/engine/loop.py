"""mmengine's loop with steps of several micro-batches, and the hook that watches it."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from mae_bench.job import PREVIOUS_STATE_FILE, STATE_FILE, Job, Stopped
from tasks import distributed
from tasks.engine.acceleration import MixedPrecision
from tasks.engine.order import seed_step
from tasks.engine.state import Stateful, is_finite, save_state

# Above this share of the time, more workers are worth a thought.
SLOW_LOADING = 0.3
# fp16: the scale starts at 2^16 and halves each time, so this many in a row fit no scale at all.
MOST_SKIPPED = 30


class MicroBatchLoop(IterBasedTrainLoop):
    """A step is one batch, in several forward and backward passes if it does not fit in one.

    mmengine counts each pass as an iteration; here schedules, saves and limits count steps.

    Args:
        seed: of what the model draws.
        accumulation: passes per step; they divide the samples that the loader gives.
    """

    def __init__(self, *args: Any, seed: int, accumulation: int = 1, **options: Any):
        super().__init__(*args, **options)
        self.seed, self.accumulation = seed, accumulation

    def run_iter(self, data_batch: Any) -> None:
        """Do one step."""
        self.runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data_batch)
        first = distributed.rank() * self.accumulation
        pieces = distributed.world_size() * self.accumulation
        outputs = []
        for number, batch in enumerate(split(data_batch, self.accumulation)):
            seed_step(self.seed, self._iter, first + number, pieces)
            outputs.append(self.runner.model.train_step(batch, self.runner.optim_wrapper))
        means = outputs[0]
        if self.accumulation > 1:
            means = {key: torch.stack([o[key] for o in outputs]).mean() for key in outputs[0]}
        self.runner.call_hook(
            "after_train_iter", batch_idx=self._iter, data_batch=data_batch, outputs=means
        )
        self._iter += 1


def split(batch: Any, parts: int) -> list[Any]:
    """Cut a batch (tensors or lists, in dictionaries) into equal parts of consecutive samples."""
    if parts == 1:
        return [batch]
    if isinstance(batch, Mapping):
        pieces = {key: split(value, parts) for key, value in batch.items()}
        return [{key: piece[i] for key, piece in pieces.items()} for i in range(parts)]
    size = len(batch) // parts
    return [batch[i * size : (i + 1) * size] for i in range(parts)]


@dataclass
class Clock:
    """Where the time of a training goes; of this process only."""

    steps: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    _ended: float = field(default_factory=time.perf_counter)

    def start(self) -> None:
        """The loop begins."""
        self._ended = time.perf_counter()

    def loaded(self) -> None:
        """The batch of a step is there."""
        self.data_seconds += time.perf_counter() - self._ended

    def stepped(self) -> None:
        """A step is done, everything that follows it included."""
        now = time.perf_counter()
        self.seconds += now - self._ended
        self.steps, self._ended = self.steps + 1, now

    @property
    def data_share(self) -> float | None:
        """Share of the time spent waiting for data."""
        return self.data_seconds / self.seconds if self.steps else None

    @property
    def hint(self) -> str | None:
        """What to do when loading is the bottleneck."""
        share = self.data_share or 0.0
        if share <= SLOW_LOADING:
            return None
        return (
            f"loading is the bottleneck: {share:.0%} of the time was spent waiting for data. Raise "
            "solver.num_workers, keep the images on a faster disk, or store them smaller"
        )


class Reporter(Hook):
    """Watches the loss, tells the job where the run stands, saves its state.

    Args:
        batch_size: of a whole step.
        others: name -> what is saved beside model and optimizer.
    """

    # Last of the hooks: it must see the finished step.
    priority = "LOWEST"

    def __init__(
        self,
        job: Job,
        total: int,
        batch_size: int,
        save_every: int,
        others: Mapping[str, Stateful] | None = None,
        log_every: int = 10,
    ):
        self.job, self.total, self.batch_size = job, total, batch_size
        self.save_every, self.log_every, self.others = save_every, log_every, others or {}
        self.clock = Clock()

    def before_train(self, runner: Runner) -> None:
        # mmengine counts passes here, this project's loop steps; without a limit it asks for none.
        runner.optim_wrapper.initialize_count_status(runner.model, 0, -1)
        self.clock.start()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.clock.loaded()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        step, wrapper = runner.iter + 1, runner.optim_wrapper
        losses = {key: value.item() for key, value in outputs.items() if "loss" in key}
        # The same on all processes: one that stopped alone would leave the others waiting.
        told = distributed.mean({**losses, "stop": float(self.job.should_stop())})
        stop = told.pop("stop") > 0
        lr = max(group["lr"] for group in wrapper.param_groups)
        self._check(wrapper, told["loss"], step, lr)
        if step % self.log_every == 0 or step == self.total:
            self._log(runner, step, {**told, "lr": lr})
        if distributed.is_main():
            self.job.report("train", step, self.total, loss=told["loss"])
        if stop or step % self.save_every == 0 or step == self.total:
            self._save(runner, step, lr)
        self.clock.stepped()
        if stop and step < self.total:
            raise Stopped

    def _check(self, wrapper: Any, loss: float, step: int, lr: float) -> None:
        scaled = isinstance(wrapper, MixedPrecision) and wrapper.scaler.is_enabled()
        if scaled and wrapper.skipped_in_a_row >= MOST_SKIPPED:
            raise self._failure(f"{MOST_SKIPPED} fp16 steps in a row overflowed", step, lr)
        # In fp16 the scaler leaves such a step out.
        if not scaled and not math.isfinite(loss):
            raise self._failure(f"the loss became {loss}", step, lr)

    def _failure(self, what: str, step: int, lr: float) -> FloatingPointError:
        paths = [self.job.folder / name for name in (STATE_FILE, PREVIOUS_STATE_FILE)]
        state = next((str(path) for path in paths if path.exists()), "none: nothing was saved yet")
        return FloatingPointError(
            f"{what} at step {step} (lr {lr:.3g}); the last good state is {state}. "
            "Lower the solver's learning rate"
        )

    def _log(self, runner: Runner, step: int, scalars: dict[str, float]) -> None:
        if distributed.is_main():
            self.job.log_metrics(step, **scalars)
        # To the log and to TensorBoard, not to the learning curve: times differ between equal runs.
        clock = self.clock
        if clock.steps:
            speed = clock.steps * self.batch_size / clock.seconds
            runner.message_hub.update_scalar("train/images_per_second", speed)
            runner.message_hub.update_scalar("train/data_time_share", clock.data_share)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        runner.message_hub.update_scalar("train/peak_memory_mb", peak)

    def _save(self, runner: Runner, step: int, lr: float) -> None:
        model, wrapper = bare(runner.model), runner.optim_wrapper
        # A finite loss can have gradients that are not.
        if not is_finite([*model.parameters()]) or not is_finite(wrapper.state_dict()):
            raise self._failure("weights or optimizer became infinite or NaN", step, lr)
        if distributed.is_main():
            save_state(self.job.folder, model, wrapper, step, **self.others)


def bare(model: nn.Module) -> nn.Module:
    """The model without its wrapper for several processes."""
    return model.module if is_model_wrapper(model) else model
