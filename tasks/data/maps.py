"""Label maps of segmentation sets: one file read, checked and turned into labels.

Shapes: H W px of an image. Needs Pillow and NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mae_bench.errors import UserError
from tasks.data.reading import DAMAGE, cause

IGNORED = 255
# Pillow's names of images with one whole number a pixel; a palette image gives its indices.
ONE_CHANNEL = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L"})
# Grey values of 2 and 4 bits, which Pillow spreads over 0 to 255: the factor.
SPREAD = {"L;2": 85, "L;4": 17}


@dataclass(frozen=True)
class MapValues:
    """What the values of a set's maps mean, for training and for `data verify`.

    Attributes:
        reduce_zero_label: 0 is unlabelled and value k is class k - 1; else value k is class k.
        ignore_value: another value that is never scored, even if it is one of the classes'.
    """

    num_classes: int
    reduce_zero_label: bool = True
    ignore_value: int = IGNORED

    @property
    def classes(self) -> range:
        """The values of the classes, in their order."""
        first = int(self.reduce_zero_label)
        return range(first, first + self.num_classes)

    def ignored(self, values: np.ndarray) -> np.ndarray:
        """Where nothing is scored."""
        return (values == self.ignore_value) | ((values == 0) & self.reduce_zero_label)

    def fault(self, values: np.ndarray) -> str | None:
        """What is wrong with the values of a map; None if all of them mean something."""
        first, last = self.classes[0], self.classes[-1]
        wrong = ~self.ignored(values) & ((values < first) | (values > last))
        if not wrong.any():
            return None
        unlabelled = "0 or " if self.reduce_zero_label and self.ignore_value else ""
        return (
            f"holds {_some(np.unique(values[wrong]))}; classes are {first} to {last}, unlabelled "
            f"is {unlabelled}{self.ignore_value}"
        )

    def labels(self, values: np.ndarray) -> np.ndarray:
        """Labels 0 to `num_classes` - 1 and 255, uint8: the one place of ADE20K's shift."""
        return np.where(self.ignored(values), IGNORED, values - self.classes[0]).astype(np.uint8)


def read_map(path: Path | str) -> np.ndarray:
    """Values of a map as they are stored, (H, W) of int32; up to 16 bits, grey or palette.

    Raises:
        UserError: missing, damaged, or an image of several channels.
    """
    try:
        with Image.open(path) as image:
            values = stored_values(image)
            mode = image.mode
    except FileNotFoundError:
        raise UserError(f"map {path} is missing; every image needs one of the same name") from None
    except DAMAGE as error:
        raise UserError(
            f"map {path} cannot be read ({cause(error)}); write the file again"
        ) from None
    if values is None:
        raise UserError(f"map {path} {format_fault(mode)}")
    return values


def stored_values(image: Image.Image) -> np.ndarray | None:
    """Values of a map that was opened, (H, W) of int32; None if it has several channels."""
    if image.mode not in ONE_CHANNEL:
        return None
    spread = SPREAD.get(image.tile[0][3], 1) if image.format == "PNG" else 1
    return np.asarray(image).astype(np.int32) // spread


def format_fault(mode: str) -> str:
    """What is wrong with a map of several channels."""
    return (
        f"is an image of mode {mode}; one channel is needed, whose values are classes (a PNG of "
        "mode L, P or I;16)"
    )


def size_fault(map_size: tuple[int, ...], image_size: tuple[int, ...]) -> str | None:
    """What is wrong with a map that is not of its image's size; both (width, height)."""
    if tuple(map_size) == tuple(image_size):
        return None
    mine, other = (f"{width} x {height}" for width, height in (map_size, image_size))
    return f"is {mine} pixels, its image {other}"


def to_labels(
    values: np.ndarray,
    num_classes: int,
    path: Path | str,
    reduce_zero_label: bool = True,
    ignore_value: int = IGNORED,
) -> np.ndarray:
    """Values of a map -> labels 0 to `num_classes` - 1 and 255 for what is never scored, uint8.

    Args:
        values: as of `read_map`.
        path: of the map, for the error.
        reduce_zero_label, ignore_value: see `MapValues`.

    Raises:
        UserError: values outside of the class list.
    """
    meaning = MapValues(num_classes, reduce_zero_label, ignore_value)
    fault = meaning.fault(values)
    if fault:
        raise UserError(f"map {path} {fault}")
    return meaning.labels(values)


def check_size(shape: tuple[int, ...], image: tuple[int, ...], path: Path | str) -> None:
    """Refuse a map that is not of its image's size; both (H, W).

    Raises:
        UserError: with both sizes.
    """
    fault = size_fault(shape[::-1], image[::-1])
    if fault:
        raise UserError(f"map {path} {fault}; a map of the image's own size is needed")


def _some(values: np.ndarray, most: int = 8) -> str:
    shown = str(values[:most].tolist())
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown
