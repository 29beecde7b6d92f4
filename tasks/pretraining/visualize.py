"""The MAE paper's picture: original, masked, reconstructed, and both together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mae_bench.errors import UserError
from tasks.data.images import evaluation_transform, read_image
from tasks.pretraining.checkpoints import load_pretrained
from tasks.pretraining.masking import num_visible
from tasks.pretraining.pictures import check_path, image_grid

# Images through the model at a time.
CHUNK = 16
# Longer than this, and resizing the short side makes a giant of an image.
MAX_ASPECT = 20


def visualize(
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    mask_ratios: Sequence[float] = (0.75,),
    seed: int = 0,
    target: str | None = None,
) -> list[str]:
    """Write a figure with a column per image, and three rows per mask ratio below the originals.

    Args:
        checkpoint: see `checkpoints.load_pretrained`.
        images: image files of any size; the short side is resized, the centre cropped.
        out: PNG, PDF or SVG to write.
        mask_ratios: each with masks of its own.
        seed: of the masks.
        target: see `checkpoints.load_pretrained`.

    Returns:
        What is to be known of the pixels shown; it is below the figure too.

    Raises:
        UserError: not such a checkpoint, no images, unreadable ones, or a mask ratio that leaves
            nothing visible or nothing masked.
    """
    if not images:
        raise UserError("no images given; name at least one image file")
    if not mask_ratios:
        raise UserError("no mask ratio given; 0.75 is the paper's")
    check_path(out)
    mae = load_pretrained(checkpoint, target)
    for ratio in mask_ratios:
        num_visible(mae.num_patches, ratio)
    batch = _read(images, mae.encoder.grid[0] * mae.encoder.patch_size)
    rows: dict[str, Tensor] = {}
    for ratio in mask_ratios:
        mae.mask_ratio = ratio
        noise = _noise(len(batch), mae.num_patches, seed)
        parts = [
            mae.reconstruct(*chunk)
            for chunk in zip(batch.split(CHUNK), noise.split(CHUNK), strict=True)
        ]
        for name in parts[0]:
            title = name if name == "original" or len(mask_ratios) == 1 else f"{name} {ratio:.0%}"
            rows[title] = torch.cat([part[name] for part in parts])
    notes = [mae.target.note] if mae.target.note else []
    image_grid(list(rows.values()), list(rows), out, notes=notes)
    return notes


def _noise(count: int, num_patches: int, seed: int) -> Tensor:
    return torch.rand(count, num_patches, generator=torch.Generator().manual_seed(seed))


def _read(paths: Sequence[Path], size: int) -> Tensor:
    """Normalised images, (B, 3, size, size)."""
    transform = evaluation_transform(size, 1.0)
    batch = []
    for path in paths:
        image = read_image(path)
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise UserError(
                f"{path} is {image.width}x{image.height} px; sides of at most 1:{MAX_ASPECT} can "
                "be shown, crop it"
            )
        batch.append(transform(image))
    return torch.stack(batch)
