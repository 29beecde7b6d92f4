"""Masked autoencoder: masking, asymmetric encoder and decoder, and the task that trains them.

Shapes: B batch, L patches, K visible, M = L - K masked, D encoder width, E decoder width,
P = p*p*3 values of a patch.

Source: arXiv:2111.06377 Sec. 3; facebookresearch/mae models_mae.py. The same function, computed
with less: only visible patches are embedded, and only masked ones are predicted. The decoder gets
its tokens in shuffled order, each with its own position, so nothing has to be unshuffled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from backbones import create_backbone
from backbones.checkpoints import read_tensors, save_backbone, write_tensors
from backbones.vit import (
    Block,
    LayerNorm,
    VisionTransformer,
    initialise,
    patchify,
    sincos_positions,
    take,
    unpatchify,
)
from mae_bench.errors import UserError
from mae_bench.job import Job
from mae_bench.records import Metric, Outcome, Picture
from tasks import engine
from tasks.data.images import ImageDataset, denormalise, labelled_sets
from tasks.pretraining import TARGETS
from tasks.pretraining.dalle import DalleEncoder
from tasks.pretraining.pictures import NUM_SHOWN, image_grid, spread
from tasks.pretraining.tokenizer import Tokenizer, build_tokenizer, load_tokenizer

FORMAT = "mae-bench-mae"


def random_masking(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """Split patches into visible and masked by sorting noise: small is keep, large is remove.

    Args:
        noise: (B, L), one uniform value per patch and sample.
        mask_ratio: share to remove; floor(L * (1 - ratio)) patches stay.

    Returns:
        Indices of the visible (B, K) and of the masked patches (B, M).

    Raises:
        UserError: a ratio that leaves no visible or no masked patch.
    """
    length = noise.shape[1]
    num_visible = int(length * (1 - mask_ratio))
    if not 0 < num_visible < length:
        raise UserError(
            f"mask ratio {mask_ratio} keeps {num_visible} of {length} patches; it must keep at "
            "least one and remove at least one"
        )
    order = noise.argsort(dim=1)
    return order[:, :num_visible], order[:, num_visible:]


class Decoder(nn.Module):
    """Light transformer that predicts the masked patches from the encoded visible ones."""

    def __init__(
        self, encoder_dim: int, grid: tuple[int, int], dim: int, depth: int, heads: int, out: int
    ):
        super().__init__()
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(sincos_positions(dim, grid), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = LayerNorm(dim)
        self.head = nn.Linear(dim, out)
        initialise(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoded: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """(B, 1 + K, D) tokens and the two index sets -> predictions (B, M, out)."""
        batch, num_masked = masked.shape
        positions = self.pos_embed.expand(batch, -1, -1)
        x = self.embed(encoded)
        x = x + torch.cat([positions[:, :1], take(positions[:, 1:], visible)], dim=1)
        x = torch.cat([x, self.mask_token + take(positions[:, 1:], masked)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -num_masked:]))


class MaskedAutoencoder(BaseModel):
    """Encoder, decoder and target, trained by mmengine's loop.

    Args:
        encoder: its positions are frozen here, as in the paper.
        target: one of `TARGETS`.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        target: nn.Module,
        *,
        mask_ratio: float = 0.75,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
    ):
        super().__init__()
        self.encoder, self.target, self.mask_ratio = encoder, target, mask_ratio
        encoder.pos_embed.requires_grad_(False)
        self.decoder = Decoder(
            encoder.embed_dim,
            encoder.grid,
            decoder_width,
            decoder_depth,
            decoder_heads,
            target.dim,
        )

    def predict(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) and noise (B, L) -> prediction (B, M, out), visible, masked."""
        visible, masked = random_masking(noise, self.mask_ratio)
        encoded = self.encoder.forward_features(images, visible)
        return self.decoder(encoded, visible, masked), visible, masked

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        noise: Tensor | None = None,
        mode: str = "loss",
    ) -> dict[str, Tensor]:
        """Loss of a batch of normalised images (B, 3, H, W); noise is drawn when not given."""
        if noise is None:
            length = self.encoder.grid[0] * self.encoder.grid[1]
            noise = torch.rand(len(images), length, device=images.device)
        prediction, _, masked = self.predict(images, noise)
        patches = patchify(images, self.encoder.patch_size)
        truth = self.target(images, patches, masked)
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
    target = TARGETS[model["target"]](encoder.patch_size, tokenizer)
    return MaskedAutoencoder(
        encoder,
        target,
        mask_ratio=model["mask_ratio"],
        decoder_width=model["decoder_width"],
        decoder_depth=model["decoder_depth"],
        decoder_heads=model["decoder_heads"],
    )


def save_pretrained(mae: MaskedAutoencoder, path: Path, about: Mapping[str, str]) -> None:
    """Write encoder, decoder and target as safetensors, for `visualize` and further training."""
    tokenizer = getattr(mae.target, "tokenizer", None)
    sizes = {"tokenizer": json.dumps(tokenizer.sizes)} if tokenizer else {}
    write_tensors(mae, path, {**about, **sizes, "format": FORMAT})


def load_pretrained(path: Path) -> MaskedAutoencoder:
    """Read what `save_pretrained` wrote, ready to reconstruct.

    Raises:
        UserError: no such file or another format.
    """
    header, weights = read_tensors(path)
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} has no decoder to visualise (format {header.get('format')!r}); give the "
            "mae.safetensors of a pretraining run"
        )
    recipe = json.loads(header["recipe"])
    sizes = json.loads(header["tokenizer"]) if "tokenizer" in header else None
    tokenizer = build_tokenizer(sizes) if sizes else None
    mae = build(header["backbone"], recipe["data"], recipe["model"], tokenizer)
    mae.load_state_dict(weights)
    return mae.eval()


def run(job: Job) -> Outcome:
    """Pretrain an encoder; score the loss on validation images under fixed masks."""
    data = job.recipe["data"]
    engine.seed_all(job.run.seed, 0)
    tokenizer = load_tokenizer(job.upstream["tokenizer"]) if "tokenizer" in job.upstream else None
    mae = build(job.run.backbone, data, job.recipe["model"], tokenizer)
    train_set, val_set, _ = labelled_sets(job.run.dataset, job.data_root, data)
    # The paper decays the class and mask tokens: they are 3-D, and its list of exceptions is empty.
    trained = engine.fit(job, mae, mae.encoder, train_set, decay_rule="mae-pretrain")
    about = engine.header(job)
    save_backbone(mae.encoder, job.folder / "backbone.safetensors", about)
    save_pretrained(mae, job.folder / "mae.safetensors", about)
    loss, pictures = _score(mae.eval(), val_set, job)
    return Outcome(
        metrics={"val_loss": Metric(value=loss, unit="loss", higher_is_better=False)},
        checkpoint="backbone.safetensors",
        pictures=pictures,
        images_per_second=trained.images_per_second,
        facts=engine.pretraining_facts(job, mae.encoder, train_set, trained),
    )


@torch.no_grad()
def _score(
    mae: MaskedAutoencoder, val_set: ImageDataset, job: Job
) -> tuple[float, tuple[Picture, ...]]:
    device = mae.encoder.pos_embed.device
    images = torch.stack([val_set[i]["images"] for i in range(len(val_set))]).to(device)
    length = mae.encoder.grid[0] * mae.encoder.grid[1]
    # The same masks for every run, so that their losses and pictures can be compared.
    noise = torch.rand(len(images), length, generator=torch.Generator().manual_seed(0)).to(device)
    loss = mae(images, noise=noise)["loss"].item()
    some = spread(len(images), NUM_SHOWN)
    shown = mae.reconstruct(images[some], noise[some])
    image_grid(list(shown.values()), list(shown), job.folder / "reconstructions.png")
    caption = f"Validation images, {mae.mask_ratio:.0%} of the patches removed ({job.run.init})"
    return loss, (Picture(path="reconstructions.png", caption=caption),)
