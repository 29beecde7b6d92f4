"""Our encoders as detectron2 backbones: for LazyConfig (`vit_fpn`) and for yacs (by name).

`import backbones.detectron2` is all a yacs config needs: MODEL.BACKBONE.NAME is then an encoder's
name (plain pyramid) or that name with `_fpn`. Works with detectron2 0.6 and with its main branch.

Source: arXiv:2111.11429 Sec. 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from torch import Tensor

from backbones import create_backbone, list_backbones
from backbones.checkpoints import LoadReport, load_backbone
from backbones.pyramid import TapPyramid
from backbones.vit import VisionTransformer, quarters
from mae_bench.errors import UserError


def restore_names() -> None:
    """Give back the names that detectron2 0.6 reads and newer Pillow and NumPy dropped."""
    if not hasattr(PIL.Image, "LINEAR"):
        PIL.Image.LINEAR = PIL.Image.BILINEAR  # type: ignore[attr-defined]
    for name, builtin in {"int": int, "float": float, "object": object, "bool": bool}.items():
        if name not in np.__dict__:
            setattr(np, name, builtin)


restore_names()

from detectron2.config import CfgNode  # noqa: E402
from detectron2.layers import ShapeSpec  # noqa: E402
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone  # noqa: E402
from detectron2.modeling.backbone.fpn import LastLevelMaxPool  # noqa: E402

# Which quarter of the encoder feeds the level that is so many times the patch grid.
QUARTERS = {4.0: 0, 2.0: 1, 1.0: 2, 0.5: 3}


class ViTFeatures(Backbone):
    """Plain ViT and tap pyramid: images (B, 3, H, W) -> {"s4": (B, D, H/4, W/4), ...}.

    Args:
        encoder: its final norm is not part of dense features and is frozen, so that no trainable
            parameter is left without a gradient.
        strides: of the levels, in pixels: a quarter, half, one or two patches.
        square_pad: pad images to this size in both directions; 0 for the least possible padding.

    Raises:
        UserError: a stride that the patch size does not give.
    """

    def __init__(self, encoder: VisionTransformer, strides: Sequence[int], square_pad: int = 0):
        super().__init__()
        strides = sorted(strides)  # the taps come in the order of the blocks
        scales = [encoder.patch_size / stride for stride in strides]
        if not set(scales) <= QUARTERS.keys():
            possible = ", ".join(f"{encoder.patch_size / scale:g}" for scale in QUARTERS)
            raise UserError(
                f"strides {strides} do not fit patches of {encoder.patch_size} px, which "
                f"give {possible}; choose among these, or set patch_size=16 (as ViTDet does)"
            )
        self.encoder = encoder
        self.encoder.norm.requires_grad_(False)
        self.taps = [quarters(encoder.depth)[QUARTERS[scale]] for scale in scales]
        self.pyramid = TapPyramid(encoder.embed_dim, scales)
        self.strides = {f"s{stride}": int(stride) for stride in strides}
        self.square_pad = square_pad

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images whose sides are multiples of `size_divisibility` -> one map per level."""
        levels = self.pyramid(self.encoder.forward_maps(images, self.taps))
        return dict(zip(self.strides, levels, strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        channels = self.encoder.embed_dim
        return {name: ShapeSpec(channels, stride=stride) for name, stride in self.strides.items()}

    @property
    def size_divisibility(self) -> int:
        """detectron2 0.6 knows no square padding: a multiple of `square_pad` comes to the same."""
        return self.square_pad or max(self.encoder.patch_size, *self.strides.values())

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Read by detectron2 after 0.6, whose own ViTDet misspells the first key."""
        return {"size_divisibility": self.size_divisibility, "square_size": self.square_pad}


class ViTFPN(FPN):
    """detectron2's FPN, with the padding that the encoder below it needs."""

    @property
    def size_divisibility(self) -> int:
        return self.bottom_up.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.bottom_up.padding_constraints


def vit_features(
    name: str,
    strides: Sequence[int],
    checkpoint: str | Path | None = None,
    square_pad: int = 0,
    **options: Any,
) -> ViTFeatures:
    """Build the pyramid around one of `list_backbones()`; `load_report` is its attribute.

    Args:
        checkpoint: file that MAE-bench wrote; loaded last, nothing initialises it again.
        options: passed on to the encoder (drop_path_rate, patch_size, ...).

    Raises:
        UserError: unknown name, strides that do not fit, a checkpoint that does not fit.
    """
    model = ViTFeatures(create_backbone(name, **options), strides, square_pad)
    model.load_report = load_backbone(model.encoder, Path(checkpoint)) if checkpoint else None
    return model


def vit_fpn(
    name: str,
    strides: Sequence[int],
    out_channels: int = 256,
    norm: str = "",
    top_level: bool = True,
    **options: Any,
) -> ViTFPN:
    """`vit_features` under detectron2's FPN; levels are named p<log2 of the stride>.

    Args:
        norm: after each FPN convolution, detectron2's names: "", "GN", "BN", "SyncBN", ...
        top_level: one more level, the coarsest one subsampled by two.
    """
    features = vit_features(name, strides, **options)
    top_block = LastLevelMaxPool() if top_level else None
    if top_block:
        top_block.in_feature = level_name(max(strides))
    return ViTFPN(features, list(features.strides), out_channels, norm, top_block)


def level_name(stride: int) -> str:
    """FPN's name for the level of this stride: 4 -> "p2"."""
    return f"p{int(stride).bit_length() - 1}"


def encoder_of(backbone: Backbone) -> VisionTransformer:
    """The encoder inside of what `vit_features` or `vit_fpn` built."""
    return getattr(backbone, "bottom_up", backbone).encoder


def load_report_of(backbone: Backbone) -> LoadReport | None:
    """What became of the checkpoint's keys; None for random weights."""
    return getattr(backbone, "bottom_up", backbone).load_report


def add_vit_config(cfg: CfgNode) -> None:
    """Add MODEL.VIT to a yacs config: what our backbones read beyond detectron2's own keys."""
    cfg.MODEL.VIT = _vit_defaults()


def _vit_defaults() -> CfgNode:
    defaults = dict(CHECKPOINT="", STRIDES=[4, 8, 16, 32], SQUARE_PAD=0, DROP_PATH=0.0)
    return CfgNode(defaults)


def _register(name: str) -> None:
    def options(cfg: CfgNode) -> dict[str, Any]:
        vit = cfg.MODEL.get("VIT", _vit_defaults())
        return dict(
            strides=vit.STRIDES,
            checkpoint=vit.CHECKPOINT or None,
            square_pad=vit.SQUARE_PAD,
            drop_path_rate=vit.DROP_PATH,
        )

    def plain(cfg: CfgNode, input_shape: ShapeSpec) -> ViTFeatures:
        return vit_features(name, **options(cfg))

    def fpn(cfg: CfgNode, input_shape: ShapeSpec) -> ViTFPN:
        channels, norm = cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM
        return vit_fpn(name, out_channels=channels, norm=norm, **options(cfg))

    BACKBONE_REGISTRY._do_register(name, plain)
    BACKBONE_REGISTRY._do_register(f"{name}_fpn", fpn)


for _name in list_backbones():
    _register(_name)
