"""Feature pyramid from a plain ViT's equally sized taps.

Source: arXiv:2111.11429 Sec. 2.1; module order as in microsoft/unilm beit/semantic_segmentation
and hustvl/MIMDet models/benchmarking.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn


def group_norm(dim: int) -> nn.Module:
    """Detection's norm: GroupNorm of 32 groups (MIMDet's choice; the paper does not say)."""
    return nn.GroupNorm(32, dim)


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
        norm: Callable[[int], nn.Module] = group_norm,
    ):
        super().__init__()
        self.levels = nn.ModuleList(_level(dim, scale, norm) for scale in scales)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Taps (B, D, h, w) -> levels (B, D, scale * h, scale * w)."""
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


def _level(dim: int, scale: float, norm: Callable[[int], nn.Module]) -> nn.Module:
    if scale == 4:
        first, second = (nn.ConvTranspose2d(dim, dim, 2, 2) for _ in range(2))
        return nn.Sequential(first, norm(dim), nn.GELU(), second)
    if scale == 2:
        return nn.ConvTranspose2d(dim, dim, 2, 2)
    if scale == 1:
        return nn.Identity()
    if scale == 0.5:
        return nn.MaxPool2d(2)
    raise ValueError(f"no pyramid level of scale {scale}; known: 4, 2, 1, 0.5")
