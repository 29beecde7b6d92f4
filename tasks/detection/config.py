"""A recipe as detectron2's LazyConfig: model, loaders, optimizer, schedule.

Source: arXiv:2111.11429 (Li et al.), which arXiv:2111.06377 A.3 refers to, and arXiv:2203.16527
(ViTDet); whatever they leave open is detectron2's default.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from omegaconf import DictConfig
from torch import nn

# Before detectron2: it restores names that detectron2 reads.
from backbones import detectron2 as adapter  # isort: skip
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.solver.lr_scheduler import WarmupParamScheduler

from backbones.groups import parameter_groups, parameter_rules, unwrapped
from mae_bench.errors import UserError, unknown
from tasks.detection.data import (
    evaluator,
    fitting_side,
    num_classes,
    num_train_images,
    test_loader,
    train_loader,
)
from tasks.detection.model import detector
from tasks.engine import duration
from tasks.engine.acceleration import PRECISIONS

LOG_EVERY = 10
# Where ViTDet's lr falls: after iterations 163889 and 177546 of 184375.
MILESTONES = (8 / 9, 26 / 27)
# Steps for which these differ: a smoke run's schedule is a longer one's, read at its few places.
SHORTEST = 27


def lazy_config(
    recipe: Mapping[str, Any],
    *,
    backbone: str,
    dataset: str,
    data_root: str | Path | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> dict[str, DictConfig]:
    """Compose the LazyConfig that detectron2's own training tool understands.

    Args:
        data_root: by default $MAE_BENCH_DATA_ROOT, or as in detectron2 $DETECTRON2_DATASETS or
            ./datasets. A miniature that is not there is generated when it is first read.
        checkpoint: backbone weights; None for random ones.

    Returns:
        model, dataloader, optimizer, lr_multiplier, train.

    Raises:
        UserError: a schedule or a precision that is not known, a warm-up as long as the training.
    """
    variables = ("MAE_BENCH_DATA_ROOT", "DETECTRON2_DATASETS")
    root = str(data_root or next(filter(None, map(os.getenv, variables)), "datasets"))
    where = dict(dataset=dataset, data_root=root)
    recipe, solver = sized(recipe, dataset, root), recipe["solver"]
    if solver["amp"] not in {None, *PRECISIONS}:
        raise unknown("precision in solver.amp", str(solver["amp"]), [*PRECISIONS, "none"])
    groups = L(optimizer_groups)(
        lr=solver["lr"],
        weight_decay=solver["weight_decay"],
        layer_decay=solver["layer_decay"],
        decay_rule=solver["decay_rule"],
    )
    total, warmup = steps(solver, dataset, root)
    return {
        "model": detector(recipe, backbone, checkpoint, L(num_classes)(**where)),
        "dataloader": _dataloader(recipe, where, seed),
        # Betas of 0.9 and 0.999 are torch's default and every protocol's.
        "optimizer": L(torch.optim.AdamW)(params=groups, lr=solver["lr"], fused=True),
        "lr_multiplier": _schedule(solver["schedule"], total, warmup),
        "train": DictConfig({
            "output_dir": "./output",
            "init_checkpoint": "",
            "max_iter": total,
            # detectron2's own tool knows fp16 only; `tasks.detection.training` obeys solver.amp.
            "amp": {"enabled": solver["amp"] is not None},
            "ddp": {
                "broadcast_buffers": False,
                "find_unused_parameters": False,
                "fp16_compression": solver["fp16_compression"],
            },
            "checkpointer": {"period": solver["save_every"], "max_to_keep": 2},
            "eval_period": recipe["test"]["validate_every"] or total,
            "log_period": LOG_EVERY,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "seed": seed,
        }),
    }


def sized(recipe: Mapping[str, Any], dataset: str, data_root: str | Path) -> dict[str, Any]:
    """The recipe with an image size: one of None becomes that of the training images."""
    filled = copy.deepcopy(dict(recipe))
    if filled["data"]["image_size"] is None:
        filled["data"]["image_size"] = fitting_side(dataset, data_root)
    return filled


def steps(solver: Mapping[str, Any], dataset: str, data_root: str | Path) -> tuple[int, int]:
    """Steps of the training and of its warm-up, from epochs where iterations are None.

    An epoch is a pass over the training images that have annotations, the others are never seen.

    Raises:
        UserError: a warm-up that leaves nothing of the training.
    """
    from_epochs = None in (solver["iterations"], solver["warmup_iterations"])
    images = num_train_images(dataset, data_root) if from_epochs else 0
    total, warmup = duration(solver, images)
    if warmup >= total:
        unit = "iterations" if solver["warmup_iterations"] is not None else "epochs"
        raise UserError(
            f"solver.warmup_{unit}={solver[f'warmup_{unit}']} leaves nothing of a training of "
            f"{total} iterations; set it lower, or train longer"
        )
    return total, warmup


def optimizer_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    decay_rule: str,
) -> list[dict[str, Any]]:
    """Parameter groups of `backbones.groups` for a detector."""
    encoder = adapter.encoder_of(unwrapped(model).backbone)
    rules = parameter_rules(model, encoder, weight_decay, layer_decay, decay_rule)
    return parameter_groups(model, rules, lr)


def _schedule(name: str, total: int, warmup: int) -> DictConfig:
    """Factor of the lr: linear warm-up from a thousandth, then half a cosine or two steps down."""
    if name == "cosine":
        after = L(CosineParamScheduler)(start_value=1.0, end_value=0.0)
    elif name == "step":
        updates = max(total, SHORTEST)
        after = L(MultiStepParamScheduler)(
            values=[1.0, 0.1, 0.01],
            milestones=[round(updates * share) for share in MILESTONES],
            num_updates=updates,
        )
    else:
        raise unknown("solver.schedule", str(name), ("cosine", "step"))
    return L(WarmupParamScheduler)(
        scheduler=after, warmup_length=warmup / total, warmup_factor=0.001
    )


def large_scale_jitter(
    size: int, min_scale: float, max_scale: float, flip: float, pad_value: float | None = 128.0
) -> list[T.Augmentation]:
    """Flip, scale an image against a box of `size` px, crop or pad it to that box.

    Args:
        pad_value: of the pixels beside the image; None leaves the padding to the model, which pads
            with zeros after normalisation, the mean colour (ViTDet).

    Source: arXiv:2012.07177; detectron2 configs/common/data/coco_panoptic_separated.py.
    """
    pad = dict(pad=False) if pad_value is None else dict(pad_value=pad_value)
    return [
        T.RandomFlip(prob=flip),
        T.ResizeScale(min_scale, max_scale, size, size),
        T.FixedSizeCrop((size, size), **pad),
    ]


def _dataloader(recipe: Mapping[str, Any], where: Mapping[str, str], seed: int) -> DictConfig:
    settings, size = recipe["data"], recipe["data"]["image_size"]
    jitter = L(large_scale_jitter)(
        size=size,
        min_scale=settings["min_scale"],
        max_scale=settings["max_scale"],
        flip=settings["flip"],
        pad_value=settings["pad_value"],
    )
    whole = [L(T.ResizeShortestEdge)(short_edge_length=size, max_size=size)]
    masks = dict(use_instance_mask=True, instance_mask_format="bitmask", recompute_boxes=True)
    workers = settings["num_workers"]
    return DictConfig(
        {
            "train": L(train_loader)(
                **where,
                mapper=L(DatasetMapper)(
                    is_train=True, augmentations=jitter, image_format="RGB", **masks
                ),
                batch_size=recipe["solver"]["batch_size"],
                num_workers=workers,
                seed=seed,
                max_broken=settings["max_broken"],
            ),
            "test": L(test_loader)(
                **where,
                mapper=L(DatasetMapper)(is_train=False, augmentations=whole, image_format="RGB"),
                max_images=recipe["test"]["max_images"],
                num_workers=workers,
            ),
            "evaluator": L(evaluator)(**where),
        },
        flags={"allow_objects": True},
    )
