"""The light decoder of a masked autoencoder.

Shapes: B batch, L patches, K visible, M masked, D encoder width, E decoder width.

Source: arXiv:2111.06377 Sec. 3; facebookresearch/mae models_mae.py. Differs: tokens come shuffled,
visible ones first, each with its own position, so that nothing has to be unshuffled; the last block
and the head compute only what is asked for. The predictions are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backbones.vit import Block, LayerNorm, initialise, sincos_positions, take
from mae_bench.errors import UserError

# The official code has 16 heads at a width of 512 and says nothing of other widths. Ours keep the
# size of a head.
HEAD_WIDTH = 32


class Decoder(nn.Module):
    """Transformer that predicts patches from the encoded visible ones.

    Args:
        encoder_dim: D; `grid`: (h, w) of the patches; `dim`: E; `out`: numbers per prediction.
        heads: None for one per 32 of the width.
        mask_token: put one for every removed patch; off when the encoder has already (Table 1c).

    Raises:
        UserError: sizes that do not fit.
    """

    def __init__(
        self,
        encoder_dim: int,
        grid: tuple[int, int],
        dim: int,
        depth: int,
        heads: int | None,
        out: int,
        mask_token: bool = True,
    ):
        super().__init__()
        heads = max(1, dim // HEAD_WIDTH) if heads is None else heads
        if dim < 4 or dim % 4 or heads < 1 or dim % heads:
            raise UserError(
                f"decoder_width {dim} with decoder_heads {heads}: the width must be a multiple of "
                "4 (sine and cosine for rows and columns) and of the number of heads"
            )
        if depth < 1:
            raise UserError(f"decoder_depth {depth}: at least one block is needed")
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if mask_token else None
        self.pos_embed = nn.Parameter(sincos_positions(dim, grid), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = LayerNorm(dim)
        self.head = nn.Linear(dim, out)
        initialise(self)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, encoded: Tensor, visible: Tensor, masked: Tensor, everywhere: bool = False
    ) -> Tensor:
        """Predict the masked patches.

        Args:
            encoded: (B, 1 + K, D), class token first; (B, 1 + L, D), masked ones last, where the
                encoder had mask tokens.
            visible: (B, K) and `masked`: (B, M) indices of the patches.
            everywhere: predict the visible ones too, before the masked.

        Returns:
            (B, M, out), or (B, L, out).
        """
        batch, num_masked = masked.shape
        x = self.embed(encoded)
        if self.mask_token is not None:
            x = torch.cat([x, self.mask_token.expand(batch, num_masked, -1)], dim=1)
        order = torch.cat([visible, masked], dim=1)
        positions = self.pos_embed.expand(batch, -1, -1)
        x = x + torch.cat([positions[:, :1], take(positions[:, 1:], order)], dim=1)
        *blocks, block = self.blocks
        for earlier in blocks:
            x = earlier(x)
        # The last block's other tokens would be seen by nothing.
        predicted = order.shape[1] if everywhere else num_masked
        return self.head(self.norm(block(x, last=predicted)))
