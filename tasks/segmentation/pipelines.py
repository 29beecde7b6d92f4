"""mmseg's datasets and pipelines as a recipe has them: jitter and crop, test, multi-scale test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mae_bench.errors import UserError
from tasks import data


def factors(recipe: Mapping[str, Any], key: str) -> list[float]:
    """The factors of sizes at a place of the recipe.

    Raises:
        UserError: none, or something else than positive numbers.
    """
    section, _, last = key.partition(".")
    values = recipe[section].get(last, [1.0])
    if not values or not all(type(value) in (int, float) and value > 0 for value in values):
        raise UserError(f"{key} is {values}; a list of numbers above 0 is needed")
    return values


def load_labels(split: data.Ade20kSplit) -> dict[str, Any]:
    """The transform that reads maps, for this set."""
    return dict(
        type="LoadLabels",
        num_classes=len(split.classes),
        reduce_zero_label=split.reduce_zero_label,
        ignore_value=split.ignore_value,
    )


def train_pipeline(recipe: Mapping[str, Any], labels: dict[str, Any]) -> list[dict[str, Any]]:
    """Jitter, crop, flip, colours. Source: implus/mae_segmentation configs/_base_/datasets."""
    settings = recipe["data"]
    size, crop = settings["image_size"], settings["crop_size"]
    scales = factors(recipe, "data.scale_range")
    if len(scales) != 2 or scales != sorted(scales):
        raise UserError(f"data.scale_range is {scales}; [smallest, largest] is needed")
    loading: list[dict[str, Any]] = [dict(type="LoadImageFromFile"), labels]
    if settings["cache"]:
        loading = [dict(type="CachedLoading", transforms=loading)]
    return [
        *loading,
        dict(
            type="RandomResize",
            scale=(4 * size, size),
            ratio_range=tuple(scales),
            keep_ratio=True,
        ),
        dict(type="RandomCrop", crop_size=(crop, crop), cat_max_ratio=settings["class_max_share"]),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PhotoMetricDistortion"),
        dict(type="PackSegInputs"),
    ]


def val_pipeline(recipe: Mapping[str, Any], labels: dict[str, Any]) -> list[dict[str, Any]]:
    """Resize the image only: the map stays at its original resolution."""
    return [
        dict(type="LoadImageFromFile"),
        _resize(recipe["data"]["image_size"]),
        labels,
        dict(type="PackSegInputs"),
    ]


def views_pipeline(recipe: Mapping[str, Any], labels: dict[str, Any]) -> list[dict[str, Any]]:
    """The same image at every scale of `test.scales`, and flipped too.

    The short side is never less than the crop: BEiT's rule. (mmseg's own configs resize the
    original image by these factors instead, whatever its size.)
    """
    size, crop, test = recipe["data"]["image_size"], recipe["data"]["crop_size"], recipe["test"]
    resizes = [_resize(max(round(size * scale), crop)) for scale in factors(recipe, "test.scales")]
    flips = [dict(type="RandomFlip", prob=float(flip)) for flip in (False, True)]
    views = [resizes, flips if test.get("flip") else flips[:1]]
    return [
        dict(type="LoadImageFromFile"),
        dict(type="TestTimeAug", transforms=[*views, [labels], [dict(type="PackSegInputs")]]),
    ]


def _resize(short_side: int) -> dict[str, Any]:
    """The long side is at most four times as long."""
    return dict(type="Resize", scale=(4 * short_side, short_side), keep_ratio=True)


def dataset_config(
    split: data.Ade20kSplit, pipeline: list[dict[str, Any]], test: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    limit = {} if test is None or test["max_images"] is None else {"indices": test["max_images"]}
    return dict(
        type="BaseSegDataset",
        data_prefix=dict(img_path=str(split.images), seg_map_path=str(split.annotations)),
        img_suffix=split.image_suffix,
        seg_map_suffix=split.map_suffix,
        metainfo=dict(
            classes=tuple(split.classes),
            palette=[list(rgb) for rgb in split.palette],
            ignore_value=split.ignore_value,
        ),
        # For mmseg's writers of predictions; `LoadLabels` is what shifts.
        reduce_zero_label=split.reduce_zero_label,
        pipeline=pipeline,
        test_mode=test is not None,
        **limit,
    )
