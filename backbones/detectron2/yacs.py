"""Our encoders in detectron2's registry, for yacs configs."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY

from backbones import list_backbones
from backbones.detectron2.builders import vit_features, vit_fpn, vit_simple_pyramid
from backbones.detectron2.features import Features, ViTDetFeatures, ViTFPN
from mae_bench.errors import UserError


def add_vit_config(cfg: CfgNode) -> None:
    """Add MODEL.VIT to a yacs config: what our backbones read beyond detectron2's own keys.

    MODEL.VIT.OPTIONS takes any option of the encoder under its own name (in a config file).
    """
    cfg.MODEL.VIT = _vit_defaults()


def _vit_defaults() -> CfgNode:
    defaults = CfgNode({
        "NAME": "",
        "CHECKPOINT": "",
        "FORMAT": "",
        "STRIDES": [4, 8, 16, 32],
        "SQUARE_PAD": 0,
        "DROP_PATH": 0.0,
    })
    defaults.OPTIONS = CfgNode(new_allowed=True)
    return defaults


def _arguments(cfg: CfgNode, name: str | None) -> dict[str, Any]:
    vit = cfg.MODEL.get("VIT", _vit_defaults())
    if name is None and not vit.NAME:
        raise UserError(
            f"MODEL.VIT.NAME is empty; MODEL.BACKBONE.NAME={cfg.MODEL.BACKBONE.NAME!r} needs the "
            "name of an encoder there, such as vit_base_patch16 or timm:resnet50"
        )
    return dict(
        name=name or vit.NAME,
        strides=vit.STRIDES,
        checkpoint=vit.CHECKPOINT or None,
        format=vit.FORMAT or None,
        square_pad=vit.SQUARE_PAD,
        drop_path_rate=vit.DROP_PATH,
        **vit.OPTIONS,
    )


def _register(prefix: str, name: str | None) -> None:
    def plain(cfg: CfgNode, input_shape: ShapeSpec) -> Features:
        return vit_features(**_arguments(cfg, name))

    def fpn(cfg: CfgNode, input_shape: ShapeSpec) -> ViTFPN:
        channels, norm = cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM
        return vit_fpn(out_channels=channels, norm=norm, **_arguments(cfg, name))

    def simple_pyramid(cfg: CfgNode, input_shape: ShapeSpec) -> ViTDetFeatures:
        channels = cfg.MODEL.FPN.OUT_CHANNELS
        return vit_simple_pyramid(out_channels=channels, **_arguments(cfg, name))

    builders = {"": plain, "_fpn": fpn, "_simple_pyramid": simple_pyramid}
    for suffix, build in builders.items():
        BACKBONE_REGISTRY._do_register(f"{prefix}{suffix}", build)


def register_all() -> None:
    """Register every encoder by name, and `mae_bench` for the one that MODEL.VIT.NAME names."""
    for name in list_backbones():
        _register(name, name)
    _register("mae_bench", None)
