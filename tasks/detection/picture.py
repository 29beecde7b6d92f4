"""Detections as a picture: boxes, masks, names and scores on enlarged images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

INCHES_PER_IMAGE = 2.6
DPI = 130


@dataclass(frozen=True)
class Detections:
    """Objects of one image.

    Attributes:
        boxes: (N, 4) as x0, y0, x1, y1 in pixels.
        masks: (N, H, W) bool.
        labels: N class indices.
        scores: N scores; None for the truth.
    """

    boxes: np.ndarray
    masks: np.ndarray
    labels: Sequence[int]
    scores: Sequence[float] | None = None


def draw(
    images: Sequence[np.ndarray],
    truths: Sequence[Detections],
    found: Sequence[Detections],
    classes: Sequence[str],
) -> bytes:
    """Return a PNG with the truth in the upper row and what was found in the lower one.

    Args:
        images: (H, W, 3) uint8, RGB.
    """
    count = len(images)
    figure = Figure(figsize=(INCHES_PER_IMAGE * count, INCHES_PER_IMAGE * 2.08), dpi=DPI)
    grid = figure.subplots(2, count, squeeze=False, gridspec_kw=dict(wspace=0.04, hspace=0.04))
    for row, title, detections in ((0, "truth", truths), (1, "predicted", found)):
        for axes, image, objects in zip(grid[row], images, detections, strict=True):
            _draw_image(axes, image, objects, classes)
        grid[row][0].set_ylabel(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.05)
    return buffer.getvalue()


def _draw_image(axes: Axes, image: np.ndarray, objects: Detections, classes: Sequence[str]) -> None:
    height, width = image.shape[:2]
    axes.imshow(image, interpolation="bicubic", extent=(0, width, height, 0))
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    for side in axes.spines.values():
        side.set_visible(False)
    palette = matplotlib.colormaps["tab10" if len(classes) <= 10 else "hsv"]
    for index, (box, mask, label) in enumerate(
        zip(objects.boxes, objects.masks, objects.labels, strict=True)
    ):
        colour = palette(label if len(classes) <= 10 else label / len(classes))
        _draw_mask(axes, mask, colour)
        x0, y0, x1, y1 = box
        axes.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.4)
        )
        score = "" if objects.scores is None else f" {objects.scores[index]:.2f}"
        # Boxes at the upper edge carry their name inside.
        above = y0 > 0.08 * height
        axes.text(
            x0,
            y0,
            classes[label] + score,
            fontsize=7,
            color="white",
            verticalalignment="bottom" if above else "top",
            bbox=dict(facecolor=colour, edgecolor="none", pad=1.0, alpha=0.9),
            clip_on=True,
        )


def _draw_mask(axes: Axes, mask: np.ndarray, colour: tuple[float, ...]) -> None:
    height, width = mask.shape
    layer = np.zeros((height, width, 4))
    layer[mask] = (*colour[:3], 0.4)
    axes.imshow(layer, interpolation="nearest", extent=(0, width, height, 0))
    if mask.any() and not mask.all():
        centres_x, centres_y = np.arange(width) + 0.5, np.arange(height) + 0.5
        axes.contour(centres_x, centres_y, mask, levels=[0.5], colors=[colour], linewidths=1.0)
