"""What MAE reconstructs. One class per target; `TARGETS` in this package names them.

A target says how many numbers are predicted per patch (`dim`), computes the truth for the masked
patches only, and has its loss. Shapes: B batch, M masked patches, P = p*p*C values of a patch.

Source: arXiv:2111.06377 Sec. 3 and Table 1d.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.vit import patchify, take
from mae_bench.errors import UserError
from tasks.data.images import denormalise, normalise_batch
from tasks.pretraining.dalle import DalleEncoder
from tasks.pretraining.tokenizer import Tokenizer, ids_of_patches


class Pixel(nn.Module):
    """The (mean/std-normalised) pixels of a patch; mean squared error."""

    def __init__(self, patch_size: int, tokenizer: Tokenizer | None = None):
        super().__init__()
        self.dim = patch_size**2 * 3

    def forward(self, images: Tensor, patches: Tensor, masked: Tensor) -> Tensor:
        """Truth for the masked patches.

        Args:
            images: (B, C, H, W), `patches`: (B, L, P) of the same, `masked`: (B, M) indices.

        Returns:
            (B, M, P).
        """
        return take(patches, masked)

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """Mean over the values of a patch, then over all masked patches of the batch."""
        return F.mse_loss(prediction.float(), truth)

    def to_pixels(
        self, prediction: Tensor, images: Tensor, patches: Tensor, masked: Tensor
    ) -> Tensor:
        """Predictions (B, M, dim) as pixels (B, M, P), for display; the rest as in `forward`."""
        return prediction.float()


class NormPixel(Pixel):
    """Pixels normalised by each patch's own mean and (unbiased) variance."""

    EPSILON = 1e-6

    def forward(self, images: Tensor, patches: Tensor, masked: Tensor) -> Tensor:
        """(B, M, P), zero mean and unit variance per patch."""
        # LayerNorm's fused kernel divides by the biased deviation; the factor between the two is
        # its weight, and epsilon is scaled so that the result is the same to the last term.
        bias = (self.dim - 1) / self.dim
        weight = patches.new_full((self.dim,), bias**0.5)
        return F.layer_norm(take(patches, masked), (self.dim,), weight, eps=self.EPSILON * bias)

    def to_pixels(
        self, prediction: Tensor, images: Tensor, patches: Tensor, masked: Tensor
    ) -> Tensor:
        """Undo the normalisation with the true patch's statistics, which only display may know."""
        truth = take(patches, masked)
        variance, mean = torch.var_mean(truth, dim=-1, keepdim=True, correction=1)
        return prediction.float() * (variance + self.EPSILON).sqrt() + mean


class DvaeToken(nn.Module):
    """The id that a discrete VAE gives a patch; cross-entropy over its codebook.

    Args:
        tokenizer: trained by the `tokenizer` task; frozen here.

    Raises:
        UserError: no tokenizer.
    """

    def __init__(self, patch_size: int, tokenizer: Tokenizer | DalleEncoder | None = None):
        super().__init__()
        if tokenizer is None:
            raise UserError("target dvae-token needs a trained tokenizer upstream; none was given")
        self.patch_size = patch_size
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.dim = self.tokenizer.num_codes

    def _ids(self, images: Tensor) -> Tensor:
        """(B, h, w) ids of all patches."""
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        return ids_of_patches(self.tokenizer, denormalise(images), grid)

    @torch.no_grad()
    def forward(self, images: Tensor, patches: Tensor, masked: Tensor) -> Tensor:
        """Ids of the masked patches, (B, M) int64; `images` as in `Pixel.forward`."""
        return self._ids(images).flatten(1).gather(1, masked)

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """Mean cross-entropy over the masked patches, as in BEiT."""
        return F.cross_entropy(prediction.float().flatten(0, 1), truth.flatten())

    @torch.no_grad()
    def to_pixels(
        self, prediction: Tensor, images: Tensor, patches: Tensor, masked: Tensor
    ) -> Tensor:
        """What the tokenizer makes of the predicted ids among the visible patches' own.

        Mean grey where it has no way back to pixels (DALL-E's encoder).
        """
        if not self.tokenizer.decodes:
            return torch.zeros_like(take(patches, masked))
        ids = self._ids(images)
        mixed = ids.flatten(1).scatter(1, masked, prediction.argmax(dim=-1)).view_as(ids)
        decoded = normalise_batch(self.tokenizer.decode_ids(mixed))
        if decoded.shape != images.shape:
            decoded = F.interpolate(decoded, images.shape[-2:], mode="bilinear")
        return take(patchify(decoded, self.patch_size), masked)
