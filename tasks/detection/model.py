"""Mask R-CNN (or Cascade R-CNN) around any encoder, composed as a LazyConfig.

Source: arXiv:2111.11429 Sec. 2 (Li et al.) and arXiv:2203.16527 (ViTDet; detectron2
projects/ViTDet); what a recipe does not name is detectron2's default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

# Before detectron2: it restores names that detectron2 reads.
from backbones import detectron2 as adapter  # isort: skip
from detectron2 import modeling
from detectron2.config import LazyCall as L
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from torch import nn

from backbones import TIMM
from mae_bench.errors import UserError, unknown

# ImageNet's, in RGB on 0..255, as in pretraining.
PIXEL_MEAN, PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
# Keys of `model` that are options of our own encoders, passed on unless they are None.
ENCODER_OPTIONS = (
    "patch_size",
    "window_size",
    "global_blocks",
    "positions",
    "relative_positions",
    "layer_scale",
    "qkv_bias",
    "initialisation",
)
# IoU and box weights of Cascade R-CNN's stages (arXiv:1712.00726); the first is Mask R-CNN's.
STAGES = ((0.5, 10.0, 5.0), (0.6, 20.0, 10.0), (0.7, 30.0, 15.0))


def detector(
    recipe: Mapping[str, Any],
    backbone: str,
    checkpoint: str | Path | None,
    classes: DictConfig | int,
) -> DictConfig:
    """Compose the model.

    Args:
        recipe: with sections data, model, solver and test; `image_size` is a number here.
        backbone: any name of `create_backbone`.
        checkpoint: backbone weights; None for random ones.
        classes: how many, or what will say so.

    Raises:
        UserError: a pyramid that is not known, or as many anchor sizes as there are no levels.
    """
    model, strides = recipe["model"], list(recipe["model"]["strides"])
    levels = strides + ([2 * strides[-1]] if model["top_level"] else [])
    if len(model["anchor_sizes"]) != len(levels):
        raise UserError(
            f"model.anchor_sizes={model['anchor_sizes']} has {len(model['anchor_sizes'])} sizes "
            f"for {len(levels)} levels (strides {levels}); give one size for each"
        )
    return L(modeling.GeneralizedRCNN)(
        backbone=_backbone(recipe, backbone, checkpoint),
        proposal_generator=_proposals(model, recipe["test"], levels),
        roi_heads=_roi_heads(model, recipe["test"], strides, classes),
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
        input_format="RGB",
    )


def encoder_options(recipe: Mapping[str, Any], backbone: str) -> dict[str, Any]:
    """What the recipe asks of this encoder.

    Windows, relative positions and initialisation are options of our own encoders; a model of timm
    is taken as it is.
    """
    model, size = recipe["model"], recipe["data"]["image_size"]
    drop_path = {"drop_path_rate": model["drop_path"]}
    if backbone.startswith(TIMM):
        return drop_path if model["drop_path"] else {}
    options = {key: model[key] for key in ENCODER_OPTIONS if model[key] is not None}
    if "relative_positions" in options:
        options["relative_img_size"] = size
    if recipe["solver"]["activation_checkpointing"]:
        options["activation_checkpointing"] = True
    return {**drop_path, **options}


def _backbone(
    recipe: Mapping[str, Any], backbone: str, checkpoint: str | Path | None
) -> DictConfig:
    model = recipe["model"]
    common = dict(
        name=backbone,
        strides=list(model["strides"]),
        checkpoint=checkpoint and str(checkpoint),
        out_channels=model["fpn_channels"],
        norm=model["fpn_norm"],
        top_level=model["top_level"],
        square_pad=recipe["data"]["image_size"],
        **encoder_options(recipe, backbone),
    )
    if model["pyramid"] == "taps":
        taps = {} if model["taps"] is None else {"taps": list(model["taps"])}
        return L(adapter.vit_fpn)(pyramid_norm=model["pyramid_norm"], **taps, **common)
    if model["pyramid"] == "last":
        return L(adapter.vit_simple_pyramid)(**common)
    raise unknown("model.pyramid", str(model["pyramid"]), ("taps", "last"))


class NormedRPNHead(StandardRPNHead):
    """detectron2's RPN head with a norm after each hidden convolution.

    Args:
        norm: detectron2's name of it, shared by all levels as the convolutions are.
    """

    def __init__(self, norm: str, **options: Any):
        self._norm = norm  # read while the base class builds its layers
        super().__init__(**options)

    def _get_rpn_conv(self, in_channels: int, out_channels: int) -> nn.Module:
        return Conv2d(
            in_channels,
            out_channels,
            kernel_size=3,
            padding=1,
            norm=get_norm(adapter.norm_named(self._norm), out_channels),
            activation=nn.ReLU(),
        )


def _proposals(model: Mapping[str, Any], test: Mapping[str, Any], strides: list[int]) -> DictConfig:
    channels, ratios = model["fpn_channels"], list(model["aspect_ratios"])
    shape = dict(in_channels=channels, num_anchors=len(ratios), conv_dims=[-1] * model["rpn_convs"])
    norm = model["rpn_norm"]
    return L(RPN)(
        in_features=[adapter.level_name(stride) for stride in strides],
        head=L(NormedRPNHead)(norm=norm, **shape) if norm else L(StandardRPNHead)(**shape),
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
        # In training and in evaluation.
        pre_nms_topk=[model["pre_nms"], test["pre_nms"]],
        post_nms_topk=[model["post_nms"], test["post_nms"]],
        nms_thresh=0.7,
    )


def _roi_heads(
    model: Mapping[str, Any],
    test: Mapping[str, Any],
    strides: list[int],
    classes: DictConfig | int,
) -> DictConfig:
    """Box and mask heads on the FPN levels of these strides, in three stages if cascaded."""
    channels, norm = model["fpn_channels"], _norm(model["head_norm"])
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

    def matcher(iou: float) -> DictConfig:
        return L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False)

    def box_head() -> DictConfig:
        return L(FastRCNNConvFCHead)(
            input_shape=box["shape"],
            conv_dims=[channels] * model["box_convs"],
            fc_dims=[model["box_fc"]],
            conv_norm=norm,
        )

    def predictor(centre: float, size: float, **options: Any) -> DictConfig:
        return L(FastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels=model["box_fc"]),
            box2box_transform=L(Box2BoxTransform)(weights=[centre, centre, size, size]),
            num_classes=classes,
            test_score_thresh=test["score_threshold"],
            test_nms_thresh=test["nms"],
            test_topk_per_image=test["detections_per_image"],
            **options,
        )

    box, mask = pooled(model["box_resolution"]), pooled(model["mask_resolution"])
    shared = dict(
        num_classes=classes,
        batch_size_per_image=model["roi_samples"],
        positive_fraction=0.25,
        box_in_features=features,
        box_pooler=box["pooler"],
    )
    masks = dict(
        mask_in_features=features,
        mask_pooler=mask["pooler"],
        mask_head=L(MaskRCNNConvUpsampleHead)(
            input_shape=mask["shape"],
            num_classes=classes,
            conv_dims=[channels] * (model["mask_convs"] + 1),
            conv_norm=norm,
        ),
    )
    if model["cascade"]:
        return L(CascadeROIHeads)(
            **shared,
            proposal_matchers=[matcher(iou) for iou, _, _ in STAGES],
            box_heads=[box_head() for _ in STAGES],
            box_predictors=[
                predictor(centre, size, cls_agnostic_bbox_reg=True) for _, centre, size in STAGES
            ],
            **masks,
        )
    iou, centre, size = STAGES[0]
    return L(StandardROIHeads)(
        **shared,
        proposal_matcher=matcher(iou),
        box_head=box_head(),
        box_predictor=predictor(centre, size),
        **masks,
    )


def _norm(name: str) -> str | DictConfig:
    """A norm for detectron2's heads; release 0.6 does not know "LN"."""
    return L(adapter.norm_named)(name=name) if name == "LN" else name
