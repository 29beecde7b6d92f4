"""Where a token is: absolute position tables, relative position tables, and their resampling.

Shapes: D width, h w patches per side, L = h*w, N tokens, d width of a head.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]

# A BEiT table ends with the offsets that the class token has: from it to a patch, from a patch to
# it, and to itself.
CLASS_ROWS = 3


def sincos_positions(
    dim: int, grid: Grid, class_token: bool = True, rows_first: bool = False
) -> Tensor:
    """Fixed 2-D sine-cosine table, (1, N, D); the class token's row is zero.

    MAE's channel order: sine and cosine of the column index first, then of the row index.

    Args:
        rows_first: MoCo v3's order, the two halves the other way round.

    Source: facebookresearch/mae util/pos_embed.py; facebookresearch/moco-v3 vits.py.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij"
    )
    parts = []
    for index in (rows, columns) if rows_first else (columns, rows):
        angles = index.reshape(-1, 1) * frequencies
        parts += [angles.sin(), angles.cos()]
    table = torch.cat(parts, dim=1).float()
    if class_token:
        table = torch.cat([torch.zeros(1, dim), table])
    return table[None]


def sincos_order(table: Tensor) -> str | None:
    """Which fixed sine-cosine table a (1, P + L, D) one is, for a square grid.

    Returns:
        "mae", "moco-v3" (which is MAE's with the grid transposed), either with ", sine and cosine
        exchanged", or None: learned, or of no square grid.
    """
    length, dim = table.shape[-2:]
    side = math.isqrt(length)
    # MAE's own copies went through other libraries and half precision.
    close = partial(torch.allclose, table[0, length - side**2 :].float(), atol=2e-3)
    if side < 2 or dim % 4:
        return None
    for order in ("mae", "moco-v3"):
        fixed = sincos_positions(dim, (side, side), False, rows_first=order == "moco-v3")[0]
        if close(fixed):
            return order
        quarters = fixed.chunk(4, dim=1)
        if close(torch.cat([quarters[i] for i in (1, 0, 3, 2)], dim=1)):
            return f"{order}, sine and cosine exchanged"
    return None


def resize_positions(table: Tensor, old: Grid, new: Grid, num_prefix: int = 1) -> Tensor:
    """Resample a (1, num_prefix + L, D) table bicubically to another grid.

    The rows of the class token (and of the distillation token) are kept.

    Source: facebookresearch/mae util/pos_embed.py (align_corners off).
    """
    if old == new:
        return table
    grid = table[:, num_prefix:].reshape(1, *old, -1).permute(0, 3, 1, 2)
    # In fp32 whatever autocast says: positions are tiny and added to everything.
    grid = F.interpolate(grid.float(), size=new, mode="bicubic", align_corners=False)
    grid = grid.flatten(2).transpose(1, 2).to(table.dtype)
    return torch.cat([table[:, :num_prefix], grid], dim=1)


def num_offsets(grid: Grid) -> int:
    """Number of offsets between two patches of a grid: (2h - 1)(2w - 1)."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def resize_relative_table(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resample a table of relative position biases to the offsets of another grid or window.

    Offsets near zero stay where they are; those further away are spread as a geometric series, so
    that the largest old offset meets the largest new one. Between them a cubic spline. The class
    token's three rows, where the table has them, are kept. Differentiable.

    Args:
        table: ((2h - 1)(2w - 1) [+ 3], heads), row offset major.
        old, new: (h, w) that the table is for, and shall be for.

    Source: microsoft/unilm beit/semantic_segmentation/mmcv_custom/checkpoint.py, for square grids;
    here each axis on its own, which comes to the same.
    """
    if old == new:
        return table
    # In fp64, which autocast leaves alone.
    offsets = table[: num_offsets(old)].double().unflatten(0, (2 * old[0] - 1, 2 * old[1] - 1))
    rows, columns = (
        torch.from_numpy(_geometric_spline(2 * a - 1, 2 * b - 1)).to(offsets)
        for a, b in zip(old, new, strict=True)
    )
    offsets = torch.einsum("yi,xj,ijn->yxn", rows, columns, offsets).flatten(0, 1)
    return torch.cat([offsets.to(table.dtype), table[num_offsets(old) :]])


@lru_cache(maxsize=64)
def _geometric_spline(old: int, new: int) -> np.ndarray:
    """(new, old) matrix that resamples one axis of offsets."""
    # A second of start-up and 50 MB that only this needs.
    from scipy.interpolate import make_interp_spline

    half = old // 2
    if half == 0:
        return np.ones((new, 1))
    # The published search for the ratio of the series, with its bounds.
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        reach = (1 - ratio**half) / (1 - ratio)
        low, high = (low, ratio) if reach > new // 2 else (ratio, high)
    distances = np.cumsum(ratio ** np.arange(half))
    knots = np.concatenate([-distances[::-1], [0.0], distances])
    wanted = np.arange(-(new // 2), new // 2 + 1)
    spline = make_interp_spline(knots, np.eye(old), k=min(3, old - 1))
    return spline(wanted.clip(knots[0], knots[-1]))


def relative_bias(table: Tensor, stored: Grid, grid: Grid) -> Tensor:
    """Bias of every query (first N) for every key (second N), (heads, N, N).

    Args:
        table: see `resize_relative_table`; with the class token's rows, N = 1 + L, else N = L.
        stored: grid that the table is for; it is resampled when `grid` is another.

    Source: microsoft/unilm beit/modeling_finetune.py. Unfolded instead of gathered: no index of
    N x N integers, and a backward pass without scattered additions.
    """
    table = resize_relative_table(table, stored, grid)
    device = table.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # Attention would cast the N x N values anyway; now it is half the memory.
        table = table.to(torch.get_autocast_dtype(device))
    h, w = grid
    offsets = table[: num_offsets(grid)].T.unflatten(1, (2 * h - 1, 2 * w - 1))
    # offsets[y - y' + h - 1]: the unfolded axes count up where the key's y' counts down.
    pairs = offsets.unfold(1, h, 1).unfold(2, w, 1).flip(3, 4).reshape(-1, h * w, h * w)
    if len(table) == num_offsets(grid):
        return pairs
    to_patch, from_patch, own = table[-CLASS_ROWS:, :, None, None]
    column = torch.cat([own, from_patch.expand(-1, h * w, -1)], dim=1)
    rows = torch.cat([to_patch.expand(-1, -1, h * w), pairs], dim=1)
    return torch.cat([column, rows], dim=2)


def axis_embeddings(table: Tensor, length: int) -> Tensor:
    """Embedding of the offset between every two places of one axis, (length, length, d).

    Args:
        table: (2 * stored - 1, d); resampled linearly when `length` is not `stored`.

    Source: detectron2 modeling/backbone/utils.py at 02b5c4e (queries and keys on one grid).
    """
    if len(table) != 2 * length - 1:
        table = F.interpolate(table.T[None], size=2 * length - 1, mode="linear")[0].T
    place = torch.arange(length, device=table.device)
    return table[place[:, None] - place + length - 1]
