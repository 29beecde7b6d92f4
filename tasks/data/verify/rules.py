"""What holds in a good dataset: every rule by name. Who finds it broken tells rule, file and value.

Readers tell the rules that they cannot go on without; the checks of this package tell the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

EVERY = ("labelled", "coco", "ade20k")


class Rule(NamedTuple):
    """One rule.

    Attributes:
        says: what holds.
        kinds: of datasets that it is about.
        reads: "lists", "files" (whether each is there) or "images" (their content).
        is_note: worth knowing, and no fault.
        owners_may: a complete published dataset may break it, as its owner ships it.
    """

    says: str
    kinds: tuple[str, ...] = EVERY
    reads: str = "lists"
    is_note: bool = False
    owners_may: bool = False


LABELLED, COCO, ADE20K = ("labelled",), ("coco",), ("ade20k",)
RULES: dict[str, Rule] = {
    # What explains other faults comes first.
    "layout": Rule("Every file and folder of the layout is there and can be read."),
    "flat-folder": Rule("Images lie in a folder for each class.", LABELLED),
    "split-missing": Rule("Own folders with `train/` have `val/`, too.", LABELLED),
    "count": Rule("A published dataset has the published number of images."),
    "class-count": Rule("A published dataset has the published number of classes."),
    "class-lists": Rule("Training and validation name the same classes, in the same order."),
    "empty-split": Rule("Both splits hold images."),
    "shared-file": Rule("No file is in both splits."),
    "missing-image": Rule("Every image that is listed is there.", reads="files"),
    "unreadable-image": Rule("Every image can be read, to its end.", reads="images"),
    "overlap": Rule(
        "No training image has the content of a validation image.", reads="images", owners_may=True
    ),
    # Labelled images.
    "list-line": Rule("Every line of a list is of the form PATH LABEL.", LABELLED),
    "label-range": Rule("Every label is one of the class list, which counts from 0.", LABELLED),
    "outside-root": Rule("A list names nothing outside of the dataset's folder."),
    "empty-class": Rule("Every class has images to train on.", LABELLED),
    "no-label": Rule("Every image that is listed has a label.", LABELLED, owners_may=True),
    "duplicate-entry": Rule("No image is listed twice.", LABELLED),
    "folder-and-label": Rule("Images of a category's folder have its label.", LABELLED),
    "long-tail": Rule("Every class has about as many training images.", LABELLED, is_note=True),
    # COCO's json, partly that of iNaturalist, too.
    "unknown-image": Rule("Annotations are of images that are listed.", ("labelled", "coco")),
    "unknown-category": Rule("Annotations are of categories that are listed.", COCO),
    "category-ids": Rule("The category ids are those of COCO, 1 to 90 with ten gaps.", COCO),
    "id-gaps": Rule("Category ids have no gaps; they are mapped to 0, 1, ...", COCO, is_note=True),
    "duplicate-id": Rule(
        "No two images, annotations or categories have the same id.", ("labelled", "coco")
    ),
    "no-id": Rule("Every annotation has an id of its own.", COCO),
    "duplicate-image": Rule("No file is listed as two images.", COCO),
    "no-annotations": Rule("Both splits have annotations of single objects.", COCO),
    "box-form": Rule("A box is four finite numbers: x, y, width, height.", COCO),
    "box-empty": Rule("A box has a width and a height above 0.", COCO, owners_may=True),
    "box-outside": Rule("A box lies inside its image, to a pixel.", COCO),
    "no-segmentation": Rule("An object has a mask.", COCO),
    "polygon": Rule("A polygon has three corners or more, as pairs of finite numbers.", COCO),
    "polygon-outside": Rule(
        "A polygon reaches no further out of its image than the image is large.", COCO
    ),
    "area": Rule("`area`, where it is given, is a finite number, not below 0.", COCO),
    "rle": Rule("A run-length mask has the size of its image, and its runs fill it.", COCO),
    "mixed-segmentation": Rule("A mask is a list of polygons or one run-length code.", COCO),
    "two-formats": Rule(
        "Single objects have masks of one format (both are read).", COCO, is_note=True
    ),
    "crowd-flag": Rule("`iscrowd` is 0 or 1.", COCO),
    "ignore-flag": Rule("No annotation has `ignore`: crowds are marked by `iscrowd`.", COCO),
    "crowd-polygon": Rule("Crowds are run-length masks.", COCO, is_note=True),
    "no-size": Rule("The json gives width and height of every image.", COCO),
    "image-size": Rule("An image has the size that the json says.", COCO, "images"),
    "image-depth": Rule("An image has 8 bits a channel.", COCO, "images"),
    # ADE20K's maps.
    "pairs": Rule("Every image has a map, and every map an image.", ADE20K),
    "map-format": Rule("A map has one channel.", ADE20K, "images"),
    "map-encoding": Rule(
        "A map is grey, of 8 bits; else its indices or 16-bit values are taken.",
        ADE20K,
        "images",
        is_note=True,
    ),
    "map-size": Rule("A map has the size of its image.", ADE20K, "images"),
    "map-values": Rule("A map holds only values of the class list.", ADE20K, "images"),
    "zero-label": Rule(
        "Maps are as published: shifted by the reader, once, and not before.", ADE20K, "images"
    ),
    "unused-class": Rule(
        "Every class occurs in the training maps.", ADE20K, "images", is_note=True
    ),
}


@dataclass(frozen=True)
class Finding:
    """A rule that does not hold.

    Attributes:
        level: "fault" or "note".
        file: where.
        value: what is there instead.
    """

    rule: str
    level: str
    file: str
    value: str


@dataclass
class Findings:
    """What is found, each once. Call it as readers and checks do.

    Attributes:
        complete: a published dataset with all its images, which is as its owner ships it.
    """

    complete: bool = False
    _found: dict[tuple[str, str, str], None] = field(default_factory=dict)

    def __call__(self, rule: str, file: Path | str, value: str) -> None:
        """Note one; `rule` is a key of `RULES`."""
        assert rule in RULES, rule
        self._found[rule, str(file), value] = None

    def read(self) -> list[Finding]:
        """All of them: by rule in the order of `RULES`, within a rule as found."""
        order = {rule: number for number, rule in enumerate(RULES)}
        return [
            Finding(rule, self._level(rule), file, value)
            for rule, file, value in sorted(self._found, key=lambda found: order[found[0]])
        ]

    def _level(self, rule: str) -> str:
        known = RULES[rule]
        return "note" if known.is_note or (known.owners_may and self.complete) else "fault"
