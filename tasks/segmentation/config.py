"""A segmentation recipe written out as an ordinary mmseg config.

Source: arXiv:2111.06377 A.4, which uses the code of microsoft/unilm beit/semantic_segmentation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backbones import describe
from backbones.groups import DEFAULT_RULE
from mae_bench.errors import UserError
from tasks import data
from tasks.segmentation.transforms import IGNORED

IMAGENET_MEAN, IMAGENET_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def mmseg_config(
    recipe: Mapping[str, Any],
    *,
    dataset: str = "mini-ade20k",
    data_root: Path | None = None,
    backbone: str = "vit_mini_patch8",
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """Write a recipe out as an mmseg config for mmseg's own Runner and tools.

    Args:
        recipe: as in configs/segmentation/.
        data_root: folder of the datasets; None for $MAE_BENCH_DATA_ROOT, or else ./datasets. A
            miniature that is not there is generated.
        checkpoint: backbone weights; None for random ones.

    Returns:
        top-level mmengine keys (model, train_dataloader, optim_wrapper, train_cfg, ...).
    """
    root = data_root or Path(os.environ.get("MAE_BENCH_DATA_ROOT", "datasets"))
    if not (root / dataset).exists():
        data.prepare(dataset, root)
    splits = {split: data.ade20k_split(dataset, root, split) for split in ("train", "val")}
    train = _dataset(splits["train"], train_pipeline(recipe, len(splits["train"].classes)))
    val = _dataset(splits["val"], val_pipeline(recipe), test=recipe["test"])
    evaluation = dict(
        batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False), dataset=val
    )
    return dict(
        custom_imports=dict(imports=["backbones.mmseg", "tasks.segmentation"]),
        model=_model(recipe, len(splits["train"].classes), backbone, checkpoint),
        train_pipeline=train["pipeline"],
        train_dataloader=dict(
            batch_size=recipe["solver"]["batch_size"],
            num_workers=recipe["solver"]["num_workers"],
            sampler=dict(type="InfiniteSampler", shuffle=True),
            dataset=train,
        ),
        val_dataloader=evaluation,
        test_dataloader=evaluation,
        val_evaluator=dict(type="IoUMetric", iou_metrics=["mIoU"]),
        test_evaluator=dict(type="IoUMetric", iou_metrics=["mIoU"]),
        val_cfg=dict(type="ValLoop"),
        test_cfg=dict(type="TestLoop"),
        **_schedule(recipe["solver"]),
        **_runtime(),
    )


def train_pipeline(recipe: Mapping[str, Any], num_classes: int) -> list[dict[str, Any]]:
    """Jitter, crop, flip, colours. Source: implus/mae_segmentation configs/_base_/datasets."""
    settings = recipe["data"]
    size, crop = settings["image_size"], settings["crop_size"]
    loading: list[dict[str, Any]] = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations"),
        dict(type="CheckLabels", num_classes=num_classes),
    ]
    if settings["cache"]:
        loading = [dict(type="CachedLoading", transforms=loading)]
    return [
        *loading,
        dict(
            type="RandomResize",
            scale=(4 * size, size),
            ratio_range=tuple(settings["scale_range"]),
            keep_ratio=True,
        ),
        dict(type="RandomCrop", crop_size=(crop, crop), cat_max_ratio=settings["class_max_share"]),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PhotoMetricDistortion"),
        dict(type="PackSegInputs"),
    ]


def val_pipeline(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Resize the image only: the map stays at its original resolution."""
    size = recipe["data"]["image_size"]
    return [
        dict(type="LoadImageFromFile"),
        dict(type="Resize", scale=(4 * size, size), keep_ratio=True),
        dict(type="LoadAnnotations"),
        dict(type="PackSegInputs"),
    ]


