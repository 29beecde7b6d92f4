"""Masked autoencoder: an encoder of visible patches, a decoder, a target.

Shapes: B batch, L patches, K visible, M = L - K masked, D encoder width, P = p*p*3 values of a
patch.

Source: arXiv:2111.06377 Sec. 3; facebookresearch/mae models_mae.py. The same function, computed
with less: only visible patches are embedded, and only masked ones are predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from backbones import create_backbone
from backbones.vit import VisionTransformer, patchify, take, unpatchify
from mae_bench.errors import UserError, unknown
from tasks.data.images import denormalise
from tasks.engine import batch_rand
from tasks.pretraining import TARGETS
from tasks.pretraining.dalle import DalleEncoder
from tasks.pretraining.decoder import Decoder
from tasks.pretraining.masking import SAMPLERS
from tasks.pretraining.tokenizer import Tokenizer

# Keys of a recipe's `model` section that are options of `MaskedAutoencoder`. A file from before a
# key was there gets the default, which is what it was trained with.
OPTIONS = (
    "mask_ratio",
    "decoder_width",
    "decoder_depth",
    "decoder_heads",
    "sampling",
    "encoder_mask_tokens",
    "loss_on_all_patches",
)


class MaskedAutoencoder(BaseModel):
    """Encoder, decoder and target, trained by mmengine's loop.

    Args:
        encoder: a plain ViT; its positions are frozen here, as in the paper.
        target: one of `TARGETS`.
        decoder_heads: None for one per 32 of the decoder's width.
        sampling: one of `masking.SAMPLERS`.
        encoder_mask_tokens: the encoder sees every place, removed patches as a mask token of its
            own width (Table 1c). What else the paper changed for it is not known; here the decoder
            is as before, but gets the encoded mask tokens instead of putting its own.
        loss_on_all_patches: predict and score the visible patches too.

    Raises:
        UserError: options that do not fit each other, or the encoder.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        target: nn.Module,
        *,
        mask_ratio: float = 0.75,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int | None = 16,
        sampling: str = "random",
        encoder_mask_tokens: bool = False,
        loss_on_all_patches: bool = False,
    ):
        super().__init__()
        _check_encoder(encoder)
        if sampling not in SAMPLERS:
            raise unknown("mask sampling", sampling, SAMPLERS)
        self.encoder, self.target = encoder, target
        self.mask_ratio, self.sampling = mask_ratio, sampling
        self.loss_on_all_patches = loss_on_all_patches
        # Sampling once finds what does not fit before anything is trained.
        self._split(torch.rand(1, self.num_patches, generator=torch.Generator()))
        encoder.pos_embed.requires_grad_(False)
        self.decoder = Decoder(
            encoder.embed_dim,
            encoder.grid,
            decoder_width,
            decoder_depth,
            decoder_heads,
            target.dim,
            mask_token=not encoder_mask_tokens,
        )
        self.encoder_mask_token = None
        if encoder_mask_tokens:
            self.encoder_mask_token = nn.Parameter(torch.zeros(1, 1, encoder.embed_dim))
            nn.init.normal_(self.encoder_mask_token, std=0.02)

    @property
    def num_patches(self) -> int:
        """L."""
        return self.encoder.grid[0] * self.encoder.grid[1]

    def _split(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return SAMPLERS[self.sampling](noise, self.mask_ratio, self.encoder.grid)

    def _encode(self, images: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """(B, 1 + K, D); (B, 1 + L, D), masked ones last, if the encoder has mask tokens."""
        if self.encoder_mask_token is None:
            return self.encoder.forward_features(images, visible)
        positions = self.encoder.pos_embed[:, 1:].expand(len(images), -1, -1)
        fillers = self.encoder_mask_token + take(positions, masked)
        x = torch.cat([self.encoder.embed(images, visible), fillers], dim=1)
        for block in self.encoder.blocks:
            x = block(x)
        return self.encoder.norm(x)

    def predict(
        self, images: Tensor, noise: Tensor, everywhere: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) and noise (B, L) -> prediction (B, M, out), visible, masked.

        With `everywhere` the prediction is (B, L, out): of the visible patches, then the masked.
        """
        visible, masked = self._split(noise)
        encoded = self._encode(images, visible, masked)
        return self.decoder(encoded, visible, masked, everywhere), visible, masked

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        noise: Tensor | None = None,
        mode: str = "loss",
    ) -> dict[str, Tensor]:
        """Loss of a batch of normalised images (B, 3, H, W); noise is drawn when not given."""
        if noise is None:
            noise = batch_rand(len(images), self.num_patches, device=images.device)
        prediction, visible, masked = self.predict(images, noise, self.loss_on_all_patches)
        scored = torch.cat([visible, masked], dim=1) if self.loss_on_all_patches else masked
        patches = patchify(images, self.encoder.patch_size)
        truth = self.target(images, patches, scored)
        return {"loss": self.target.loss(prediction, truth)}

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Pictures of what the model sees and says, each (B, 3, H, W) in [0, 1] (not clipped).

        "masked" has removed patches in grey, "reconstruction" visible ones; "combined" has both.
        """
        prediction, visible, masked = self.predict(images, noise)
        patches = patchify(images, self.encoder.patch_size)
        shown = self._paste(torch.zeros_like(patches), visible, take(patches, visible))
        filled = self.target.to_pixels(prediction, images, patches, masked)
        alone = self._paste(torch.zeros_like(patches), masked, filled)
        pictures = {"masked": shown, "reconstruction": alone}
        pictures["combined"] = self._paste(shown, masked, filled)
        return {
            "original": denormalise(images),
            **{name: denormalise(self._image(x)) for name, x in pictures.items()},
        }

    def _image(self, patches: Tensor) -> Tensor:
        return unpatchify(patches, self.encoder.patch_size, self.encoder.grid)

    @staticmethod
    def _paste(patches: Tensor, index: Tensor, values: Tensor) -> Tensor:
        return patches.scatter(1, index[..., None].expand_as(values), values)


def _check_encoder(encoder: nn.Module) -> None:
    """Refuse what cannot encode a part of the patches by itself."""
    plain = isinstance(encoder, VisionTransformer) and encoder.pos_embed is not None
    if not plain or encoder.num_prefix_tokens != 1:
        raise UserError(
            f"MAE needs a plain ViT with a class token and absolute positions; "
            f"{type(encoder).__name__} as given is none. See `mae-bench backbones list`"
        )
    if encoder.window_size or encoder.relative_positions:
        raise UserError(
            "MAE's encoder sees single patches: pretrain it without windows and relative "
            "positions, which are for the transfer"
        )


def build(
    backbone: str,
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    tokenizer: Tokenizer | DalleEncoder | None,
) -> MaskedAutoencoder:
    """Build the model of a pretraining recipe.

    Raises:
        UserError: unknown backbone or target, sizes that do not fit.
    """
    encoder = create_backbone(backbone, img_size=data["image_size"])
    target = TARGETS[model["target"]](encoder.patch_size, tokenizer, model)
    chosen = {name: model[name] for name in OPTIONS if name in model}
    return MaskedAutoencoder(encoder, target, **chosen)
