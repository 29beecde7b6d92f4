"""Feature pyramids from the equally sized maps of a plain ViT.

Source: arXiv:2111.11429 Sec. 2.1 (`TapPyramid`; module order as in microsoft/unilm
beit/semantic_segmentation and hustvl/MIMDet models/benchmarking.py); arXiv:2203.16527 Sec. 3
(`SimplePyramid`; modules as in detectron2 modeling/backbone/vit.py at 02b5c4e).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from mae_bench.errors import UserError

Norm = Callable[[int], nn.Module]


def group_norm(dim: int) -> nn.Module:
    """Detection's norm: GroupNorm of 32 groups (MIMDet's choice; the paper does not say)."""
    return nn.GroupNorm(32, dim)


def layer_norm(dim: int) -> nn.Module:
    """LayerNorm over the channels of every place: ViTDet's norm."""
    return LayerNorm2d(dim, eps=1e-6)


class TapPyramid(nn.Module):
    """Resample one tap per level: x4, x2, x1 and x0.5 of the patch grid.

    Args:
        dim: channels of every tap, kept.
        scales: factor of each level, out of 4, 2, 1, 0.5; as many as there are taps.
        norm: builds the norm inside the x4 level (GroupNorm in detection, SyncBN in UperNet).
    """

    def __init__(
        self,
        dim: int,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        norm: Norm = group_norm,
    ):
        super().__init__()
        self.levels = nn.ModuleList(_level(dim, scale, norm) for scale in scales)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Taps (B, D, h, w) -> levels (B, D, scale * h, scale * w)."""
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


class SimplePyramid(nn.Module):
    """ViTDet's pyramid: every level from the last map alone, no FPN on top.

    Each level is resampled (halving the channels with every doubling of the size), then projected
    by a 1x1 and a 3x3 convolution, both normalised.

    Args:
        dim: channels of the map.
        out_channels: of every level.
        scales: factor of each level, out of 4, 2, 1, 0.5.
        norm: builds every norm; None for none (the convolutions then have a bias).
    """

    def __init__(
        self,
        dim: int,
        out_channels: int = 256,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        norm: Norm | None = layer_norm,
    ):
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(
                _level(dim, scale, norm or nn.Identity, shrink=2),
                *_normalised(nn.Conv2d(_width(dim, scale), out_channels, 1, bias=not norm), norm),
                *_normalised(
                    nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=not norm), norm
                ),
            )
            for scale in scales
        )

    def forward(self, last: Tensor) -> list[Tensor]:
        """(B, D, h, w) -> levels (B, out_channels, scale * h, scale * w)."""
        return [level(last) for level in self.levels]


def checked_taps(taps: Sequence[int], levels: int, depth: int) -> tuple[int, ...]:
    """Return the taps if they are one block of the encoder for each level, ascending.

    Raises:
        UserError: otherwise.
    """
    if list(taps) != sorted(set(taps)) or not set(taps) <= set(range(depth)):
        raise UserError(
            f"taps {list(taps)}: ascending block numbers from 0 to {depth - 1} are needed"
        )
    if len(taps) != levels:
        raise UserError(f"{len(taps)} taps {list(taps)} but {levels} scales; give one for each")
    return tuple(taps)


def _level(dim: int, scale: float, norm: Norm, shrink: int = 1) -> nn.Module:
    """One resampling; `shrink` divides the channels with every doubling."""
    half, quarter = dim // shrink, dim // shrink**2
    if scale == 4:
        first, second = nn.ConvTranspose2d(dim, half, 2, 2), nn.ConvTranspose2d(half, quarter, 2, 2)
        return nn.Sequential(first, norm(half), nn.GELU(), second)
    if scale == 2:
        return nn.ConvTranspose2d(dim, half, 2, 2)
    if scale == 1:
        return nn.Identity()
    if scale == 0.5:
        return nn.MaxPool2d(2)
    raise ValueError(f"no pyramid level of scale {scale}; known: 4, 2, 1, 0.5")


def _width(dim: int, scale: float) -> int:
    """Channels of a shrinking level."""
    return dim // max(1, int(scale))


def _normalised(convolution: nn.Conv2d, norm: Norm | None) -> list[nn.Module]:
    return [convolution, norm(convolution.out_channels)] if norm else [convolution]
