"""Encoders and their pyramids as detectron2 modules: shapes, levels, padding.

Shapes: B batch, D width of the encoder, C channels, H W pixels.

Source: arXiv:2111.11429 Sec. 2.1; arXiv:2203.16527 Sec. 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from backbones.checkpoints import LoadReport
from backbones.pyramid import (
    Norm,
    SimplePyramid,
    TapPyramid,
    checked_taps,
    group_norm,
    layer_norm,
)
from backbones.vit import quarters
from mae_bench.errors import UserError

# Which quarter of the encoder feeds the level that is so many times the patch grid.
QUARTERS = {4.0: 0, 2.0: 1, 1.0: 2, 0.5: 3}


class Features(Backbone):
    """What detectron2 asks of a backbone, around one of our encoders.

    Args:
        encoder: from `create_backbone`.
        levels: name -> channels and stride of every map, finest first.
        square_pad: pad images to this size in both directions; 0 for the least possible padding.

    Attributes:
        load_report: what became of the checkpoint's keys; None for random weights.
    """

    def __init__(self, encoder: nn.Module, levels: Mapping[str, ShapeSpec], square_pad: int = 0):
        super().__init__()
        self.encoder, self.square_pad = encoder, square_pad
        self.levels = dict(levels)
        self.load_report: LoadReport | None = None

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self.levels)

    @property
    def size_divisibility(self) -> int:
        """detectron2 0.6 knows no square padding: a multiple of `square_pad` comes to the same."""
        return self.square_pad or math.lcm(
            encoder_divisibility(self.encoder), *(level.stride for level in self.levels.values())
        )

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Read by detectron2 after 0.6, whose own ViTDet misspells the first key.

        That version cuts off what images have beyond `square_size`: resize them to it at most.
        """
        return {"size_divisibility": self.size_divisibility, "square_size": self.square_pad}


class ViTFeatures(Features):
    """Plain ViT and tap pyramid: images (B, 3, H, W) -> {"s4": (B, D, H/4, W/4), ...}.

    Args:
        encoder: what no tap goes through (the final norm) is frozen, so that no trainable parameter
            is left without a gradient.
        strides: of the levels, in pixels: a quarter, half, one or two patches.
        square_pad: see `Features`.
        taps: 0-based block for each level, finest first; None for the ends of the quarters.
        norm: builds the norm inside the finest level.

    Raises:
        UserError: strides that the patch size does not give, taps that do not fit.
    """

    def __init__(
        self,
        encoder: nn.Module,
        strides: Sequence[int],
        square_pad: int = 0,
        taps: Sequence[int] | None = None,
        norm: Norm = group_norm,
    ):
        strides = sorted(strides)  # the taps come in the order of the blocks
        scales = scales_of(strides, encoder.patch_size)
        if taps is None:
            taps = [quarters(encoder.depth)[QUARTERS[scale]] for scale in scales]
        shapes = {f"s{stride}": ShapeSpec(encoder.embed_dim, stride=stride) for stride in strides}
        super().__init__(encoder, shapes, square_pad)
        self.taps = checked_taps(taps, len(scales), encoder.depth)
        encoder.freeze_unused(self.taps)
        self.pyramid = TapPyramid(encoder.embed_dim, scales, norm)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images whose sides are multiples of `size_divisibility` -> one map per level."""
        levels = self.pyramid(self.encoder.forward_maps(images, self.taps))
        return dict(zip(self.levels, levels, strict=True))


class ViTDetFeatures(Features):
    """Plain ViT and ViTDet's simple pyramid: images (B, 3, H, W) -> {"p2": (B, C, H/4, W/4), ...}.

    Args:
        encoder: as in `ViTFeatures`.
        strides: of the levels, in pixels: a quarter, half, one or two patches.
        out_channels: C of every level.
        norm: builds every norm of the pyramid; None for none.
        square_pad: see `Features`.
        top_level: one more level, the coarsest one subsampled by two (it rounds up).
    """

    def __init__(
        self,
        encoder: nn.Module,
        strides: Sequence[int],
        out_channels: int = 256,
        norm: Norm | None = layer_norm,
        square_pad: int = 0,
        top_level: bool = True,
    ):
        strides = sorted(strides)
        scales = scales_of(strides, encoder.patch_size)
        shapes = {level_name(stride): ShapeSpec(out_channels, stride=stride) for stride in strides}
        super().__init__(encoder, shapes, square_pad)
        encoder.freeze_unused([encoder.depth - 1])
        self.pyramid = SimplePyramid(encoder.embed_dim, out_channels, scales, norm)
        self.top_block = LastLevelMaxPool() if top_level else None

    def output_shape(self) -> dict[str, ShapeSpec]:
        shapes = super().output_shape()
        if self.top_block is not None:
            *_, coarsest = shapes.values()
            stride = 2 * coarsest.stride
            shapes[level_name(stride)] = ShapeSpec(coarsest.channels, stride=stride)
        return shapes

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images whose sides are multiples of `size_divisibility` -> one map per level."""
        (last,) = self.encoder.forward_maps(images, [self.encoder.depth - 1])
        levels = self.pyramid(last)
        if self.top_block is not None:
            levels += self.top_block(levels[-1])
        return dict(zip(self.output_shape(), levels, strict=True))


