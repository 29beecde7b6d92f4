"""A segmentation recipe written out as an ordinary mmseg config.

Source: arXiv:2111.06377 A.4, which uses the code of microsoft/unilm beit/semantic_segmentation.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from backbones import describe
from backbones.groups import DEFAULT_RULE
from mae_bench.errors import UserError
from mae_bench.recipes import load_recipe
from tasks import data
from tasks.data.maps import IGNORED
from tasks.engine import duration
from tasks.segmentation.pipelines import (
    dataset_config,
    load_labels,
    train_pipeline,
    val_pipeline,
    views_pipeline,
)

# Sizes that follow the data: how many headers are read, and the range.
SIZES_READ, SIDES = 200, (64, 512)
IMAGENET_MEAN, IMAGENET_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def config_of(name: str, *, backbone: str, init: str = "", **options: Any) -> dict[str, Any]:
    """A recipe by its name, as an mmseg config; `options` as of `mmseg_config`."""
    recipe = load_recipe(name, backbone=backbone, init=init)
    return mmseg_config(recipe, **{"dataset": "ade20k", **options}, backbone=backbone)


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

    Raises:
        UserError: settings that exclude each other, or a dataset that is not there.
    """
    root = data_root or Path(os.environ.get("MAE_BENCH_DATA_ROOT", "datasets"))
    if not (root / dataset).exists():
        data.prepare(dataset, root)
    splits = {split: data.ade20k_split(dataset, root, split) for split in ("train", "val")}
    recipe = sized(recipe, splits["train"], backbone)
    train = dataset_config(splits["train"], train_pipeline(recipe, load_labels(splits["train"])))
    val, views = (
        dataset_config(splits["val"], pipeline(recipe, load_labels(splits["val"])), recipe["test"])
        for pipeline in (val_pipeline, views_pipeline)
    )
    solver = recipe["solver"]
    batch = solver["batch_size"] // solver.get("accumulation", 1)
    return dict(
        custom_imports=dict(imports=["backbones.mmseg", "tasks.segmentation"]),
        model=model_config(recipe, len(splits["train"].classes), backbone, checkpoint),
        tta_model=dict(type="MultiScaleFlip"),
        train_pipeline=train["pipeline"],
        tta_pipeline=views["pipeline"],
        train_dataloader=dict(
            batch_size=batch,
            num_workers=solver["num_workers"],
            sampler=dict(type="InfiniteSampler", shuffle=True),
            dataset=train,
        ),
        val_dataloader=_evaluation(val),
        test_dataloader=_evaluation(val),
        val_evaluator=dict(type="IoUMetric", iou_metrics=["mIoU"]),
        test_evaluator=dict(type="IoUMetric", iou_metrics=["mIoU"]),
        val_cfg=dict(type="ValLoop"),
        test_cfg=dict(type="TestLoop"),
        **_schedule(recipe, splits["train"]),
        default_scope="mmseg",
        log_processor=dict(by_epoch=False),
        visualizer=dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")]),
        randomness=dict(seed=0),
    )


