"""What MAE reconstructs. One class per target; `TARGETS` in this package names them.

A target says how many numbers are predicted per patch (`dim`), computes the truth for the patches
that are scored only, has its loss, and turns predictions into pixels as far as that can be done,
which `note` says. Shapes: B batch, M masked patches, P = p*p*C values of a patch.

Source: arXiv:2111.06377 Sec. 3 and Table 1d.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.vit import patchify, take
from mae_bench.errors import UserError
from tasks.data.images import denormalise, normalise_batch
from tasks.pretraining.dalle import DalleEncoder
from tasks.pretraining.tokenizer import Tokenizer, ids_of_patches


class Pixel(nn.Module):
    """The (mean/std-normalised) pixels of a patch; mean squared error.

    Args:
        options: the `model` section of the recipe, where a target finds options of its own.
    """

    # What is to be known of `to_pixels`; empty where predictions are pixels.
    note = ""

    def __init__(
        self,
        patch_size: int,
        tokenizer: Tokenizer | DalleEncoder | None = None,
        options: Mapping[str, Any] | None = None,
    ):
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
    note = "each predicted patch is shown with the mean and the variance of the original's"

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


class Pca(Pixel):
    """The coefficients of a patch along the directions of most variance; mean squared error.

    The recipe's `pca_coefficients` says how many (96 in the paper). The directions are those of a
    sample of patches, which `fit` sees; they are saved with the weights. The paper does not say how
    its own were fitted: here over patches of training crops, mean removed, and no coefficient is
    scaled, so that large ones weigh more, as they do in the pixels.

    Source: arXiv:2111.06377 Table 1d.

    Raises:
        UserError: more coefficients than a patch has values.
    """

    COEFFICIENTS = 96

    def __init__(
        self,
        patch_size: int,
        tokenizer: Tokenizer | DalleEncoder | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__(patch_size)
        values, self.patch_size = self.dim, patch_size
        self.dim = int((options or {}).get("pca_coefficients", self.COEFFICIENTS))
        if not 0 < self.dim <= values:
            raise UserError(
                f"pca_coefficients {self.dim}: a patch of {patch_size} px has 1 to {values} of them"
            )
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("basis", torch.zeros(values, self.dim))
        self.register_buffer("explained", torch.zeros(()))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Find the directions, and the share of the variance that they explain.

        Args:
            batches: normalised images, each (B, 3, H, W).

        Raises:
            UserError: no more patches than coefficients.
        """
        count, total, products = 0, 0.0, 0.0
        for images in batches:
            patches = patchify(images, self.patch_size).flatten(0, 1).double()
            count += len(patches)
            total = total + patches.sum(dim=0)
            products = products + patches.T @ patches
        if count <= self.dim:
            raise UserError(
                f"{count} patches have no {self.dim} directions of their own; raise "
                "model.pca_images, or lower model.pca_coefficients"
            )
        mean = total / count
        variances, directions = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        directions = directions.flip(1)[:, : self.dim]
        # An eigenvector's sign is arbitrary: its largest entry is made positive.
        largest = directions.abs().argmax(dim=0, keepdim=True)
        directions = directions * directions.gather(0, largest).sign()
        self.mean.copy_(mean)
        self.basis.copy_(directions)
        self.explained.copy_(variances.flip(0)[: self.dim].sum() / variances.sum())

    @property
    def note(self) -> str:
        """What is left out."""
        return f"shown: the {self.dim} predicted of {len(self.mean)} components of each patch"

    def forward(self, images: Tensor, patches: Tensor, masked: Tensor) -> Tensor:
        """(B, M, dim) coefficients, that of most variance first."""
        return (take(patches, masked) - self.mean) @ self.basis

    def to_pixels(
        self, prediction: Tensor, images: Tensor, patches: Tensor, masked: Tensor
    ) -> Tensor:
        """The patch that has these coefficients, and none along the other directions."""
        return prediction.float() @ self.basis.T + self.mean


class DvaeToken(nn.Module):
    """The id that a discrete VAE gives a patch; cross-entropy over its codebook.

    Args:
        tokenizer: trained by the `tokenizer` task; frozen here.

    Raises:
        UserError: no tokenizer.
    """

    def __init__(
        self,
        patch_size: int,
        tokenizer: Tokenizer | DalleEncoder | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if tokenizer is None:
            raise UserError("target dvae-token needs a trained tokenizer upstream; none was given")
        self.patch_size = patch_size
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.dim = self.tokenizer.num_codes

    @property
    def note(self) -> str:
        """How ids become pixels, if they do."""
        if self.tokenizer.decodes:
            return "predicted ids are shown through the tokenizer's decoder"
        return (
            "predicted ids cannot be turned back into pixels (this tokenizer is an encoder alone): "
            "their patches are grey"
        )

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
