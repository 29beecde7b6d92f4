"""Images as patches: cutting, putting together, projecting, picking.

Shapes: B batch, C channels, H W pixels, p patch size, h = H/p, w = W/p, L = h*w patches, D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mae_bench.errors import UserError


class PatchEmbed(nn.Module):
    """Linear projection of non-overlapping patches, kept as a convolution's weight.

    The convolution is applied as a matrix product, so that a caller may embed only some patches.
    """

    def __init__(self, patch_size: int, in_chans: int, dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, L, p*p*C) patches in `patchify`'s order -> (B, L, D)."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, weight, self.proj.bias)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) -> (B, L, p*p*C), each patch flattened as row, column, channel.

    Source: arXiv:2111.06377; order as in facebookresearch/mae models_mae.py.

    Raises:
        UserError: H or W is no multiple of the patch size.
    """
    batch, channels, height, width = images.shape
    p = patch_size
    if height % p or width % p:
        raise UserError(
            f"image of {height}x{width} px is no multiple of the patch size {p}; "
            f"use {height // p * p or p}x{width // p * p or p} or pad it"
        )
    x = images.view(batch, channels, height // p, p, width // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * p * channels)


def pad_to_patches(images: Tensor, patch_size: int) -> Tensor:
    """Pad (B, C, H, W) with zeros below and right to whole patches, as detectron2 pads images.

    Zeros are the mean colour, images being normalised.
    """
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        images = F.pad(images, (0, -width % patch_size, 0, -height % patch_size))
    return images


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Inverse of `patchify` for a grid of (h, w) patches: (B, L, p*p*C) -> (B, C, H, W)."""
    h, w = grid
    p = patch_size
    x = patches.view(len(patches), h, w, p, p, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, h * p, w * p)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Pick tokens: (B, L, D) and (B, K) indices -> (B, K, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
