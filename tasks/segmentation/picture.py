"""Image, truth, prediction and errors side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tasks.data.maps import IGNORED

# Of the legend, the last in letters of a name; and px of a map as it is drawn.
COLUMNS, MOST, LONGEST = 6, 29, 24
LARGEST_SIDE = 400


@dataclass(frozen=True)
class Example:
    """One validation image for the picture: RGB (H, W, 3), truth and prediction (H, W)."""

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def draw(examples: Sequence[Example], metainfo: Mapping[str, Any], path: Path) -> None:
    """Image, truth, prediction and errors side by side, one row an image, with a legend."""
    palette = np.full((256, 3), 255, dtype=np.uint8)
    palette[: len(metainfo["palette"])] = metainfo["palette"]
    patches = _patches(examples, metainfo["classes"], palette)
    foot = 0.1 + 0.25 * math.ceil(len(patches) / COLUMNS)
    figure = Figure(figsize=(8.4, 2.1 * len(examples) + 0.3 + foot))
    axes = figure.subplots(len(examples), 4, squeeze=False)
    titles = ("image", "truth", "prediction", "errors (red)")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    for row, example in zip(axes, examples, strict=True):
        errors, share = error_map(example)
        maps = (example.image, palette[example.truth], palette[example.prediction], errors)
        step = max(1, max(example.truth.shape) // LARGEST_SIDE)
        for axis, picture in zip(row, maps, strict=True):
            axis.imshow(picture[::step, ::step], interpolation="nearest")
            axis.set_axis_off()
        place = dict(transform=row[3].transAxes, ha="right", va="bottom", fontsize=7)
        row[3].text(0.98, 0.02, f"{share:.1%} wrong", **place)
    # Names as they are: matplotlib would leave out those with a leading _ and set $ as formulas.
    style = dict(loc="lower center", ncols=COLUMNS, fontsize=8, frameon=False)
    legend = figure.legend(patches, ["?"] * len(patches), **style)
    for text, patch in zip(legend.get_texts(), patches, strict=True):
        text.set(text=patch.get_label(), parse_math=False)
    figure.tight_layout(rect=(0, foot / figure.get_figheight(), 1, 1), pad=0.4)
    figure.savefig(path, dpi=150)


def error_map(example: Example) -> tuple[np.ndarray, float]:
    """Wrong pixels red on a pale image, unlabelled ones white; and the share of wrong ones."""
    known = example.truth != IGNORED
    wrong = known & (example.truth != example.prediction)
    pale = (example.image.mean(-1, keepdims=True) * 0.4 + 140).repeat(3, -1).astype(np.uint8)
    pale[wrong], pale[~known] = (214, 39, 40), (255, 255, 255)
    return pale, wrong.sum() / max(known.sum(), 1)


def _patches(
    examples: Sequence[Example], classes: Sequence[str], palette: np.ndarray
) -> list[Patch]:
    """The classes that occur, largest first: of 150 names, most would stand for nothing."""
    maps = [each.ravel() for example in examples for each in (example.truth, example.prediction)]
    pixels = np.bincount(np.concatenate(maps), minlength=256)
    shown = [label for label in np.argsort(-pixels, kind="stable") if pixels[label]]
    names = {number: name[:LONGEST] for number, name in enumerate(classes)}
    names[IGNORED] = "unlabelled"
    patches = [
        Patch(fc=palette[label] / 255, ec="0.6", label=names[label]) for label in shown[:MOST]
    ]
    if len(shown) > MOST:
        patches.append(Patch(fc="none", ec="none", label=f"and {len(shown) - MOST} more"))
    return patches
