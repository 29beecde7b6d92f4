"""Encoders by name. Importing this module loads neither torch nor detectron2 nor mmseg.

Names are timm's; the `mini` one is ours, for the embedded miniature.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_bench.registry import Registry

if TYPE_CHECKING:
    from backbones.vit import VisionTransformer

# A new backbone is a function that returns the module and one line here.
BACKBONES = Registry(
    "backbone",
    {
        "vit_mini_patch8": "backbones.vit:vit_mini_patch8",
        "vit_tiny_patch16": "backbones.vit:vit_tiny_patch16",
        "vit_small_patch16": "backbones.vit:vit_small_patch16",
        "vit_base_patch16": "backbones.vit:vit_base_patch16",
        "vit_large_patch16": "backbones.vit:vit_large_patch16",
        "vit_huge_patch14": "backbones.vit:vit_huge_patch14",
    },
)


def list_backbones() -> list[str]:
    """Return the names that `create_backbone` knows."""
    return list(BACKBONES)


def create_backbone(
    name: str, checkpoint: str | Path | None = None, **options: Any
) -> VisionTransformer:
    """Build an encoder, with random weights or those of a checkpoint.

    Args:
        name: one of `list_backbones()`.
        checkpoint: file that MAE-bench wrote (`backbones.checkpoints`); every key must fit.
        options: passed on to `VisionTransformer` (img_size, drop_path_rate, ...).

    Raises:
        UserError: unknown name, or a checkpoint that does not fit.
    """
    model = BACKBONES[name](**options)
    if checkpoint is not None:
        from backbones.checkpoints import load_backbone

        load_backbone(model, Path(checkpoint))
    return model
