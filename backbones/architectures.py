"""The encoders by name, as sizes and options: known without torch, built by `create_backbone`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VIT = "arXiv:2010.11929"
DEIT = "arXiv:2012.12877"
BEIT = "arXiv:2106.08254"
MOCO = "arXiv:2104.02057"


@dataclass(frozen=True)
class Description:
    """Facts about an encoder, for lists.

    Attributes:
        parameters: without a head.
        gflops: billions of multiply-adds for one image of `img_size` pixels a side, a
            normalisation counted as five per value: the convention of fvcore and of published
            tables.
        channels, strides: of its feature maps, finest first; one of each for a plain encoder, whose
            stride is the patch size.
    """

    name: str
    source: str
    parameters: int
    gflops: float
    img_size: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """One encoder: `backbones.vit.VisionTransformer` with these arguments.

    Args:
        source: where the sizes come from.
        options: further arguments.
    """

    embed_dim: int
    depth: int
    num_heads: int
    source: str
    patch_size: int = 16
    img_size: int = 224
    options: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Arguments of `VisionTransformer`."""
        sizes = ("embed_dim", "depth", "num_heads", "patch_size", "img_size")
        return {**{name: getattr(self, name) for name in sizes}, **self.options}

    def parameters(self) -> int:
        """Number of parameters, without a head."""
        d, side = self.embed_dim, self.img_size // self.patch_size
        prefix = 1 + self.options.get("distilled", False)
        tokens = prefix + side**2
        positions = tokens * d if self.options.get("positions", "sincos") else 0
        block = 12 * d**2 + 10 * d  # four matrices and MLP; norms, biases but for qkv's
        block += (2 if self.options.get("qkv_bias") == "qv" else 3) * d
        block += 2 * d if self.options.get("layer_scale") else 0
        if self.options.get("relative_positions"):
            block += ((2 * side - 1) ** 2 + 3) * self.num_heads
        patches = 3 * self.patch_size**2 * d + d
        return prefix * d + positions + patches + self.depth * block + 2 * d

    def gflops(self, img_size: int = 224) -> float:
        """Billions of multiply-adds for one image; see `Description`."""
        d, patches = self.embed_dim, (img_size // self.patch_size) ** 2
        tokens = 1 + self.options.get("distilled", False) + patches
        block = tokens * (12 * d**2 + 2 * tokens * d)
        norms = (2 * self.depth + 1) * 5 * tokens * d
        return (patches * 3 * self.patch_size**2 * d + self.depth * block + norms) / 1e9


_MOCO = dict(positions="sincos-moco")
_DISTILLED = dict(distilled=True, positions="learned")


def _beit(layer_scale: float) -> dict[str, Any]:
    return dict(
        positions=None,
        relative_positions="per-block",
        layer_scale=layer_scale,
        qkv_bias="qv",
        initialisation="beit",
    )


_MINI = dict(embed_dim=96, depth=4, num_heads=3, patch_size=8, img_size=64)

# A new encoder of this family is one line here.
ARCHITECTURES: dict[str, Architecture] = {
    "vit_mini_patch8": Architecture(**_MINI, source="ours, for the miniature"),
    "vit_tiny_patch16": Architecture(192, 12, 3, DEIT),
    "vit_small_patch16": Architecture(384, 12, 6, DEIT),
    "vit_base_patch16": Architecture(768, 12, 12, VIT),
    "vit_large_patch16": Architecture(1024, 24, 16, VIT),
    "vit_huge_patch14": Architecture(1280, 32, 16, VIT, patch_size=14),
    # DeiT without distillation is the plain ViT (its checkpoints bring learned positions).
    "deit_mini_distilled_patch8": Architecture(
        **_MINI, source="ours, for the miniature", options=_DISTILLED
    ),
    "deit_tiny_distilled_patch16": Architecture(192, 12, 3, DEIT, options=_DISTILLED),
    "deit_small_distilled_patch16": Architecture(384, 12, 6, DEIT, options=_DISTILLED),
    "deit_base_distilled_patch16": Architecture(768, 12, 12, DEIT, options=_DISTILLED),
    # MoCo v3's positions have the halves exchanged; its small ViT has heads of 32 channels.
    "moco_mini_patch8": Architecture(**_MINI, source="ours, for the miniature", options=_MOCO),
    "moco_small_patch16": Architecture(384, 12, 12, MOCO, options=_MOCO),
    "moco_base_patch16": Architecture(768, 12, 12, MOCO, options=_MOCO),
    "moco_large_patch16": Architecture(1024, 24, 16, MOCO, options=_MOCO),
    "moco_huge_patch14": Architecture(1280, 32, 16, MOCO, patch_size=14, options=_MOCO),
    "beit_mini_patch8": Architecture(**_MINI, source="ours, for the miniature", options=_beit(0.1)),
    "beit_base_patch16": Architecture(768, 12, 12, BEIT, options=_beit(0.1)),
    "beit_large_patch16": Architecture(1024, 24, 16, BEIT, options=_beit(1e-5)),
}
