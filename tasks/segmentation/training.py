"""Building a segmentor from an mmseg config, training it as a recipe says, and saving it."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmseg.datasets import BaseSegDataset
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS

from backbones.groups import DEFAULT_RULE, parameter_groups, parameter_rules, write_rules
from mae_bench.job import Job, write_atomically
from tasks import distributed, engine


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Let mmseg's registry find its own parts, without the story of every parameter in the log."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with DefaultScope.overwrite_default_scope("mmseg"):
            yield
    finally:
        logger.setLevel(level)


def build_segmentor(config: Mapping[str, Any], seed: int) -> EncoderDecoder:
    """Build and initialise; nothing of it depends on what ran before in this process."""
    engine.seed_all(seed, 0)
    model = MODELS.build(ConfigDict(copy.deepcopy(config)))
    model.init_weights()
    # The Runner would call it again and log all parameters once more.
    model.init_weights = lambda: None
    return model


def train(
    job: Job, model: EncoderDecoder, dataset: BaseSegDataset, hooks: list[Hook]
) -> engine.Trained:
    """Train as the recipe's `solver` section says; leaves `parameters.csv` in the run's folder."""
    solver = job.recipe["solver"]
    iterations, warmup = engine.duration(solver, len(dataset))
    rules = parameter_rules(
        model,
        model.backbone.encoder,
        solver["weight_decay"],
        solver["layer_decay"],
        solver.get("decay_rule", DEFAULT_RULE),
    )
    if distributed.is_main():
        write_rules(rules, job.folder / "parameters.csv")
    return engine.train(
        job,
        model,
        dataset,
        parameter_groups(model, rules, solver["lr"]),
        iterations=iterations,
        batch_size=solver["batch_size"],
        schedule=partial(
            engine.polynomial_lr,
            total=iterations,
            warmup=warmup,
            peak=solver["lr"],
            start=solver.get("warmup_factor"),
        ),
        optimizer=partial(torch.optim.AdamW, betas=tuple(solver["betas"])),
        amp=solver["amp"],
        num_workers=solver["num_workers"],
        save_every=solver["save_every"],
        hooks=hooks,
        **{name: solver[name] for name in engine.OPTIONS if name in solver},
    )


def save_segmentor(model: EncoderDecoder, dataset: BaseSegDataset, path: Path) -> None:
    """Write a checkpoint as mmseg's tools read it."""
    names = {key: dataset.metainfo[key] for key in ("classes", "palette")}
    weights = {key: value.cpu() for key, value in model.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"state_dict": weights, "meta": {"dataset_meta": names}}, buffer)
    write_atomically(path, buffer.getvalue(), durable=True)
