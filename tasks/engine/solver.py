"""Training and scoring as the sections of a recipe say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch.utils.data import Dataset

from backbones.groups import DEFAULT_RULE, parameter_groups, parameter_rules, write_rules
from backbones.vit import VisionTransformer
from mae_bench.errors import unknown
from mae_bench.job import Job
from tasks import distributed
from tasks.engine.lars import lars
from tasks.engine.schedules import cosine_lr, duration, scaled_lr
from tasks.engine.training import Trained, train

# Keys of `solver` that a recipe need not have, with the defaults of `train`.
OPTIONS = ("accumulation", "activation_checkpointing", "compile", "prefetch")


def fit(
    job: Job,
    model: BaseModel,
    encoder: VisionTransformer | None,
    dataset: Dataset,
    decay_rule: str = DEFAULT_RULE,
    hooks: Sequence[Hook] = (),
) -> Trained:
    """Train as the recipe's `solver` section says, and leave `parameters.csv` in the run's folder.

    The section has iterations and warmup_iterations (or epochs, see `duration`), batch_size,
    base_lr (per 256 images), min_lr, optimizer ("adamw", "lars", "sgd"; the last
    two take the first of betas as momentum), betas, weight_decay, layer_decay,
    amp, num_workers, save_every, and may have accumulation, activation_checkpointing, compile,
    prefetch (see `train`).

    Args:
        encoder: the part of `model` that layer-wise decay knows; None when there is none.
        decay_rule: one of `backbones.groups.DECAY_RULES`.
        hooks: see `train`.
    """
    solver = job.recipe["solver"]
    lr = scaled_lr(solver["base_lr"], solver["batch_size"])
    iterations, warmup = duration(solver, len(dataset))  # type: ignore[arg-type]
    rules = parameter_rules(
        model, encoder, solver["weight_decay"], solver["layer_decay"], decay_rule
    )
    if distributed.is_main():
        write_rules(rules, job.folder / "parameters.csv")
    return train(
        job,
        model,
        dataset,
        parameter_groups(model, rules, lr),
        iterations=iterations,
        batch_size=solver["batch_size"],
        schedule=partial(
            cosine_lr,
            total=iterations,
            warmup=warmup,
            peak=lr,
            floor=solver["min_lr"],
        ),
        optimizer=_optimizer(solver),
        amp=solver["amp"],
        num_workers=solver["num_workers"],
        save_every=solver["save_every"],
        collate=stack,
        hooks=hooks,
        **{name: solver[name] for name in OPTIONS if name in solver},
    )


def _optimizer(solver: Mapping[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    known = {
        "adamw": partial(torch.optim.AdamW, betas=tuple(solver["betas"]), fused=True),
        "lars": partial(lars, momentum=solver["betas"][0]),
        "sgd": partial(torch.optim.SGD, momentum=solver["betas"][0]),
    }
    if solver["optimizer"] not in known:
        raise unknown("optimizer", solver["optimizer"], known)
    return known[solver["optimizer"]]


def stack(items: list[Any]) -> Any:
    """Collate by stacking tensors (mmengine's default keeps lists, for images of many sizes)."""
    return torch.utils.data.default_collate(items)
