"""A recipe as detectron2's LazyConfig: Mask R-CNN, loaders, optimizer, schedule.

Source: arXiv:2111.11429 (Li et al.), which arXiv:2111.06377 A.3 refers to; whatever it leaves open
is detectron2's default.
"""

from __future__ import annotations

import math
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
from detectron2 import modeling
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from detectron2.solver.lr_scheduler import WarmupParamScheduler

from backbones.groups import DEFAULT_RULE, parameter_groups, parameter_rules
from mae_bench.errors import UserError
from tasks.detection.data import evaluator, num_classes, test_loader, train_loader

# ImageNet's, in RGB on 0..255, as in pretraining.
PIXEL_MEAN, PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
LOG_EVERY = 10


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
    solver = recipe["solver"]
    if solver["amp"] not in {None, "bfloat16"}:
        raise UserError(f"solver.amp={solver['amp']!r} is not known: None, bfloat16")
    groups = L(optimizer_groups)(
        lr=solver["lr"],
        weight_decay=solver["weight_decay"],
        layer_decay=solver["layer_decay"],
        decay_rule=solver.get("decay_rule", DEFAULT_RULE),
    )
    return {
        "model": _model(recipe, backbone, checkpoint, L(num_classes)(**where)),
        "dataloader": _dataloader(recipe, where, seed),
        "optimizer": L(torch.optim.AdamW)(params=groups, lr=solver["lr"], fused=True),
        "lr_multiplier": _schedule(solver),
        "train": DictConfig({
            "output_dir": "./output",
            "init_checkpoint": "",
            "max_iter": solver["iterations"],
            "amp": {"enabled": solver["amp"] is not None},
            "ddp": {"broadcast_buffers": False, "find_unused_parameters": False},
            "checkpointer": {"period": solver["save_every"], "max_to_keep": 2},
            "eval_period": solver["iterations"],
            "log_period": LOG_EVERY,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "seed": seed,
        }),
    }


def optimizer_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    decay_rule: str = DEFAULT_RULE,
) -> list[dict[str, Any]]:
    """Parameter groups of `backbones.groups` for a detector."""
    encoder = adapter.encoder_of(model.backbone)
    rules = parameter_rules(model, encoder, weight_decay, layer_decay, decay_rule)
    return parameter_groups(model, rules, lr)


def _schedule(solver: Mapping[str, Any]) -> DictConfig:
    total, warmup = solver["iterations"], solver["warmup_iterations"]
    if warmup >= total:
        raise UserError(
            f"solver.warmup_iterations={warmup} leaves nothing of solver.iterations={total}; "
            f"set it below {total}"
        )
    if solver["schedule"] == "cosine":
        after = L(CosineParamScheduler)(start_value=1.0, end_value=0.0)
    elif solver["schedule"] == "step":  # ViTDet's milestones, as shares of the training
        milestones = [round(total * share) for share in (0.889, 0.963)]
        after = L(MultiStepParamScheduler)(
            values=[1.0, 0.1, 0.01], milestones=milestones, num_updates=total
        )
    else:
        raise UserError(f"solver.schedule={solver['schedule']!r} is not known: cosine, step")
    return L(WarmupParamScheduler)(
        scheduler=after, warmup_length=warmup / total, warmup_factor=0.001
    )


def large_scale_jitter(
    size: int, min_scale: float, max_scale: float, flip: float
) -> list[T.Augmentation]:
    """Flip, scale an image against a box of `size` px, crop or pad it to that box.

    Source: arXiv:2012.07177; detectron2 configs/common/data/coco_panoptic_separated.py.
    """
    return [
        T.RandomFlip(prob=flip),
        T.ResizeScale(min_scale, max_scale, size, size),
        T.FixedSizeCrop((size, size)),
    ]


def _dataloader(recipe: Mapping[str, Any], where: Mapping[str, str], seed: int) -> DictConfig:
    settings, size = recipe["data"], recipe["data"]["image_size"]
    jitter = L(large_scale_jitter)(
        size=size,
        min_scale=settings["min_scale"],
        max_scale=settings["max_scale"],
        flip=settings["flip"],
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


def _model(
    recipe: Mapping[str, Any],
    backbone: str,
    checkpoint: str | Path | None,
    classes: DictConfig,
) -> DictConfig:
    model, strides = recipe["model"], list(recipe["model"]["strides"])
    levels = strides + ([2 * strides[-1]] if model["top_level"] else [])
    return L(modeling.GeneralizedRCNN)(
        backbone=L(adapter.vit_fpn)(
            name=backbone,
            strides=strides,
            checkpoint=checkpoint and str(checkpoint),
            out_channels=model["fpn_channels"],
            norm=model["fpn_norm"],
            top_level=model["top_level"],
            square_pad=recipe["data"]["image_size"],
            drop_path_rate=model["drop_path"],
        ),
        proposal_generator=_proposals(model, levels),
        roi_heads=_roi_heads(model, recipe["test"], strides, classes),
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
        input_format="RGB",
    )


def _proposals(model: Mapping[str, Any], strides: list[int]) -> DictConfig:
    channels, ratios = model["fpn_channels"], list(model["aspect_ratios"])
    return L(RPN)(
        in_features=[adapter.level_name(stride) for stride in strides],
        head=L(StandardRPNHead)(
            in_channels=channels, num_anchors=len(ratios), conv_dims=[-1] * model["rpn_convs"]
        ),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[size] for size in model["anchor_sizes"]],
            aspect_ratios=ratios,
            strides=strides,
            offset=0.0,
        ),
        anchor_matcher=L(Matcher)(
            thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=model["rpn_samples"],
        positive_fraction=0.5,
        pre_nms_topk=[model["pre_nms"]] * 2,
        post_nms_topk=[model["post_nms"]] * 2,
        nms_thresh=0.7,
    )


def _roi_heads(
    model: Mapping[str, Any], test: Mapping[str, Any], strides: list[int], classes: DictConfig
) -> DictConfig:
    channels, norm = model["fpn_channels"], model["head_norm"]
    features = [adapter.level_name(stride) for stride in strides]

    def pooled(size: int) -> dict[str, DictConfig]:
        pooler = L(ROIPooler)(
            output_size=size,
            scales=[1 / stride for stride in strides],
            sampling_ratio=0,
            pooler_type="ROIAlignV2",
            canonical_box_size=model["roi_canonical_size"],
            canonical_level=int(math.log2(strides[-1])),
        )
        return dict(pooler=pooler, shape=L(ShapeSpec)(channels=channels, height=size, width=size))

    box, mask = pooled(model["box_resolution"]), pooled(model["mask_resolution"])
    return L(StandardROIHeads)(
        num_classes=classes,
        batch_size_per_image=model["roi_samples"],
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(
            thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
        ),
        box_in_features=features,
        box_pooler=box["pooler"],
        box_head=L(FastRCNNConvFCHead)(
            input_shape=box["shape"],
            conv_dims=[channels] * model["box_convs"],
            fc_dims=[model["box_fc"]],
            conv_norm=norm,
        ),
        box_predictor=L(FastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels=model["box_fc"]),
            box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
            num_classes=classes,
            test_score_thresh=test["score_threshold"],
            test_nms_thresh=test["nms"],
            test_topk_per_image=test["detections_per_image"],
        ),
        mask_in_features=features,
        mask_pooler=mask["pooler"],
        mask_head=L(MaskRCNNConvUpsampleHead)(
            input_shape=mask["shape"],
            num_classes=classes,
            conv_dims=[channels] * (model["mask_convs"] + 1),
            conv_norm=norm,
        ),
    )
