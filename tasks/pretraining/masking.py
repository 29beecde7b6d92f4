"""Which patches are removed: at random, in blocks, or on a regular grid (Table 1f).

Each way of sampling is a function (noise, mask ratio, grid) -> (visible, masked): the noise decides
everything, and every sample of a batch keeps the same number of patches.

Shapes: B batch, L = h*w patches of the (h, w) grid, K visible, M = L - K masked.

Source: arXiv:2111.06377 Sec. 3 and Table 1f; facebookresearch/mae models_mae.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from mae_bench.errors import UserError

Grid = tuple[int, int]
Sampler = Callable[[Tensor, float, Grid], tuple[Tensor, Tensor]]

# BEiT's blocks: at least 16 of 196 patches each, sides at most 1 : 0.3, ten tries for each.
BLOCK_SHARE, BLOCK_ASPECT, BLOCK_TRIES = 16 / 196, 0.3, 10


def num_visible(length: int, mask_ratio: float) -> int:
    """Number of patches that stay: floor(L * (1 - ratio)).

    Raises:
        UserError: a ratio that leaves no visible or no masked patch.
    """
    kept = int(length * (1 - mask_ratio)) if math.isfinite(mask_ratio) else 0
    if not 0 < kept < length:
        raise UserError(
            f"mask ratio {mask_ratio} keeps {kept} of {length} patches; it must keep at "
            "least one and remove at least one"
        )
    return kept


def random_masking(noise: Tensor, mask_ratio: float, grid: Grid) -> tuple[Tensor, Tensor]:
    """Sort the noise: small is keep, large is remove.

    Args:
        noise: (B, L), one uniform value per patch and sample.
        mask_ratio: share to remove.

    Returns:
        Indices of the visible (B, K) and of the masked patches (B, M).

    Raises:
        UserError: see `num_visible`.
    """
    kept = num_visible(noise.shape[1], mask_ratio)
    order = noise.argsort(dim=1)
    return order[:, :kept], order[:, kept:]


def block_masking(noise: Tensor, mask_ratio: float, grid: Grid) -> tuple[Tensor, Tensor]:
    """Remove rectangles as BEiT does, then single patches at their borders up to the exact number.

    Args and errors as `random_masking`.

    Source: microsoft/unilm beit/masking_generator.py. Differs: BEiT masks *up to* the number asked
    for, MAE needs it exact and does not say how it got there. Here the patches that are missing
    when no block fits any more are taken next to masked ones, largest noise first. BEiT's smallest
    block of 16 of 14 x 14 patches is the same share of other grids.
    """
    count = noise.shape[1] - num_visible(noise.shape[1], mask_ratio)
    masks = torch.stack([_blocks(values, count, grid) for values in noise.cpu()])
    order = masks.to(noise.device).byte().argsort(dim=1, stable=True)
    return order[:, :-count], order[:, -count:]


def grid_masking(noise: Tensor, mask_ratio: float, grid: Grid) -> tuple[Tensor, Tensor]:
    """Keep one of every four patches, the upper left of each 2 x 2; the noise plays no part.

    The paper does not say which of the four.

    Args as `random_masking`.

    Raises:
        UserError: a ratio other than 0.75, or a grid with an odd side.
    """
    if mask_ratio != 0.75 or grid[0] % 2 or grid[1] % 2:
        raise UserError(
            f"grid sampling keeps one of every 2x2 patches: it needs mask ratio 0.75 and an even "
            f"grid, not {mask_ratio} and {grid[0]}x{grid[1]} patches"
        )
    masks = torch.ones(grid, dtype=torch.uint8, device=noise.device)
    masks[::2, ::2] = 0
    order = masks.flatten().argsort(stable=True).expand(len(noise), -1)
    kept = noise.shape[1] // 4
    return order[:, :kept], order[:, kept:]


SAMPLERS: dict[str, Sampler] = {
    "random": random_masking,
    "block": block_masking,
    "grid": grid_masking,
}


def _blocks(noise: Tensor, count: int, grid: Grid) -> Tensor:
    """Mask of `count` patches in blocks, (L,) bool; every draw follows from the noise (L,)."""
    draw = random.Random(noise.numpy().tobytes())
    mask = torch.zeros(grid, dtype=torch.bool)
    smallest = max(1.0, BLOCK_SHARE * noise.numel())
    while (missing := count - int(mask.sum())) and _add_block(mask, smallest, missing, draw):
        pass
    noise = noise.view(grid)
    for _ in range(missing):
        border = _neighbours(mask) & ~mask
        mask.view(-1)[noise.where(border, -1.0).argmax()] = True
    return mask.flatten()


def _add_block(mask: Tensor, smallest: float, missing: int, draw: random.Random) -> bool:
    """Mask one more rectangle of at most `missing` new patches; False when none of ten fits."""
    height, width = mask.shape
    for _ in range(BLOCK_TRIES):
        area = draw.uniform(smallest, missing)
        aspect = math.exp(draw.uniform(math.log(BLOCK_ASPECT), -math.log(BLOCK_ASPECT)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < h < height and 0 < w < width):
            continue
        top, left = draw.randint(0, height - h), draw.randint(0, width - w)
        block = mask[top : top + h, left : left + w]
        if 0 < h * w - int(block.sum()) <= missing:
            block.fill_(True)
            return True
    return False


def _neighbours(mask: Tensor) -> Tensor:
    """Patches above, below or beside a masked one; all of them where nothing is masked yet."""
    near = torch.zeros_like(mask)
    near[1:] |= mask[:-1]
    near[:-1] |= mask[1:]
    near[:, 1:] |= mask[:, :-1]
    near[:, :-1] |= mask[:, 1:]
    return near if mask.any() else ~near
