"""Semantic segmentation: mmseg's UperNet on ADE20K-format data, trained by `tasks.engine`.

`run` trains and scores a recipe; `mmseg_config` is the same recipe as an ordinary mmseg config, and
what `run` builds its parts from.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from backbones.groups import DEFAULT_RULE, parameter_groups, parameter_rules, write_rules
from backbones.load_report import record_load
from mae_bench.errors import UserError
from mae_bench.job import Job, write_atomically
from mae_bench.records import Outcome, Picture
from tasks import engine

# mmseg announces which optional packages it goes without; UperNet needs none of them.
with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmseg.datasets import BaseSegDataset
    from mmseg.models import EncoderDecoder
    from mmseg.registry import DATASETS, METRICS, MODELS

import backbones.mmseg  # noqa: F401 (registers MAEBenchViT)
from tasks.segmentation.config import mmseg_config
from tasks.segmentation.picture import draw
from tasks.segmentation.scores import evaluate

__all__ = ["mmseg_config", "run"]

# mmseg's default, and the one in the published recipes.
warnings.filterwarnings("ignore", message="Default ``avg_non_ignore`` is False")


def run(job: Job) -> Outcome:
    """Train UperNet on the job's dataset and score every validation image once.

    Returns:
        miou, macc, aacc in percent; the segmentor, loadable by mmseg; a picture.

    Raises:
        UserError: batch too small or too large, maps that do not fit, weights that do not fit.
    """
    config = mmseg_config(
        job.recipe,
        dataset=job.run.dataset,
        data_root=job.data_root,
        backbone=job.run.backbone,
        checkpoint=str(job.upstream["backbone"]) if "backbone" in job.upstream else None,
    )
    if (format := job.format_of("backbone")) is not None:
        config["model"]["backbone"]["format"] = format
    with building():
        model = build_segmentor(config["model"], job.run.seed)
        training = DATASETS.build(config["train_dataloader"]["dataset"])
        validation = DATASETS.build(config["val_dataloader"]["dataset"])
        metric = METRICS.build(config["val_evaluator"])
    facts = _facts(model, training, validation, job.folder)
    trained = _train(job, model, training)
    save_segmentor(model, validation, job.folder / "segmentor.pth")
    scores, examples = evaluate(job, model, validation, metric)
    draw(examples, validation.metainfo, job.folder / "segmentation.png")
    return Outcome(
        metrics=scores.metrics(),
        checkpoint="segmentor.pth",
        pictures=(Picture(path="segmentation.png", caption="Image, truth, prediction, errors"),),
        images_per_second=trained.images_per_second,
        data_time_share=trained.data_time_share,
        facts={
            **facts,
            "iou_per_class": dict(zip(validation.metainfo["classes"], scores.iou, strict=True)),
        },
    )


def _train(job: Job, model: EncoderDecoder, dataset: BaseSegDataset) -> engine.Trained:
    solver = job.recipe["solver"]
    if solver["batch_size"] < 2:
        raise UserError(
            f"solver.batch_size is {solver['batch_size']}; at least 2 are needed, because "
            "BatchNorm behind UperNet's 1x1 pooling sees one value an image"
        )
    rules = parameter_rules(
        model,
        model.backbone.encoder,
        solver["weight_decay"],
        solver["layer_decay"],
        solver.get("decay_rule", DEFAULT_RULE),
    )
    write_rules(rules, job.folder / "parameters.csv")
    return engine.train(
        job,
        model,
        dataset,
        parameter_groups(model, rules, solver["lr"]),
        iterations=solver["iterations"],
        batch_size=solver["batch_size"],
        schedule=partial(
            engine.polynomial_lr,
            total=solver["iterations"],
            warmup=solver["warmup_iterations"],
            peak=solver["lr"],
        ),
        optimizer=partial(torch.optim.AdamW, betas=tuple(solver["betas"])),
        amp=solver["amp"],
        num_workers=solver["num_workers"],
        save_every=solver["save_every"],
    )


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


def _facts(
    model: EncoderDecoder, training: BaseSegDataset, validation: BaseSegDataset, folder: Path
) -> dict[str, object]:
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameter_groups": "parameters.csv",
        **record_load(model.backbone.load_report, model.backbone.encoder, folder),
        "train_images": len(training),
        "val_images": len(validation),
    }


def save_segmentor(model: EncoderDecoder, dataset: BaseSegDataset, path: Path) -> None:
    """Write a checkpoint as mmseg's tools read it."""
    names = {key: dataset.metainfo[key] for key in ("classes", "palette")}
    weights = {key: value.cpu() for key, value in model.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"state_dict": weights, "meta": {"dataset_meta": names}}, buffer)
    write_atomically(path, buffer.getvalue(), durable=True)
