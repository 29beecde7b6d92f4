"""Training and scoring as the sections of a recipe say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from timm.optim import Lars
from torch.utils.data import DataLoader, Dataset, Subset

from backbones.groups import DEFAULT_RULE, parameter_groups, parameter_rules, write_rules
from backbones.vit import VisionTransformer
from mae_bench.errors import unknown
from mae_bench.job import Job
from tasks import distributed
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
    base_lr (per 256 images), min_lr, optimizer ("adamw", "lars"), betas, weight_decay, layer_decay,
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
    if solver["optimizer"] == "adamw":
        return partial(torch.optim.AdamW, betas=tuple(solver["betas"]), fused=True)
    if solver["optimizer"] == "lars":
        return partial(Lars, momentum=solver["betas"][0], trust_coeff=0.001)
    raise unknown("optimizer", solver["optimizer"], ["adamw", "lars"])


def stack(items: list[Any]) -> Any:
    """Collate by stacking tensors (mmengine's default keeps lists, for images of many sizes)."""
    return torch.utils.data.default_collate(items)


@torch.no_grad()
def top1(model: BaseModel, dataset: Dataset, job: Job, batch_size: int = 64) -> float:
    """Share (percent) of samples whose largest logit is the label; every sample counts once.

    Args:
        model: called with `mode="predict"`, returns {"logits": (B, classes)}.
        dataset: items {"images", "labels"}, as of `tasks.data.images.ImageDataset`.
    """
    model.eval()
    # Each process scores its own samples, so that every sample counts once at any world size.
    own = range(distributed.rank(), len(dataset), distributed.world_size())  # type: ignore[arg-type]
    loader = DataLoader(Subset(dataset, own), batch_size=batch_size, collate_fn=stack)
    right = 0
    for step, batch in enumerate(loader):
        batch = model.data_preprocessor(batch, training=False)
        logits = model(**batch, mode="predict")["logits"]
        right += int((logits.argmax(dim=1) == batch["labels"]).sum())
        if distributed.is_main():
            job.report("evaluate", step + 1, len(loader))
    return 100.0 * sum(distributed.gather([right])) / len(dataset)  # type: ignore[arg-type]