def _dataset(
    split: data.Ade20kSplit, pipeline: list[dict[str, Any]], test: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    limit = {} if test is None or test["max_images"] is None else {"indices": test["max_images"]}
    return dict(
        type="BaseSegDataset",
        data_prefix=dict(img_path=str(split.images), seg_map_path=str(split.annotations)),
        metainfo=dict(classes=tuple(split.classes), palette=[list(rgb) for rgb in split.palette]),
        # The one place of the shift: 0 becomes 255, k becomes k - 1, in training and evaluation.
        reduce_zero_label=True,
        pipeline=pipeline,
        test_mode=test is not None,
        **limit,
    )


def _model(
    recipe: Mapping[str, Any], num_classes: int, backbone: str, checkpoint: str | None
) -> dict[str, Any]:
    settings, crop = recipe["model"], recipe["data"]["crop_size"]
    about = describe(backbone)
    plain = len(about.strides) == 1
    widths = list(about.channels) * (len(settings["scales"]) if plain else 1)
    levels = len(widths)
    head = dict(
        num_classes=num_classes,
        dropout_ratio=settings["dropout"],
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
    )
    cross_entropy = dict(type="CrossEntropyLoss", use_sigmoid=False)
    return dict(
        type="EncoderDecoder",
        data_preprocessor=dict(
            type="SegDataPreProcessor",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            bgr_to_rgb=True,
            pad_val=0,
            seg_pad_val=IGNORED,
            size=(crop, crop),
            test_cfg=dict(size_divisor=max(about.strides)),
        ),
        backbone=dict(
            type="MAEBenchViT",
            arch=backbone,
            img_size=crop if plain else None,
            out_indices=settings["taps"],
            scales=settings["scales"],
            drop_path_rate=settings["drop_path_rate"],
            frozen=settings["freeze_backbone"],
            checkpoint=checkpoint,
        ),
        decode_head=dict(
            type="UPerHead",
            in_channels=widths,
            in_index=list(range(levels)),
            pool_scales=tuple(settings["pool_scales"]),
            channels=settings["channels"],
            loss_decode=dict(cross_entropy, loss_weight=1.0),
            **head,
        ),
        auxiliary_head=dict(
            type="FCNHead",
            in_channels=widths[-2],
            in_index=levels - 2,
            channels=settings["aux_channels"],
            num_convs=1,
            concat_input=False,
            loss_decode=dict(cross_entropy, loss_weight=settings["aux_weight"]),
            **head,
        ),
        train_cfg=dict(),
        test_cfg=_inference(recipe["test"], crop),
    )


def _inference(settings: Mapping[str, Any], crop: int) -> dict[str, Any]:
    if settings["mode"] == "whole":
        return dict(mode="whole")
    if settings["mode"] == "slide":
        stride = settings["stride"]
        return dict(mode="slide", crop_size=(crop, crop), stride=(stride, stride))
    raise UserError(f"test.mode is {settings['mode']!r}; it must be 'whole' or 'slide'")


def _schedule(solver: Mapping[str, Any]) -> dict[str, Any]:
    total, warmup = solver["iterations"], solver["warmup_iterations"]
    return dict(
        optim_wrapper=dict(
            type="OptimWrapper" if solver["amp"] is None else "AmpOptimWrapper",
            **({} if solver["amp"] is None else {"dtype": solver["amp"]}),
            constructor="MAEBenchGroups",
            paramwise_cfg=dict(
                layer_decay=solver["layer_decay"],
                decay_rule=solver.get("decay_rule", DEFAULT_RULE),
            ),
            optimizer=dict(
                type="AdamW",
                lr=solver["lr"],
                betas=tuple(solver["betas"]),
                weight_decay=solver["weight_decay"],
            ),
        ),
        param_scheduler=[
            dict(
                type="LinearLR", start_factor=1 / (warmup + 1), begin=0, end=warmup, by_epoch=False
            ),
            dict(type="PolyLR", power=1.0, eta_min=0.0, begin=warmup, end=total, by_epoch=False),
        ],
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=total, val_interval=total),
    )


def _runtime() -> dict[str, Any]:
    return dict(
        default_scope="mmseg",
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
            checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=-1, save_last=True),
        ),
        log_processor=dict(by_epoch=False),
        visualizer=dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")]),
        randomness=dict(seed=0),
    )
