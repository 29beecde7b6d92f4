"""Encoders by name. Importing this module loads neither torch nor detectron2 nor mmseg.

Names are timm's where timm has the encoder; the `mini` ones are ours, for the embedded miniature.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones.architectures import ARCHITECTURES, Description
from mae_bench.errors import unknown

if TYPE_CHECKING:
    from torch import nn

TIMM = "timm:"


def list_backbones() -> list[str]:
    """Return the names that `create_backbone` knows, beside `timm:NAME` for any model of timm."""
    return list(ARCHITECTURES)


def create_backbone(
    name: str, checkpoint: str | Path | None = None, format: str | None = None, **options: Any
) -> nn.Module:
    """Build an encoder, with random weights or those of a checkpoint.

    Args:
        name: one of `list_backbones()`, or `timm:` and the name of a model of timm.
        checkpoint: file whose every key must fit or be explained (`backbones.checkpoints`).
        format: of the checkpoint; detected when not given.
        options: passed on to `backbones.vit.VisionTransformer` (img_size, drop_path_rate,
            window_size, ...), or to timm.

    Raises:
        UserError: unknown name, options that exclude each other, or a checkpoint that does not fit.
    """
    if name.startswith(TIMM):
        from backbones.timm_models import create_timm_backbone

        model = create_timm_backbone(name.removeprefix(TIMM), **options)
    elif name in ARCHITECTURES:
        from backbones.vit import VisionTransformer

        model = VisionTransformer(**{**ARCHITECTURES[name].arguments(), **options})
    else:
        raise unknown("backbone", name, ARCHITECTURES)
    if checkpoint is not None:
        from backbones.checkpoints import load_backbone

        arguments = () if format is None else (format,)
        load_backbone(model, Path(checkpoint), *arguments)
    return model


def describe(name: str) -> Description:
    """Facts about an encoder: parameters, GFLOPs at 224 px, channels, strides, source.

    Imports torch only for `timm:NAME`.

    Raises:
        UserError: unknown name.
    """
    if name.startswith(TIMM):
        from backbones.timm_models import describe_timm

        return describe_timm(name.removeprefix(TIMM))
    if name not in ARCHITECTURES:
        raise unknown("backbone", name, ARCHITECTURES)
    architecture = ARCHITECTURES[name]
    return Description(
        name=name,
        source=architecture.source,
        parameters=architecture.parameters(),
        gflops=architecture.gflops(),
        img_size=224,
        channels=(architecture.embed_dim,),
        strides=(architecture.patch_size,),
    )
