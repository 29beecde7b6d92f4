"""Functions that build a detectron2 backbone around any encoder, for LazyConfig."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.layers import get_norm
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from backbones import create_backbone
from backbones.checkpoints import LoadReport, load_backbone
from backbones.detectron2.features import (
    Features,
    HierarchicalFeatures,
    ViTDetFeatures,
    ViTFeatures,
    ViTFPN,
    level_name,
)
from backbones.pyramid import layer_norm
from mae_bench.errors import UserError


def vit_features(
    name: str,
    strides: Sequence[int],
    checkpoint: str | Path | None = None,
    format: str | None = None,
    square_pad: int = 0,
    taps: Sequence[int] | None = None,
    pyramid_norm: str = "GN",
    **options: Any,
) -> ViTFeatures | HierarchicalFeatures:
    """Build the pyramid around any encoder; `load_report` is its attribute.

    Args:
        name: one of `list_backbones()`, or `timm:NAME`; a hierarchical encoder brings its own
            pyramid, and has neither taps nor the pyramid's norm.
        checkpoint: loaded last, nothing initialises it again; see `backbones.checkpoints`.
        format: of the checkpoint; detected when not given.
        taps, pyramid_norm: see `ViTFeatures`; detectron2's names of norms, or "LN".
        options: passed on to the encoder (drop_path_rate, patch_size, window_size, ...).

    Raises:
        UserError: unknown name, strides that do not fit, a checkpoint that does not fit.
    """
    encoder = create_backbone(name, **options)
    if hasattr(encoder, "forward_pyramid"):
        features: Features = HierarchicalFeatures(encoder, strides, square_pad)
    else:
        norm = norm_named(pyramid_norm) or nn.Identity
        features = ViTFeatures(encoder, strides, square_pad, taps, norm)
    return _loaded(features, checkpoint, format)


def vit_fpn(
    name: str,
    strides: Sequence[int],
    out_channels: int = 256,
    norm: str = "",
    top_level: bool = True,
    **options: Any,
) -> ViTFPN:
    """`vit_features` under detectron2's FPN; levels are named p<log2 of the stride>.

    Li et al.: `window_size=14, relative_positions="shared", relative_img_size=1024, norm="SyncBN"`.

    Args:
        name: any encoder, a hierarchical one of timm too.
        norm: after each FPN convolution, detectron2's names: "", "GN", "BN", "SyncBN", ...
        top_level: one more level, the coarsest one subsampled by two.
        options: of `vit_features` and of the encoder.
    """
    features = vit_features(name, strides, **options)
    top_block = LastLevelMaxPool() if top_level else None
    if top_block:
        top_block.in_feature = level_name(max(strides))
    fpn_norm = layer_norm if norm == "LN" else norm  # release 0.6 does not know this name
    return ViTFPN(features, list(features.levels), out_channels, fpn_norm, top_block)


def vit_simple_pyramid(
    name: str,
    strides: Sequence[int] = (4, 8, 16, 32),
    out_channels: int = 256,
    norm: str = "LN",
    top_level: bool = True,
    checkpoint: str | Path | None = None,
    format: str | None = None,
    square_pad: int = 0,
    **options: Any,
) -> ViTDetFeatures:
    """ViTDet's backbone: every level from the plain encoder's last map.

    ViTDet: `window_size=14, relative_positions="decomposed", relative_img_size=1024`.

    Args:
        norm, top_level, square_pad: see `ViTDetFeatures`; norms as in `vit_features`.
        checkpoint, format, options: see `vit_features`.

    Raises:
        UserError: as `vit_features`; also for a hierarchical encoder.
    """
    encoder = create_backbone(name, **options)
    if hasattr(encoder, "forward_pyramid"):
        raise UserError(
            f"{name} is hierarchical and has a pyramid of its own; use vit_fpn (in a recipe: "
            "model.pyramid=taps)"
        )
    features = ViTDetFeatures(
        encoder, strides, out_channels, norm_named(norm), square_pad, top_level
    )
    return _loaded(features, checkpoint, format)


def _loaded(features: Features, checkpoint: str | Path | None, format: str | None) -> Any:
    if checkpoint:
        features.load_report = load_backbone(features.encoder, Path(checkpoint), format)
    return features


def norm_named(name: str) -> Callable[[int], nn.Module] | None:
    """Norm by detectron2's name, or "LN", which release 0.6 does not know; None for ""."""
    own = {"": None, "LN": layer_norm}
    return own[name] if name in own else lambda channels: get_norm(name, channels)


def encoder_of(backbone: Backbone) -> nn.Module:
    """The encoder inside of what one of the builders built."""
    return getattr(backbone, "bottom_up", backbone).encoder


def load_report_of(backbone: Backbone) -> LoadReport | None:
    """What became of the checkpoint's keys; None for random weights."""
    return getattr(backbone, "bottom_up", backbone).load_report
