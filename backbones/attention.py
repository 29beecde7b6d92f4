"""Self-attention: over the whole grid or in windows, with relative positions, by the fused kernel.

Shapes: B batch, N tokens, D width, n heads, d = D/n, (h, w) grid of patches, s window side.

Source: arXiv:2111.11429 Sec. 2.1 (windows, relative positions); microsoft/unilm beit (bias tables,
no key bias); detectron2 modeling/backbone/vit.py at 02b5c4e (decomposed relative positions).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones import cpu_training
from backbones.cpu_training import Linear, linear
from backbones.positions import (
    CLASS_ROWS,
    Grid,
    axis_embeddings,
    num_offsets,
    relative_bias,
)


class Attention(nn.Module):
    """Multi-head self-attention through PyTorch's fused kernel.

    Args:
        qkv_bias: of queries, keys and values; "qv" is BEiT's, without the keys' (which no softmax
            sees, but checkpoints tell apart).
        window_size: s of non-overlapping windows; 0 for attention between all tokens.
        relative: "table" for a bias table of this block's own, "decomposed" for ViTDet's
            query-dependent embeddings of rows and columns, None where there are no relative
            positions or a shared bias is passed in.
        extent: grid that the relative positions are stored for (the window's where there is one).
        class_token: whether a table has rows for it.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool | str = True,
        window_size: int = 0,
        relative: str | None = None,
        extent: Grid | None = None,
        class_token: bool = False,
    ):
        super().__init__()
        self.num_heads, self.window_size, self.extent = num_heads, window_size, extent
        self.qkv = Linear(dim, dim * 3, bias=qkv_bias is True)
        if qkv_bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = Linear(dim, dim)
        self.relative = relative
        if relative == "table":
            rows = num_offsets(extent) + CLASS_ROWS * class_token
            self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads))
        elif relative == "decomposed":
            for name, length in zip(("rel_pos_h", "rel_pos_w"), extent, strict=True):
                table = torch.zeros(2 * length - 1, dim // num_heads)
                self.register_parameter(name, nn.Parameter(table))

    def forward(
        self,
        x: Tensor,
        grid: Grid | None = None,
        bias: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, last, D).

        Args:
            grid: (h, w) of the tokens; needed for windows and for relative positions.
            bias: (n, N, N) shared with other blocks, or (n, s*s, s*s) in windows.
            last: only these many last tokens ask; without windows and relative positions.
        """
        if not self.window_size:
            qkv = linear(x, self.qkv.weight, self._bias())
            return self.proj(self._attend(qkv, grid, bias, last))
        # Padding comes after the projection, and what it projects to is the bias alone: as if
        # zeros had been padded before, at no cost for tokens that are not there.
        windows = to_windows(linear(x, self.qkv.weight).unflatten(1, grid), self.window_size)
        if (qkv_bias := self._bias()) is not None:
            windows += qkv_bias.to(windows.dtype)
        windows = self._attend(windows, (self.window_size, self.window_size), bias)
        return self.proj(from_windows(windows, self.window_size, grid).flatten(1, 2))

    def _bias(self) -> Tensor | None:
        """Bias of the joint projection, (3 * D,)."""
        if self.qkv.bias is not None or not hasattr(self, "q_bias"):
            return self.qkv.bias
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def _attend(
        self, qkv: Tensor, grid: Grid | None, bias: Tensor | None, last: int | None = None
    ) -> Tensor:
        """(B, N, 3 * D) -> (B, N, D) or (B, last, D), before the output projection."""
        if bias is None and self.relative is None and cpu_training.applies(qkv):
            return cpu_training.self_attention(qkv, self.num_heads, last)
        batch, length, dim = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        qkv = qkv.view(batch, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q = q if last is None else q[:, :, -last:]
        if self.relative == "decomposed":
            rows, columns = (
                axis_embeddings(table, n)
                for table, n in zip((self.rel_pos_h, self.rel_pos_w), grid, strict=True)
            )
            x = decomposed_attention(q, k, v, rows, columns)
        elif self.relative == "table" and q.device.type == "cpu" and torch.is_grad_enabled():
            # There no fused kernel has a gradient for a bias: the plain one would keep N x N
            # weights of every head.
            x = checkpoint(self._with_table, q, k, v, grid, use_reentrant=False)
        elif self.relative == "table":
            x = self._with_table(q, k, v, grid)
        else:
            x = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias[None])
        return x.transpose(1, 2).flatten(2)

    def _with_table(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        """(B, n, N, d) each -> (B, n, N, d)."""
        bias = relative_bias(self.relative_position_bias_table, self.extent, grid)
        return F.scaled_dot_product_attention(q, k, v, bias[None])


def to_windows(x: Tensor, size: int) -> Tensor:
    """(B, h, w, C) -> (B * windows, s*s, C), zero-padded below and right to whole windows."""
    _, h, w, channels = x.shape
    if h % size or w % size:
        x = F.pad(x, (0, 0, 0, -w % size, 0, -h % size))
    x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))
    return x.transpose(2, 3).reshape(-1, size * size, channels)


def from_windows(windows: Tensor, size: int, grid: Grid) -> Tensor:
    """Inverse of `to_windows`, without the padding: (B * windows, s*s, C) -> (B, h, w, C)."""
    rows, columns = (-(-n // size) for n in grid)
    x = windows.view(-1, rows, columns, size, size, windows.shape[-1])
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : grid[0], : grid[1]]


def decomposed_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Attention with the bias q . rows[y, y'] + q . columns[x, x'] on its scaled logits.

    The bias is linear in the query, so it fits into the dot product: queries get their h + w bias
    values as further channels, keys a one-hot code of their place. Nothing of N x N values is ever
    stored, and the fused kernels' backward pass applies.

    Args:
        q, k, v: (B, n, h*w, d).
        rows, columns: (h, h, d) and (w, w, d), of query's and key's place.

    Returns:
        (B, n, h*w, d).
    """
    (h, w), d = (len(rows), len(columns)), q.shape[-1]
    places = q.unflatten(2, (h, w))
    row_bias = torch.einsum("bnyxd,ykd->bnyxk", places, rows.to(q.dtype)).flatten(2, 3)
    column_bias = torch.einsum("bnyxd,xkd->bnyxk", places, columns.to(q.dtype)).flatten(2, 3)
    if q.device.type == "cpu" and not row_bias.requires_grad:
        # This kernel is faster with a stored bias, but has no gradient for one.
        bias = row_bias[..., None] + column_bias[..., None, :]
        return F.scaled_dot_product_attention(q, k, v, bias.flatten(3))
    place = torch.arange(h * w, device=q.device)
    code = torch.cat([F.one_hot(place // w, h), F.one_hot(place % w, w)], dim=1)
    # The kernel scales all channels alike. It wants them in eights, as many in the values as in
    # queries and keys.
    code = (code * d**0.5).to(k.dtype).expand(*k.shape[:2], -1, -1)
    spare = q.new_zeros(()).expand(*q.shape[:3], -(d + h + w) % 8)
    q = torch.cat([q, row_bias, column_bias, spare], dim=3)
    k = torch.cat([k, code, spare], dim=3)
    v = F.pad(v, (0, q.shape[3] - d))
    return F.scaled_dot_product_attention(q, k, v, scale=d**-0.5)[..., :d]
