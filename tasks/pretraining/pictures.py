"""Figures of pretraining: rows of images under each other, with titles."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mae_bench.job import write_atomically

TARGET_PX, GAP, TITLE_PX = 128, 4, 110
NUM_SHOWN = 8


def image_grid(rows: Sequence[Tensor], titles: Sequence[str], path: Path) -> None:
    """Write a PNG with one line per entry of `rows`.

    Args:
        rows: each (B, 3, H, W) in [0, 1] (values outside are clipped), the same B, H and W.
        titles: a word or two per row, written at its left.
    """
    count, _, height, width = rows[0].shape
    # Small images are enlarged by a whole factor without smoothing: what the model saw, visible.
    zoom = max(1, TARGET_PX // min(height, width))
    cell_h, cell_w = height * zoom, width * zoom
    sheet = Image.new(
        "RGB",
        (TITLE_PX + count * (cell_w + GAP), len(rows) * (cell_h + GAP) + GAP),
        "white",
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for line, (images, title) in enumerate(zip(rows, titles, strict=True)):
        top = GAP + line * (cell_h + GAP)
        draw.text((6, top + cell_h // 2), title, fill="black", font=font, anchor="lm")
        for column, image in enumerate(images):
            sheet.paste(_picture(image, zoom), (TITLE_PX + column * (cell_w + GAP), top))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def spread(size: int, count: int) -> list[int]:
    """`count` indices spread evenly over `size` items (sorted by class, they show every class)."""
    return [size * k // count for k in range(min(count, size))]


def _picture(image: Tensor, zoom: int) -> Image.Image:
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.repeat(np.repeat(pixels, zoom, 0), zoom, 1))
