"""Checks of labelled images that their readers do not make."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tasks.data.formats import LabeledImages
from tasks.data.labelled import PLACES205_LISTS, PLACES365_LISTS
from tasks.data.verify.kinds import Kind, Place, texts

# From where on a class is said to have many more images than another.
LONG_TAIL = 5
# Layouts whose images are filed by category, and the lists that have the labels.
FILED = {
    "places205": PLACES205_LISTS,
    "places365": PLACES365_LISTS,
    "places365-small": PLACES365_LISTS,
}


class Labelled(Kind):
    """Images with one label each."""

    def add(self, split: str, found: LabeledImages) -> dict[str, Any]:
        self.splits[split] = found
        counts = Counter(found.labels)
        per_class = [counts[label] for label in range(len(found.classes))]
        return {
            "images": len(found.paths),
            "classes": len(found.classes),
            "least_per_class": min(per_class, default=0),
            "median_per_class": statistics.median(per_class) if per_class else 0,
            "most_per_class": max(per_class, default=0),
            "histogram": dict(zip(found.classes, per_class, strict=True)),
        }

    def check(self) -> None:
        for split, images in self.splits.items():
            self._check_entries(images, self._listing(split))
            if self.dataset.layout in FILED:
                self._check_folders(images, self._listing(split))
        train, val = self.splits.get("train"), self.splits.get("val")
        if train:
            self._check_balance(train, self._listing("train"))
        if train and val and train.classes != val.classes:
            odd = sorted({*train.classes} ^ {*val.classes})
            where = f"only in one of them: {', '.join(odd[:5])}" if odd else "in another order"
            said = f"{len(val.classes)} classes, {len(train.classes)} in training; {where}"
            self.tell("class-lists", self._listing("val"), said)

    def images(self, split: str) -> Sequence[Place]:
        return self.splits[split].paths if split in self.splits else ()

    def _listing(self, split: str) -> Path:
        """The file (or folder) that gives the labels of a split."""
        layout = self.dataset.layout
        if layout.startswith("inat"):
            return self.home / f"{split}{layout.removeprefix('inat')}.json"
        if layout in FILED:
            return self.home / FILED[layout][split]
        return self.home / split if (self.home / split).is_dir() else self.home

    def _check_entries(self, images: LabeledImages, listing: Path) -> None:
        paths = texts(images.paths)
        if len({*paths}) == len(paths):
            return
        labels: dict[str, int] = {}
        for path, label in zip(paths, images.labels, strict=True):
            if path in labels:
                other = images.classes[labels[path]]
                what = "twice" if labels[path] == label else f"as {other!r}, too"
                self.tell("duplicate-entry", listing, f"{path} is listed {what}")
            labels[path] = label

    def _check_folders(self, images: LabeledImages, listing: Path) -> None:
        """Categories have folders of their own in Places; its flat folders say nothing."""
        known = {f"{name[:1]}/{name}": label for label, name in enumerate(images.classes)}
        depths = {name.count("/") + 1 for name in known}

        @cache
        def label_of(folder: str) -> int | None:
            parts = folder.split("/")
            found = (known.get("/".join(parts[-depth:])) for depth in depths)
            return next((label for label in found if label is not None), None)

        for path, label in zip(texts(images.paths), images.labels, strict=True):
            said = label_of(path.rpartition("/")[0])
            if said is not None and said != label:
                name, other = images.classes[label], images.classes[said]
                wrong = f"{path} has the label {label} ({name!r}), its folder is of {other!r}"
                self.tell("folder-and-label", listing, wrong)

    def _check_balance(self, images: LabeledImages, listing: Path) -> None:
        counts = Counter(images.labels)
        for label, name in enumerate(images.classes):
            if not counts[label]:
                self.tell("empty-class", listing, f"class {name!r} has no training image")
        least, most = min(counts.values(), default=0), max(counts.values(), default=0)
        if most > LONG_TAIL * least > 0:
            self.tell("long-tail", listing, f"{least} to {most} training images a class")
