"""Checks of images and their maps: pairs, formats, values, and that no one has shifted them yet."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.data.formats import Ade20kSplit, Tell
from tasks.data.maps import MapValues, format_fault, size_fault
from tasks.data.verify.kinds import Kind, Place
from tasks.data.verify.scan import Scan


class Ade20k(Kind):
    """Images and maps of each split."""

    def add(self, split: str, found: Ade20kSplit) -> dict[str, Any]:
        self.splits[split] = Maps(found, self.tell)
        return {"images": len(self.splits[split].pairs), "classes": len(found.classes)}

    def check(self) -> None:
        classes = [maps.split.classes for maps in self.splits.values()]
        if len(classes) == 2 and classes[0] != classes[1]:
            self.tell("class-lists", self.home, "training and validation name other classes")

    def images(self, split: str) -> Sequence[Place]:
        return [image for image, _ in self._pairs(split)]

    def maps(self, split: str) -> Sequence[Path]:
        return [path for _, path in self._pairs(split)]

    def saw_image(self, split: str, place: Place, scan: Scan) -> None:
        self.splits[split].sizes[Path(str(place)).stem] = scan.size

    def saw_map(self, split: str, place: Place, scan: Scan) -> None:
        self.splits[split].check(Path(str(place)), scan)

    def finish(self, split: str) -> dict[str, Any]:
        self.splits[split].finish(is_train=split == "train")
        return self.splits[split].facts()

    def _pairs(self, split: str) -> list[tuple[Path, Path]]:
        return self.splits[split].pairs if split in self.splits else []


def pairs(split: Ade20kSplit, tell: Tell) -> list[tuple[Path, Path]]:
    """Images with their maps; what has no partner is told and left out."""

    def stems(folder: Path, suffix: str) -> set[str]:
        return {name.removesuffix(suffix) for name in os.listdir(folder) if name.endswith(suffix)}

    images = stems(split.images, split.image_suffix)
    maps = stems(split.annotations, split.map_suffix)

    def files(stem: str) -> tuple[Path, Path]:
        names = f"{stem}{split.image_suffix}", f"{stem}{split.map_suffix}"
        return split.images / names[0], split.annotations / names[1]

    for stem in sorted(images - maps):
        tell("pairs", files(stem)[0], f"has no map {files(stem)[1].name}")
    for stem in sorted(maps - images):
        tell("pairs", files(stem)[1], f"has no image {files(stem)[0].name}")
    return [files(stem) for stem in sorted(images & maps)]


class Maps:
    """What the maps of one split hold, map by map.

    Attributes:
        pairs: image and map files.
        sizes: stem -> width and height of the image, as far as known.
        pixels: value -> how many, in all maps that could be read.
    """

    def __init__(self, split: Ade20kSplit, tell: Tell):
        self.split, self.tell = split, tell
        self.pairs = pairs(split, tell)
        self.sizes: dict[str, tuple[int, int] | None] = {}
        self.pixels: Counter[int] = Counter()
        self.values = MapValues(len(split.classes), split.reduce_zero_label, split.ignore_value)

    def check(self, path: Path, scan: Scan) -> None:
        """Tell what is wrong with one map."""
        if scan.histogram is None:
            self.tell("map-format", path, format_fault(scan.mode))
            return
        if scan.mode != "L":
            said = "the indices of a palette" if scan.mode == "P" else f"pixels of mode {scan.mode}"
            self.tell("map-encoding", path, f"its values are {said}")
        image = self.sizes.get(path.stem)
        if image and scan.size and (fault := size_fault(scan.size, image)):
            self.tell("map-size", path, fault)
        self.pixels.update(scan.histogram)
        if fault := self.values.fault(np.array(list(scan.histogram))):
            self.tell("map-values", path, fault)

    def finish(self, is_train: bool) -> None:
        """Tell what only all maps together show."""
        last, ignored = self.values.classes[-1], self.split.ignore_value
        folder = self.split.annotations
        # Maps that detectron2's script has shifted: the first class is 0, unlabelled is 255, and
        # the value of the last class is free.
        shifted = self.split.reduce_zero_label and self.pixels[ignored] and not self.pixels[last]
        if shifted:
            said = f"{self.pixels[ignored]} pixels are {ignored} and none is {last}"
            hint = "give those of the owner, or say so in dataset.json: reduce_zero_label false"
            self.tell("zero-label", folder, f"{said}: these look shifted already; {hint}")
        if not self.split.reduce_zero_label and self.pixels[last + 1] and last + 1 != ignored:
            said = f"value {last + 1} is in use, one above the last class"
            hint = "say so in dataset.json: reduce_zero_label true"
            self.tell("zero-label", folder, f"{said}: 0 seems to be unlabelled; {hint}")
        unused = [name for name, pixels in self._histogram().items() if not pixels]
        if is_train and unused:
            self.tell("unused-class", folder, f"no pixel of {', '.join(unused[:10])}")

    def facts(self) -> dict[str, Any]:
        """Histogram of the values as stored, and of the classes after the reader's one shift."""
        labels = self._histogram()
        return {
            "stored_values": dict(sorted(self.pixels.items())),
            "histogram": labels,
            "unlabelled_pixels": self.pixels.total() - sum(labels.values()),
        }

    def _histogram(self) -> dict[str, int]:
        values = zip(self.split.classes, self.values.classes, strict=True)
        ignored = self.split.ignore_value
        return {name: self.pixels[value] * (value != ignored) for name, value in values}
