"""The MAE paper's picture: original, masked, reconstructed, and both together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mae_bench.errors import UserError
from tasks.data.images import evaluation_transform, read_image
from tasks.pretraining.checkpoints import load_pretrained
from tasks.pretraining.pictures import image_grid


def visualize(
    checkpoint: Path, images: Sequence[Path], out: Path, mask_ratio: float = 0.75, seed: int = 0
) -> None:
    """Write a figure with a column per image.

    Args:
        checkpoint: the `mae.safetensors` of a pretraining run.
        images: image files of any size; the short side is resized, the centre cropped.
        out: PNG to write.
        seed: of the masks.

    Raises:
        UserError: not such a checkpoint, no images, unreadable ones, or a mask ratio that leaves
            nothing visible or nothing masked.
    """
    if not images:
        raise UserError("no images given; name at least one image file")
    mae = load_pretrained(checkpoint)
    mae.mask_ratio = mask_ratio
    height, _ = (side * mae.encoder.patch_size for side in mae.encoder.grid)
    transform = evaluation_transform(height, 1.0)
    batch = torch.stack([transform(read_image(path)) for path in images])
    length = mae.encoder.grid[0] * mae.encoder.grid[1]
    noise = torch.rand(len(batch), length, generator=torch.Generator().manual_seed(seed))
    shown = mae.reconstruct(batch, noise)
    image_grid(list(shown.values()), list(shown), out)
