"""Checks of a json in COCO's format: ids, boxes, masks, crowds.

Source: the format as cocodataset.org and pycocotools describe it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.data.formats import CocoSplit, Tell, leads_outside, read_annotations
from tasks.data.verify.kinds import Kind, Place
from tasks.data.verify.scan import Scan

# 80 of 90 ids are in use.
COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = set(range(1, 91)) - COCO_GAPS
# How far a box may stick out of its image, for rounding, in pixels.
TOLERANCE_PX = 1.0
Size = tuple[int, int]
# Of one annotation: a rule, and what is wrong with it.
Found = Callable[[str, str], None]


class Annotations:
    """A split's json, read once.

    Attributes:
        images: id -> entry.
        sizes: id -> (width, height), where the json gives it.
        names: category id -> name, sorted by id.
    """

    def __init__(self, split: CocoSplit):
        self.split, self.path = split, split.json
        self.content = read_annotations(split.json)
        self.images = {image["id"]: image for image in self.content["images"]}
        self.sizes = {
            number: (image["width"], image["height"])
            for number, image in self.images.items()
            if _is_side(image.get("width")) and _is_side(image.get("height"))
        }
        self._size_of = {
            str(split.images / self.images[number]["file_name"]): size
            for number, size in self.sizes.items()
        }
        categories = sorted((item["id"], item["name"]) for item in self.content["categories"])
        self.names = dict(categories)

    def files(self) -> list[Path]:
        """Image files inside the image folder, in the order of the json."""
        names = [image["file_name"] for image in self.content["images"]]
        return [self.split.images / name for name in names if not leads_outside(name)]

    def size_of(self, place: Place) -> Size | None:
        """Width and height that the json gives of an image file."""
        return self._size_of.get(str(place))


class Coco(Kind):
    """A json and images of each split."""

    def add(self, split: str, found: CocoSplit) -> dict[str, Any]:
        annotations = self.splits[split] = Annotations(found)
        items = annotations.content["annotations"]
        masks = Counter(type(item.get("segmentation")) for item in items)
        per_category = Counter(item["category_id"] for item in items)
        return {
            "images": len(annotations.images),
            "classes": len(annotations.names),
            "annotations": len(items),
            "crowds": sum(item.get("iscrowd") == 1 for item in items),
            "polygons": masks[list],
            "run_lengths": masks[dict],
            "images_without_annotations": len(
                annotations.images.keys() - {item["image_id"] for item in items}
            ),
            "histogram": {name: per_category[k] for k, name in annotations.names.items()},
        }

    def check(self) -> None:
        for read in self.splits.values():
            _check_ids(read, self.dataset.counts is not None, self.tell)
            _check_files(read, self.tell)
            for item in read.content["annotations"]:
                _check_annotation(item, read, self.tell)
            _check_formats(read, self.tell)
        names = [{*read.names.items()} for read in self.splits.values()]
        if len(names) == 2 and names[0] != names[1]:
            odd = ", ".join(f"{number} {name}" for number, name in sorted(names[0] ^ names[1])[:5])
            said = f"categories differ from those of training: {odd}"
            self.tell("class-lists", self.splits["val"].path, said)

    def images(self, split: str) -> Sequence[Place]:
        return self.splits[split].files() if split in self.splits else ()

    def saw_image(self, split: str, place: Place, scan: Scan) -> None:
        said = self.splits[split].size_of(place)
        if said and scan.size and said != scan.size:
            size, other = (f"{width} x {height}" for width, height in (scan.size, said))
            name = self.splits[split].path.name
            self.tell("image-size", str(place), f"is {size} pixels, {name} says {other}")
        if scan.mode.startswith("I") or scan.mode == "F":
            said = f"has pixels of mode {scan.mode}, which detectron2 clips at 255; store 8 bits"
            self.tell("image-depth", str(place), said)


def _check_ids(annotations: Annotations, is_published: bool, tell: Tell) -> None:
    for name in ("categories", "images", "annotations"):
        entries = annotations.content[name]
        ids = (entry["id"] for entry in entries if _is_id(entry.get("id")))
        for number, times in Counter(ids).items():
            if times > 1:
                tell("duplicate-id", annotations.path, f"{times} {name} have the id {number}")
    ids = [*annotations.names]
    if is_published:
        for number in sorted({*ids} - COCO_IDS):
            tell("category-ids", annotations.path, f"{number} is no category id of COCO")
    elif ids[-1] - ids[0] + 1 > len(ids):
        said = f"{len(ids)} categories with ids from {ids[0]} to {ids[-1]}"
        tell("id-gaps", annotations.path, f"{said}, mapped to 0 to {len(ids) - 1}")


def _check_files(annotations: Annotations, tell: Tell) -> None:
    entries = annotations.content["images"]
    for name, times in Counter(entry["file_name"] for entry in entries).items():
        if times > 1:
            tell("duplicate-image", annotations.path, f"{name} is listed {times} times")
        if leads_outside(name):
            where = annotations.split.images
            tell("outside-root", annotations.path, f"names {name!r}, outside of {where}")
    for entry in entries:
        if not all(_is_side(entry.get(side)) for side in ("width", "height")):
            said = f"{entry.get('width')!r} x {entry.get('height')!r}"
            tell("no-size", annotations.path, f"image {entry['id']!r} has the size {said}")
    if not any(item.get("iscrowd", 0) == 0 for item in annotations.content["annotations"]):
        tell("no-annotations", annotations.path, "holds no annotation of a single object")


def _check_annotation(item: Mapping[str, Any], annotations: Annotations, tell: Tell) -> None:
    image, category = item["image_id"], item["category_id"]
    said = f"annotation {item.get('id')!r} of image {image!r}"

    def found(rule: str, wrong: str) -> None:
        tell(rule, annotations.path, f"{said} {wrong}")

    if image not in annotations.images:
        found("unknown-image", "is of an image that is not listed")
    if category not in annotations.names:
        found("unknown-category", f"is of category {category!r}, which is not listed")
    if not _is_id(item.get("id")):
        found("no-id", "has no id, a whole number or a text")
    if item.get("ignore"):
        found("ignore-flag", f"has ignore {item['ignore']!r}")
    if item.get("iscrowd", 0) not in (0, 1):
        found("crowd-flag", f"has iscrowd {item['iscrowd']!r}")
    area = item.get("area", 0)
    if not _finite([area]) or area < 0:
        found("area", f"has the area {area!r}")
    size = annotations.sizes.get(image)
    _check_box(item.get("bbox"), size, found)
    _check_mask(item, size, found)


def _check_box(box: Any, size: Size | None, found: Found) -> None:
    if not isinstance(box, list) or len(box) != 4 or not _finite(box):
        found("box-form", f"has the box {box!r}")
        return
    x, y, width, height = box
    if width <= 0 or height <= 0:
        found("box-empty", f"has the box {box}, whose width and height must be above 0")
    elif size and not (
        x >= -TOLERANCE_PX
        and y >= -TOLERANCE_PX
        and x + width <= size[0] + TOLERANCE_PX
        and y + height <= size[1] + TOLERANCE_PX
    ):
        found("box-outside", f"has the box {box}, its image is {size[0]} x {size[1]} pixels")


def _check_mask(item: Mapping[str, Any], size: Size | None, found: Found) -> None:
    mask = item.get("segmentation")
    if not mask:
        found("no-segmentation", "has no mask")
    elif isinstance(mask, dict):
        _check_rle(mask, size, found)
    elif not isinstance(mask, list) or any(isinstance(part, dict) for part in mask):
        found("mixed-segmentation", "has a mask that is neither polygons nor one run-length code")
    else:
        for part in mask:
            _check_polygon(part, size, found)
        if item.get("iscrowd") == 1:
            found("crowd-polygon", "is a crowd of polygons")


def _check_polygon(part: Any, size: Size | None, found: Found) -> None:
    if not isinstance(part, list) or not _finite(part):
        found("polygon", "has a polygon that is no list of finite numbers")
    elif len(part) < 6 or len(part) % 2:
        found("polygon", f"has a polygon of {len(part)} numbers; 6, 8, 10, ... are possible")
    elif size:
        # pycocotools walks along each edge, pixel by pixel, and crashes on very long ones.
        for axis, length in enumerate(size):
            first, last = min(part[axis::2]), max(part[axis::2])
            if first < -length or last > 2 * length:
                said = f"a polygon from {'xy'[axis]} = {first:g} to {last:g}"
                found("polygon-outside", f"has {said}, its image is {size[0]} x {size[1]} pixels")


def _check_rle(mask: Mapping[str, Any], size: Size | None, found: Found) -> None:
    shape, counts = mask.get("size"), mask.get("counts")
    if not isinstance(shape, list) or len(shape) != 2 or not _finite(shape):
        found("rle", f"has a run-length mask of size {shape!r}; [height, width] is needed")
        return
    if size and tuple(shape) != size[::-1]:
        found("rle", f"has a mask of {shape[1]} x {shape[0]}, its image is {size[0]} x {size[1]}")
    try:
        runs = runs_of(counts) if isinstance(counts, str) else list(counts)
        good = all(run >= 0 for run in runs) and sum(runs) == shape[0] * shape[1]
    except (TypeError, IndexError):
        good = False
    if not good:
        found("rle", f"has runs that do not fill its {shape[0]} x {shape[1]} pixels")


def runs_of(counts: str) -> list[int]:
    """Runs of a compressed run-length code.

    A number is a sequence of characters, 5 bits each from the lowest on, with a bit that says
    whether another follows; from the fourth on it is the difference to the last but one.

    Raises:
        IndexError: cut off inside a number.

    Source: the format of pycocotools (maskApi.c).
    """
    runs: list[int] = []
    at = 0
    while at < len(counts):
        number, shift, more = 0, 0, True
        while more:
            bits = ord(counts[at]) - 48
            number |= (bits & 31) << shift
            at, shift, more = at + 1, shift + 5, bool(bits & 32)
            if not more and bits & 16:
                number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
    return runs


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and 0 < value < 2**31


def _finite(numbers: Iterable[Any]) -> bool:
    # Whole numbers of a json have no largest one, and not all of them fit into a float.
    return all(isinstance(n, int | float) and abs(n) <= sys.float_info.max for n in numbers)


def _check_formats(annotations: Annotations, tell: Tell) -> None:
    single = [item for item in annotations.content["annotations"] if item.get("iscrowd", 0) == 0]
    kinds = Counter(type(item.get("segmentation")) for item in single)
    if kinds[list] and kinds[dict]:
        said = f"{kinds[list]} single objects have polygons, {kinds[dict]} run-length masks"
        tell("two-formats", annotations.path, said)
