"""Label maps of segmentation sets: one file read, checked and turned into labels.

Shapes: H W px of an image. Needs Pillow and NumPy only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mae_bench.errors import UserError

IGNORED = 255
# Pillow's names of images with one whole number a pixel; a palette image gives its indices.
ONE_CHANNEL = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L"})


def read_map(path: Path | str) -> np.ndarray:
    """Values of a map as they are stored, (H, W) of int32; 8 or 16 bits, grey or palette.

    Raises:
        UserError: missing, damaged, or an image of several channels.
    """
    try:
        with Image.open(path) as file:
            if file.mode not in ONE_CHANNEL:
                raise UserError(
                    f"map {path} is an image of mode {file.mode}; one channel is needed, whose "
                    "values are classes (a PNG of mode L, P or I;16)"
                )
            return np.asarray(file).astype(np.int32)
    except FileNotFoundError:
        raise UserError(f"map {path} is missing; every image needs one of the same name") from None
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise UserError(f"map {path} cannot be read ({error}); write the file again") from None


def to_labels(
    values: np.ndarray,
    num_classes: int,
    path: Path | str,
    reduce_zero_label: bool = True,
    ignore_value: int = IGNORED,
) -> np.ndarray:
    """Values of a map -> labels 0 to `num_classes` - 1 and 255 for what is never scored, uint8.

    The one place of ADE20K's shift.

    Args:
        values: as of `read_map`.
        path: of the map, for the error.
        reduce_zero_label: 0 is unlabelled and value k is class k - 1; else value k is class k.
        ignore_value: another value that is no class.

    Raises:
        UserError: values outside of the class list.
    """
    labels = values - int(reduce_zero_label)
    ignored = (values == ignore_value) | ((values == 0) & reduce_zero_label)
    wrong = ~ignored & ((labels < 0) | (labels >= num_classes))
    if wrong.any():
        first, last = int(reduce_zero_label), num_classes - 1 + reduce_zero_label
        unlabelled = "0 (unlabelled), " if reduce_zero_label else ""
        raise UserError(
            f"map {path} holds the values {_some(np.unique(values[wrong]))}; its class list allows "
            f"{unlabelled}{first} to {last} and {ignore_value} (ignored)"
        )
    return np.where(ignored, IGNORED, labels).astype(np.uint8)


def check_size(shape: tuple[int, ...], image: tuple[int, ...], path: Path | str) -> None:
    """Refuse a map that is not of its image's size; both (H, W).

    Raises:
        UserError: with both sizes.
    """
    if tuple(shape) != tuple(image):
        raise UserError(
            f"map {path} is {shape[0]}x{shape[1]} (height x width), its image "
            f"{image[0]}x{image[1]}; a map of the image's own size is needed"
        )


def _some(values: np.ndarray, most: int = 8) -> str:
    shown = ", ".join(map(str, values[:most].tolist()))
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown
