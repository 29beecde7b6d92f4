"""Detection and instance segmentation: Mask R-CNN with a plain ViT, in detectron2.

`run` trains and scores a recipe; `lazy_config` is the same recipe as an ordinary LazyConfig.
Everything random depends on (seed, position of the sample) or (seed, step), so that a resumed run
continues at the right sample and ends bit-identical on one device.
"""

from __future__ import annotations

import functools
import io

import torch
from omegaconf import DictConfig
from torch import nn

# Before detectron2: it restores names that detectron2 reads.
from backbones import detectron2 as adapter  # isort: skip
from detectron2.config import LazyConfig, instantiate

from backbones.groups import parameter_rules, write_rules
from backbones.load_report import record_load
from mae_bench.errors import UserError
from mae_bench.job import STATE_FILE, Job, write_atomically
from mae_bench.records import Outcome
from tasks import distributed
from tasks.data import coco_split, get_dataset, verify
from tasks.data.extent import contents
from tasks.data.formats import SPLITS
from tasks.detection.config import lazy_config
from tasks.detection.picture import picture
from tasks.detection.scores import evaluate, metrics_of, per_class
from tasks.detection.training import train
from tasks.detection.watching import curves
from tasks.engine import seed_all

__all__ = ["lazy_config", "run"]

MODEL_FILE = "model_final.pth"


def run(job: Job) -> Outcome:
    """Fine-tune Mask R-CNN and score it on the validation split.

    Leaves config.yaml, load_report.json, parameters.csv, metrics.json, inference/, the weights and
    a picture in the job's folder.

    Raises:
        UserError: data, checkpoint or recipe that do not fit.
        FloatingPointError: the loss is no longer finite.
    """
    distributed.start()
    cfg = DictConfig(
        lazy_config(
            job.recipe,
            backbone=job.run.backbone,
            dataset=job.run.dataset,
            data_root=job.data_root,
            checkpoint=job.upstream.get("backbone"),
            seed=job.run.seed,
        ),
        flags={"allow_objects": True},
    )
    if (format := job.format_of("backbone")) is not None:
        cfg.model.backbone.format = format
    counts = check_data(job)
    check_images(job)
    seed_all(job.run.seed, 0)
    model = instantiate(cfg.model).to(cfg.train.device)
    audit = {}
    if distributed.is_main():
        LazyConfig.save(cfg, str(job.folder / "config.yaml"))
        audit = write_audit(job, model)
    measured = train(job, cfg, model)
    results = evaluate(job, cfg, model)
    if not distributed.is_main():
        return Outcome(metrics={})
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict()}, buffer)
    write_atomically(job.folder / MODEL_FILE, buffer.getvalue(), durable=True)
    return Outcome(
        metrics=metrics_of(results),
        checkpoint=MODEL_FILE,
        pictures=(picture(job, cfg, model),),
        images_per_second=measured.get("images_per_second"),
        data_time_share=measured.get("data_time_share"),
        facts={
            **budget(job, cfg, counts["trained_images"]),
            **counts,
            **audit,
            **measured,
            **curves(job.folder, cfg.train.max_iter, results),
            "per_class": per_class(results),
        },
    )


def check_data(job: Job) -> dict[str, int]:
    """Refuse what would waste the training; returns how many images each split has.

    Raises:
        UserError: splits of other classes, or no validation annotations.
    """
    splits = {
        split: coco_split(job.run.dataset, job.data_root, split) for split in ("train", "val")
    }
    train, val = splits.values()
    if train.classes != val.classes:
        raise UserError(
            f"{train.json} and {val.json} name different categories "
            f"({', '.join(train.classes)} and {', '.join(val.classes)}); they must be the same"
        )
    found = {split: contents(files.json) for split, files in splits.items()}
    if not found["val"].annotations:
        raise UserError(f"{val.json} has no annotations, so nothing can be scored")
    return {
        "train_images": found["train"].images,
        "trained_images": found["train"].annotated,
        "val_images": found["val"].images,
    }


def check_images(job: Job) -> None:
    """Read what cannot be left out later: validation images, and all of a user's own set.

    Not again where a training continues.

    Raises:
        UserError: images that are missing, broken, or of another size than the json says.
    """
    if (job.folder / STATE_FILE).exists() or not distributed.is_main():
        return
    is_own = get_dataset(job.run.dataset).counts is None
    splits = SPLITS if is_own else ("val",)
    progress = functools.partial(job.report, "prepare")
    verify.check_images(job.run.dataset, job.data_root, splits, progress)


def budget(job: Job, cfg: DictConfig, images: int) -> dict[str, object]:
    """How long the training is, and at which size, for the record."""
    batch = job.recipe["solver"]["batch_size"]
    return {
        "iterations": cfg.train.max_iter,
        "batch_size": batch,
        "epochs": cfg.train.max_iter * batch / images,
        "image_size": cfg.model.backbone.square_pad,
    }


def write_audit(job: Job, model: nn.Module) -> dict[str, object]:
    """Write load_report.json and parameters.csv for step 0; returns the facts among them.

    Raises:
        RuntimeError: the loaded encoder no longer has the checkpoint's weights.
    """
    encoder = adapter.encoder_of(model.backbone)
    loaded = record_load(adapter.load_report_of(model.backbone), encoder, job.folder)
    solver = job.recipe["solver"]
    rules = parameter_rules(
        model,
        encoder,
        solver["weight_decay"],
        solver["layer_decay"],
        solver["decay_rule"],
    )
    write_rules(rules, job.folder / "parameters.csv")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "backbone_parameters": sum(p.numel() for p in encoder.parameters()),
        **loaded,
    }