class HierarchicalFeatures(Features):
    """A hierarchical encoder's own maps: images (B, 3, H, W) -> {"s4": (B, C4, H/4, W/4), ...}.

    Args:
        encoder: has `forward_pyramid`, such as timm's Swin, ConvNeXt or ResNet.
        strides: which of its levels to take, in pixels.
        square_pad: see `Features`.

    Raises:
        UserError: a stride that the encoder does not have.
    """

    def __init__(self, encoder: nn.Module, strides: Sequence[int], square_pad: int = 0):
        channels = dict(zip(encoder.strides, encoder.out_channels, strict=True))
        if not set(strides) <= channels.keys():
            raise UserError(f"strides {list(strides)}: this encoder has {list(encoder.strides)}")
        shapes = {f"s{s}": ShapeSpec(channels[s], stride=s) for s in sorted(strides)}
        super().__init__(encoder, shapes, square_pad)
        encoder.freeze_unused(sorted(strides))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images whose sides are multiples of `size_divisibility` -> one map per level."""
        strides = [level.stride for level in self.levels.values()]
        return dict(zip(self.levels, self.encoder.forward_pyramid(images, strides), strict=True))


class ViTFPN(FPN):
    """detectron2's FPN, with the padding that the encoder below it needs."""

    @property
    def size_divisibility(self) -> int:
        return self.bottom_up.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.bottom_up.padding_constraints


def scales_of(strides: Sequence[int], patch_size: int) -> list[float]:
    """Factor of every level over the patch grid.

    Raises:
        UserError: a stride that the patch size does not give.
    """
    scales = [patch_size / stride for stride in strides]
    if not set(scales) <= QUARTERS.keys():
        possible = ", ".join(f"{patch_size / scale:g}" for scale in QUARTERS)
        raise UserError(
            f"strides {list(strides)} do not fit patches of {patch_size} px, which "
            f"give {possible}; choose among these, or give one of the project's own encoders "
            "patch_size=16, as ViTDet does (model.patch_size in a recipe)"
        )
    return scales


def encoder_divisibility(encoder: nn.Module) -> int:
    """What the sides of its images must be multiples of, in pixels."""
    patch = getattr(encoder, "patch_size", 1)
    window = getattr(encoder, "window_size", 0)
    return patch * window if window and not encoder.window_pad else patch


def level_name(stride: int) -> str:
    """FPN's name for the level of this stride: 4 -> "p2"."""
    return f"p{int(stride).bit_length() - 1}"
