"""Figures of pretraining: rows of images under each other, with titles."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mae_bench.errors import UserError
from mae_bench.job import write_atomically

TARGET_PX, GAP, TITLE_PX, FONT_PX = 128, 4, 110, 13
NUM_SHOWN = 8
SUFFIXES = (".png", ".pdf", ".svg")


@dataclass
class Sheet:
    """A figure before it is drawn: images and lines of text with their places, in pixels.

    Attributes:
        images: (left, top, picture).
        texts: (left, middle, text).
    """

    width: int
    height: int
    images: list[tuple[int, int, Image.Image]] = field(default_factory=list)
    texts: list[tuple[int, int, str]] = field(default_factory=list)


def check_path(path: Path) -> None:
    """Refuse a file name that no figure can be written to.

    Raises:
        UserError: another suffix than of PNG, PDF or SVG, or no such folder.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: figures are written as {', '.join(SUFFIXES)}; give one of these")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; create it or name another one")


def image_grid(
    rows: Sequence[Tensor],
    titles: Sequence[str],
    path: Path,
    columns: int = NUM_SHOWN,
    notes: Sequence[str] = (),
) -> None:
    """Write a figure with one line per entry of `rows`; PNG, PDF or SVG by the path's suffix.

    Args:
        rows: each (B, 3, H, W) in [0, 1] (values outside are clipped), the same B, H and W.
        titles: a word or two per row, written at its left.
        columns: images beside each other; further ones follow below, under the same titles.
        notes: lines below everything.

    Raises:
        UserError: see `check_path`.
    """
    check_path(path)
    sheet = _arrange(rows, titles, columns, notes)
    draw = _png if path.suffix.lower() == ".png" else _vector
    write_atomically(path, draw(sheet, path.suffix.lower().removeprefix(".")))


def spread(size: int, count: int) -> list[int]:
    """`count` indices spread evenly over `size` items (sorted by class, they show every class)."""
    return [size * k // count for k in range(min(count, size))]


def _arrange(
    rows: Sequence[Tensor], titles: Sequence[str], columns: int, notes: Sequence[str]
) -> Sheet:
    count, _, height, width = rows[0].shape
    # Small images are enlarged by a whole factor without smoothing: what the model saw, visible.
    zoom = max(1, TARGET_PX // min(height, width))
    cell_h, cell_w = height * zoom + GAP, width * zoom + GAP
    font = ImageFont.load_default(FONT_PX)
    margin = max(TITLE_PX, *(int(font.getlength(title)) + 3 * GAP for title in titles))
    bands = -(-count // columns)
    band_px = len(rows) * cell_h + (2 * FONT_PX if bands > 1 else 0)
    below = bands * band_px + GAP
    width = margin + min(count, columns) * cell_w
    # Letters of a PDF or SVG are a little wider than those measured here.
    lines = [line for note in notes for line in _wrapped(note, font, 0.85 * width)]
    sheet = Sheet(width, below + len(lines) * (FONT_PX + 2 * GAP))
    for line, (images, title) in enumerate(zip(rows, titles, strict=True)):
        for index, image in enumerate(images):
            band, column = divmod(index, columns)
            top = GAP + band * band_px + line * cell_h
            sheet.images.append((margin + column * cell_w, top, _picture(image, zoom)))
            if column == 0:
                sheet.texts.append((6, top + (cell_h - GAP) // 2, title))
    for number, line in enumerate(lines):
        sheet.texts.append((6, below + number * (FONT_PX + 2 * GAP) + FONT_PX // 2, line))
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines of whole words that are no wider than this many pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _png(sheet: Sheet, kind: str) -> bytes:
    canvas = Image.new("RGB", (sheet.width, sheet.height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_PX)
    for left, top, picture in sheet.images:
        canvas.paste(picture, (left, top))
    for left, middle, text in sheet.texts:
        draw.text((left, middle), text, fill="black", font=font, anchor="lm")
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _vector(sheet: Sheet, kind: str) -> bytes:
    """PDF or SVG with the pixels as they are and the text as text."""
    from matplotlib import rc_context  # slow to import, and rarely needed
    from matplotlib.figure import Figure

    # Points are 1/72 inch: at this resolution a pixel is a point.
    figure = Figure(figsize=(sheet.width / 72, sheet.height / 72), dpi=72)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, sheet.width), ylim=(sheet.height, 0))
    axes.axis("off")
    for left, top, picture in sheet.images:
        extent = (left, left + picture.width, top + picture.height, top)
        axes.imshow(picture, extent=extent, interpolation="none", aspect="auto")
    for left, middle, text in sheet.texts:
        axes.text(left, middle, text, fontsize=FONT_PX, va="center_baseline")
    # imshow has moved the limits to its own images.
    axes.set(xlim=(0, sheet.width), ylim=(sheet.height, 0))
    buffer = io.BytesIO()
    # No date and no random ids: the same figure is the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mae-bench", "pdf.fonttype": 42}):
        date = {"Date": None} if kind == "svg" else {"CreationDate": None}
        figure.savefig(buffer, format=kind, metadata=date)
    return buffer.getvalue()


def _picture(image: Tensor, zoom: int) -> Image.Image:
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.repeat(np.repeat(pixels, zoom, 0), zoom, 1))
