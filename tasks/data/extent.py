"""How much there is to train on, counted from lists and jsons alone. No torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

from mae_bench.errors import UserError
from tasks import data
from tasks.data.formats import CocoSplit, LabeledImages

# An image size that follows the data: a multiple of every stride, and no larger than is needed to
# see what there is in most photographs.
SIDE_STEP, SMALLEST_SIDE, LARGEST_SIDE = 32, 96, 512


class Extent(NamedTuple):
    """What a training goes through.

    Attributes:
        images: in an epoch.
        side: image size of detectors whose recipe leaves it to the data, in pixels; None where no
            list says.
    """

    images: int
    side: int | None = None


def extent(name: str, data_root: Path) -> Extent | None:
    """Extent of a training split; None if it cannot be read."""
    try:
        found = data.read_split(name, data_root, "train")
        if isinstance(found, CocoSplit):
            counted = contents(found.json)
            return Extent(counted.annotated, image_side(counted.side))
    except UserError:
        return None
    if isinstance(found, LabeledImages):
        return Extent(len(found.paths))
    return Extent(sum(1 for _ in found.images.glob(f"*{found.image_suffix}")))


def image_side(typical: float) -> int:
    """Image size for images whose longer sides are typically so long."""
    side = math.ceil(typical / SIDE_STEP) * SIDE_STEP
    return min(max(side, SMALLEST_SIDE), LARGEST_SIDE)


@dataclass(frozen=True)
class Contents:
    """What an annotation file counts.

    Attributes:
        images: all; `annotated`: those with an object that is not a crowd.
        annotations: all.
        side: median of the images' longer sides, in pixels.
    """

    images: int
    annotated: int
    annotations: int
    side: float


def contents(path: Path) -> Contents:
    """Count an annotation file; COCO's takes seconds to read, so each is read once."""
    state = path.stat()
    return _contents(path, (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=8)
def _contents(path: Path, version: tuple[int, int]) -> Contents:
    content = json.loads(path.read_text())
    images, annotations = content["images"], content["annotations"]
    objects = (item for item in annotations if not item.get("iscrowd", 0))
    annotated = {item["image_id"] for item in objects} & {image["id"] for image in images}
    side = median([max(image.get("height", 0), image.get("width", 0)) for image in images] or [0])
    return Contents(len(images), len(annotated), len(annotations), side)
