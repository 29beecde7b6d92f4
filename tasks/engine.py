"""mmengine's Runner, with what it does not do: exact order, instant and exact resume, whole files.

Everything random in training is a function of (seed, position), never of a state that would have to
be replayed: the order of an epoch of (seed, epoch), a sample's augmentation of (seed, position of
the sample in training), masks and drop path of (seed, step). A resumed run therefore needs only
weights, optimizer and step, and ends bit-identical on one device.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import pickle
import random
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner
from timm.optim import Lars
from torch.utils.data import DataLoader, Dataset, Sampler

from backbones.groups import NO_DECAY, parameter_groups, parameter_rules, write_rules
from backbones.vit import VisionTransformer
from mae_bench.errors import UserError, unknown
from mae_bench.job import STATE_FILE, Job, write_atomically


def seed_all(*parts: int) -> None:
    """Seed Python, NumPy and torch from a tuple of whole numbers, each tuple its own stream.

    Called for every sample and every step, hence the short way round `torch.manual_seed`, which
    visits all kinds of devices.
    """
    digest = hashlib.blake2b(struct.pack(f"{len(parts)}q", *parts), digest_size=12).digest()
    first, second, third = struct.unpack("3I", digest)
    random.seed(first)
    np.random.seed(second)
    torch.default_generator.manual_seed(third)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(third)


class PositionSampler(Sampler[tuple[int, int]]):
    """Endless (position, index) pairs; each epoch is a permutation of its own.

    Has mmengine's `skip`, so that a resumed loop starts anywhere at once.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.seed, self.start = size, seed, 0

    def skip(self, num_samples: int) -> None:
        """Start after this many samples."""
        self.start = num_samples

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.start
        while True:
            epoch, offset = divmod(position, self.size)
            order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
            for index in order[offset:]:
                yield position, int(index)
                position += 1


class PositionSeeded(Dataset):
    """A dataset whose random draws depend on the sample's position in training only."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, item: tuple[int, int]) -> Any:
        position, index = item
        seed_all(self.seed, 1, position)
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


def cosine_lr(step: int, total: int, warmup: int, peak: float, floor: float = 0.0) -> float:
    """Linear warm-up from exactly 0, then half a cosine down to `floor`, per iteration.

    Source: facebookresearch/mae util/lr_sched.py.
    """
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def polynomial_lr(step: int, total: int, warmup: int, peak: float, floor: float = 0.0) -> float:
    """Linear warm-up, then linear to `floor` (mmseg's "poly" of power 1)."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return floor + (peak - floor) * (1.0 - (step - warmup) / max(1, total - warmup))


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


def stack(items: list[Any]) -> Any:
    """Collate by stacking tensors (mmengine's default keeps lists, for images of many sizes)."""
    return torch.utils.data.default_collate(items)


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


def fit(
    job: Job,
    model: BaseModel,
    encoder: VisionTransformer | None,
    dataset: Dataset,
    no_decay: frozenset[str] = NO_DECAY,
) -> Trained:
    """Train as the recipe's `solver` section says, and leave `parameters.csv` in the run's folder.

    The section has iterations, batch_size, base_lr (per 256 images), min_lr, warmup_iterations,
    optimizer ("adamw", "lars"), betas, weight_decay, layer_decay, amp, num_workers, save_every.

    Args:
        encoder: the part of `model` that layer-wise decay knows; None when there is none.
        no_decay: see `backbones.groups.parameter_rules`.
    """
    solver = job.recipe["solver"]
    lr = scaled_lr(solver["base_lr"], solver["batch_size"])
    rules = parameter_rules(
        model, encoder, solver["weight_decay"], solver["layer_decay"], no_decay=no_decay
    )
    write_rules(rules, job.folder / "parameters.csv")
    return train(
        job,
        model,
        dataset,
        parameter_groups(model, rules, lr),
        iterations=solver["iterations"],
        batch_size=solver["batch_size"],
        schedule=partial(
            cosine_lr,
            total=solver["iterations"],
            warmup=solver["warmup_iterations"],
            peak=lr,
            floor=solver["min_lr"],
        ),
        optimizer=_optimizer(solver),
        amp=solver["amp"],
        num_workers=solver["num_workers"],
        save_every=solver["save_every"],
        collate=stack,
    )


def header(job: Job) -> dict[str, str]:
    """What the header of a pretrained checkpoint says of the run that made it."""
    return {
        "backbone": job.run.backbone,
        "init": job.run.init,
        "run": job.run.id,
        "recipe": json.dumps(job.recipe),
    }


def pretraining_facts(
    job: Job, encoder: VisionTransformer, dataset: Dataset, trained: Trained
) -> dict[str, object]:
    """What a pretraining's record notes beside its score: size, data and how often it was seen."""
    solver, size = job.recipe["solver"], len(dataset)  # type: ignore[arg-type]
    return {
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "training_images": size,
        "epochs": solver["iterations"] * solver["batch_size"] / size,
        "data_time_share": trained.data_time_share,
    }


def _optimizer(solver: Mapping[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    if solver["optimizer"] == "adamw":
        return partial(torch.optim.AdamW, betas=tuple(solver["betas"]), fused=True)
    if solver["optimizer"] == "lars":
        return partial(Lars, momentum=solver["betas"][0], trust_coeff=0.001)
    raise unknown("optimizer", solver["optimizer"], ["adamw", "lars"])


@torch.no_grad()
def top1(model: BaseModel, dataset: Dataset, job: Job, batch_size: int = 64) -> float:
    """Share (percent) of samples whose largest logit is the label; every sample counts once.

    Args:
        model: called with `mode="predict"`, returns {"logits": (B, classes)}.
        dataset: items {"images", "labels"}, as of `tasks.data.images.ImageDataset`.
    """
    model.eval()
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=stack)
    right = 0
    for step, batch in enumerate(loader):
        batch = model.data_preprocessor(batch, training=False)
        logits = model(**batch, mode="predict")["logits"]
        right += int((logits.argmax(dim=1) == batch["labels"]).sum())
        job.report("evaluate", step + 1, len(loader))
    return 100.0 * right / len(dataset)  # type: ignore[arg-type]