def sized(recipe: Mapping[str, Any], split: data.Ade20kSplit, backbone: str) -> dict[str, Any]:
    """The recipe with sizes that it leaves to the data: of images, crops, steps between windows."""
    sizes, test = dict(recipe["data"]), dict(recipe["test"])
    if sizes["image_size"] is None:
        sizes["image_size"] = short_side(split)
    if sizes["crop_size"] is None:
        # Whole cells of the coarsest map, which a plain encoder's pyramid makes of two patches.
        strides = describe(recipe["model"].get("architecture") or backbone).strides
        cell = max(strides) * (2 if len(strides) == 1 else 1)
        sizes["crop_size"] = max(cell, sizes["image_size"] // cell * cell)
    if test["stride"] is None:
        test["stride"] = max(1, sizes["crop_size"] * 2 // 3)
    return {**recipe, "data": sizes, "test": test}


def short_side(split: data.Ade20kSplit) -> int:
    """Median of the images' shorter sides, in the range that a crop makes sense in."""
    names = sorted(path for path in split.images.iterdir() if path.suffix == split.image_suffix)
    sides = []
    for path in names[:: max(1, len(names) // SIZES_READ)]:
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
        except OSError as error:
            raise UserError(f"image {path} cannot be read ({error}); write it again") from None
    return int(min(max(statistics.median(sides), SIDES[0]), SIDES[1]))


def several_views(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe tests at several scales or flipped."""
    test = recipe["test"]
    return test.get("scales", [1.0]) != [1.0] or test.get("flip", False)


def _evaluation(dataset: dict[str, Any]) -> dict[str, Any]:
    sampler = dict(type="DefaultSampler", shuffle=False)
    return dict(batch_size=1, num_workers=0, sampler=sampler, dataset=dataset)


# Options of the encoder that a recipe may have; None leaves an encoder as it is.
ENCODER_OPTIONS = ("relative_positions", "layer_scale")
# UPerHead's channels over a hierarchical encoder: mmseg's for Swin and ConvNeXt.
HIERARCHICAL_CHANNELS = 512


def model_config(
    recipe: Mapping[str, Any], num_classes: int, backbone: str, checkpoint: str | None
) -> dict[str, Any]:
    """The segmentor of a recipe whose sizes are known (see `sized`)."""
    settings, crop = recipe["model"], recipe["data"]["crop_size"]
    arch = settings.get("architecture") or backbone
    about = describe(arch)
    plain = len(about.strides) == 1
    widths = list(about.channels) * (len(settings["scales"]) if plain else 1)
    levels = len(widths)
    lean = "Lean" if settings.get("lean_heads") else ""
    head = dict(
        num_classes=num_classes,
        dropout_ratio=settings["dropout"],
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
    )
    options = {name: settings[name] for name in ENCODER_OPTIONS if settings.get(name) is not None}
    cross_entropy = dict(type="CrossEntropyLoss", use_sigmoid=False)
    return dict(
        type="Segmentor",
        data_preprocessor=dict(
            type="SegDataPreProcessor",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            bgr_to_rgb=True,
            pad_val=0,
            seg_pad_val=IGNORED,
            size=(crop, crop),
            test_cfg=_padding(recipe, max(about.strides)),
        ),
        backbone=dict(
            type="MAEBenchViT",
            arch=arch,
            img_size=crop if plain else None,
            out_indices=settings["taps"],
            scales=settings["scales"],
            drop_path_rate=settings["drop_path_rate"],
            frozen=settings["freeze_backbone"],
            checkpoint=checkpoint,
            **options,
        ),
        decode_head=dict(
            type=f"{lean}UPerHead",
            in_channels=widths,
            in_index=list(range(levels)),
            pool_scales=tuple(settings["pool_scales"]),
            channels=settings["channels"] or (widths[0] if plain else HIERARCHICAL_CHANNELS),
            loss_decode=dict(cross_entropy, loss_weight=1.0),
            **head,
        ),
        auxiliary_head=dict(
            type=f"{lean}FCNHead",
            in_channels=widths[-2],
            in_index=levels - 2,
            channels=settings["aux_channels"],
            num_convs=1,
            concat_input=False,
            loss_decode=dict(cross_entropy, loss_weight=settings["aux_weight"]),
            **head,
        ),
        train_cfg=dict(),
        test_cfg=_inference(recipe),
    )


def _padding(recipe: Mapping[str, Any], stride: int) -> dict[str, Any]:
    """At test: to whole cells; before windows are cut, to a whole one at least.

    An image of more than 4:1 is thinner than the crop. It is padded as small images are in
    training, so that positions mean what they did there.
    """
    crop = recipe["data"]["crop_size"]
    return dict(size=(crop, crop)) if slides(recipe) else dict(size_divisor=stride)


def slides(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe tests by sliding windows.

    Raises:
        UserError: neither that nor whole images.
    """
    mode = recipe["test"]["mode"]
    if mode not in {"whole", "slide"}:
        raise UserError(f"test.mode is {mode!r}; it must be 'whole' or 'slide'")
    return mode == "slide"


def _inference(recipe: Mapping[str, Any]) -> dict[str, Any]:
    if not slides(recipe):
        return dict(mode="whole")
    crop, stride = recipe["data"]["crop_size"], recipe["test"]["stride"]
    if not 0 < stride <= crop:
        raise UserError(
            f"test.stride is {stride}; 1 to data.crop_size ({crop}) px are possible, or pixels "
            "between the windows would never be seen"
        )
    return dict(
        mode="slide",
        crop_size=(crop, crop),
        stride=(stride, stride),
        windows=recipe["test"].get("windows"),
    )


def _schedule(recipe: Mapping[str, Any], split: data.Ade20kSplit) -> dict[str, Any]:
    """Optimizer, learning rate, and when to score and save; in passes, as mmengine counts."""
    solver = recipe["solver"]
    passes = solver.get("accumulation", 1)
    images = sum(path.suffix == split.image_suffix for path in split.images.iterdir())
    total, warmup = (passes * steps for steps in duration(solver, images))
    every = passes * (recipe["test"].get("validate_every") or 0)
    first = solver.get("warmup_factor") or 1 / (warmup + 1)
    return dict(
        optim_wrapper=dict(
            type="OptimWrapper" if solver["amp"] is None else "AmpOptimWrapper",
            **({} if solver["amp"] is None else {"dtype": solver["amp"]}),
            accumulative_counts=passes,
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
            dict(type="LinearLR", start_factor=first, begin=0, end=warmup, by_epoch=False),
            dict(type="PolyLR", power=1.0, eta_min=0.0, begin=warmup, end=total, by_epoch=False),
        ],
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=total, val_interval=every or total),
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
            checkpoint=dict(
                type="CheckpointHook", by_epoch=False, interval=every or -1, save_last=True
            ),
        ),
    )
