"""Plain vision transformer with dense outputs.

Shapes: B batch, C channels, H W pixels, p patch size, h = H/p, w = W/p, L = h*w patches,
N = 1 + L tokens, D width.

Source: arXiv:2010.11929; sizes and initialisation as in facebookresearch/mae models_vit.py and
models_mae.py (pre-norm, qkv bias, LayerNorm eps 1e-6, sine-cosine positions). Parameter names are
timm's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from mae_bench.errors import UserError

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class Attention(nn.Module):
    """Multi-head self-attention through PyTorch's fused kernel."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, length, dim))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


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


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Inverse of `patchify` for a grid of (h, w) patches: (B, L, p*p*C) -> (B, C, H, W)."""
    h, w = grid
    p = patch_size
    x = patches.view(len(patches), h, w, p, p, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, h * p, w * p)


def sincos_positions(dim: int, grid: tuple[int, int], class_token: bool = True) -> Tensor:
    """Fixed 2-D sine-cosine table, (1, N, D); the class token's row is zero.

    MAE's channel order: sine and cosine of the column index first, then of the row index (MoCo v3
    has the two halves the other way round).

    Source: facebookresearch/mae util/pos_embed.py.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij"
    )
    parts = []
    for index in (columns, rows):
        angles = index.reshape(-1, 1) * frequencies
        parts += [angles.sin(), angles.cos()]
    table = torch.cat(parts, dim=1).float()
    if class_token:
        table = torch.cat([torch.zeros(1, dim), table])
    return table[None]


def resize_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample a (1, 1 + L, D) table bicubically to another grid; the class token's row is kept.

    Source: facebookresearch/mae util/pos_embed.py (align_corners off).
    """
    if old == new:
        return table
    grid = table[:, 1:].reshape(1, *old, -1).permute(0, 3, 1, 2)
    # In fp32 whatever autocast says: positions are tiny and added to everything.
    grid = F.interpolate(grid.float(), size=new, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


class VisionTransformer(nn.Module):
    """Encoder: patches -> tokens, pooled or dense features.

    Args:
        img_size: (height, width) in pixels, or one number, of the grid that `pos_embed` holds;
            inputs of any other size have it resampled on the fly.
        drop_path_rate: of the last block, growing linearly from 0 at the first.

    Attributes:
        embed_dim, patch_size, depth, grid: as built.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        patch_size: int = 16,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height % patch_size or width % patch_size:
            raise UserError(f"img_size {height}x{width} is no multiple of patch size {patch_size}")
        self.embed_dim, self.depth, self.patch_size = embed_dim, depth, patch_size
        self.grid = (height // patch_size, width // patch_size)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_positions(embed_dim, self.grid))
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, rate) for rate in rates)
        self.norm = LayerNorm(embed_dim)
        initialise(self)
        nn.init.normal_(self.cls_token, std=0.02)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Patches with their positions, class token first.

        Args:
            images: (B, C, H, W), H and W multiples of the patch size.
            keep: (B, K) indices of the patches to embed; the others are never touched.

        Returns:
            (B, 1 + K, D), K = L when `keep` is None.
        """
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        patches = patchify(images, self.patch_size)
        positions = resize_positions(self.pos_embed, self.grid, grid)
        cls_token = (self.cls_token + positions[:, :1]).expand(len(images), -1, -1)
        positions = positions[:, 1:]
        if keep is not None:
            patches = take(patches, keep)
            positions = take(positions.expand(len(images), -1, -1), keep)
        return torch.cat([cls_token, self.patch_embed(patches) + positions], dim=1)

    def forward_features(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, 1 + K, D) after the final norm; see `embed`."""
        x = self.embed(images, keep)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_maps(self, images: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Feature maps after the blocks in `taps` (0-based), each (B, D, h, w), without a norm."""
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        x, maps = self.embed(images), []
        for index, block in enumerate(self.blocks[: max(taps) + 1]):
            x = block(x)
            if index in taps:
                maps.append(x[:, 1:].transpose(1, 2).unflatten(2, grid))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Same as `forward_features`."""
        return self.forward_features(images)

    def layer_id(self, name: str) -> int:
        """Depth of one of this module's parameters for layer-wise lr decay.

        0 for the embeddings, i + 1 for block i (0-based), depth + 1 for the final norm.
        """
        if name.startswith(("patch_embed.", "cls_token", "pos_embed")):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.depth + 1


def take(x: Tensor, index: Tensor) -> Tensor:
    """Pick tokens: (B, L, D) and (B, K) indices -> (B, K, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def quarters(depth: int) -> tuple[int, int, int, int]:
    """0-based index of the last block of each quarter, where dense tasks tap the encoder.

    Source: arXiv:2111.11429 Sec. 2.1 (blocks 2, 5, 8, 11 of ViT-B).
    """
    first, second, third, last = (round(depth * k / 4) - 1 for k in (1, 2, 3, 4))
    return first, second, third, last


def initialise(module: nn.Module) -> None:
    """Xavier-uniform linear layers (patch projection included, as a matrix), zero biases.

    The patch projection's bias keeps PyTorch's default. Source: facebookresearch/mae models_mae.py.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, PatchEmbed):
            nn.init.xavier_uniform_(child.proj.weight.flatten(1))


def vit_mini_patch8(**options: Any) -> VisionTransformer:
    """The miniature's encoder: 4 blocks of width 96 on 8 px patches, 0.47 M parameters."""
    sizes = dict(embed_dim=96, depth=4, num_heads=3, patch_size=8, img_size=64)
    return VisionTransformer(**{**sizes, **options})


def vit_tiny_patch16(**options: Any) -> VisionTransformer:
    """ViT-Ti/16 (arXiv:2012.12877)."""
    return VisionTransformer(**{**dict(embed_dim=192, depth=12, num_heads=3), **options})


def vit_small_patch16(**options: Any) -> VisionTransformer:
    """ViT-S/16 (arXiv:2012.12877)."""
    return VisionTransformer(**{**dict(embed_dim=384, depth=12, num_heads=6), **options})


def vit_base_patch16(**options: Any) -> VisionTransformer:
    """ViT-B/16."""
    return VisionTransformer(**{**dict(embed_dim=768, depth=12, num_heads=12), **options})


def vit_large_patch16(**options: Any) -> VisionTransformer:
    """ViT-L/16."""
    return VisionTransformer(**{**dict(embed_dim=1024, depth=24, num_heads=16), **options})


def vit_huge_patch14(**options: Any) -> VisionTransformer:
    """ViT-H/14."""
    sizes = dict(embed_dim=1280, depth=32, num_heads=16, patch_size=14)
    return VisionTransformer(**{**sizes, **options})
