"""Readers of the real formats: ImageFolder, COCO, ADE20K, iNaturalist 2018, Places365.

They read lists, not pixels, and need neither torch nor OpenCV. Each takes the folder that holds the
dataset's own top folder and a split, "train" or "val", and raises UserError when something is
missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mae_bench.errors import UserError, unknown

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}
SPLITS = ("train", "val")


class Member(NamedTuple):
    """A file inside an uncompressed tar archive."""

    archive: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def read(self) -> bytes:
        """Its content, wherever in the archive it lies."""
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class LabeledImages:
    """Images with one label each; `labels[i]` indexes `classes`."""

    paths: Sequence[Path | Member]
    labels: list[int]
    classes: list[str]


@dataclass(frozen=True)
class CocoSplit:
    """An instance file and the folder of its images; `classes` in the order of the sorted ids."""

    json: Path
    images: Path
    classes: list[str]


@dataclass(frozen=True)
class Ade20kSplit:
    """Images and maps of the same stems; map value k > 0 is `classes[k - 1]`, 0 is unlabelled."""

    images: Path
    annotations: Path
    classes: list[str]
    palette: list[tuple[int, int, int]]


def _existing(path: Path, what: str) -> Path:
    if not path.exists():
        raise UserError(
            f"{what} is missing: {path} does not exist; check --data-root, "
            "or run `mae-bench data prepare mini` for the miniature sets"
        )
    return path


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(_existing(path, what).read_text())
    except ValueError as error:
        raise UserError(f"{what} {path} is not JSON ({error}); fetch it again") from None
    needed = {"images", "annotations", "categories"}
    if not isinstance(content, dict) or not needed <= content.keys():
        raise UserError(f"{what} {path} lacks one of {', '.join(sorted(needed))}")
    return content


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)


def read_imagefolder(root: Path, split: str, top: str = "imagenet") -> LabeledImages:
    """`<top>/{train,val}/<class>/*`; a class's label is the rank of its folder's name."""
    _check_split(split)
    folder = _existing(root / top / split, f"the {split} split of {top}")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise UserError(f"class folder {folder / name} holds no image")
        paths += found
        labels += [label] * len(found)
    if not classes:
        raise UserError(f"{folder} holds no class folder; the images must lie in {split}/<class>/")
    return LabeledImages(paths, labels, classes)


def read_inat(root: Path, split: str, top: str = "inat2018") -> LabeledImages:
    """`train2018.json` / `val2018.json`; labels are ranks of category ids, never folder order."""
    _check_split(split)
    year = top.removeprefix("inat")
    path = root / top / f"{split}{year}.json"
    content = _read_json(path, "the annotation file")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    rank = {category["id"]: label for label, category in enumerate(categories)}
    files = {image["id"]: root / top / image["file_name"] for image in content["images"]}
    paths: list[Path] = []
    labels: list[int] = []
    for annotation in content["annotations"]:
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in files or category not in rank:
            raise UserError(
                f"{path}: annotation of image {image!r} with category {category!r} names one that "
                "the file does not list"
            )
        paths.append(files[image])
        labels.append(rank[category])
    return LabeledImages(paths, labels, [category["name"] for category in categories])


def read_places365(root: Path, split: str, top: str = "places365") -> LabeledImages:
    """The list files of Places365-Standard; small images (`data_256_standard`, `val_256`)."""
    _check_split(split)
    folder = root / top
    names = {
        "train": ("places365_train_standard.txt", "data_256_standard"),
        "val": ("places365_val.txt", "val_256"),
    }
    listing, images = names[split]
    categories = _read_list(folder / "categories_places365.txt")
    # "/f/field/wild" is the category field/wild, filed under its first letter.
    classes = [name[3:] for name, _ in sorted(categories, key=lambda item: item[1])]
    if [label for _, label in sorted(categories, key=lambda item: item[1])] != list(
        range(len(classes))
    ):
        raise UserError(f"{folder / 'categories_places365.txt'}: labels are not 0, 1, 2, ...")
    entries = _read_list(folder / listing)
    for name, label in entries:
        if not 0 <= label < len(classes):
            raise UserError(
                f"{folder / listing}: label {label} of {name} is not one of 0 to {len(classes) - 1}"
            )
    base = _existing(folder / images, f"the image folder of the {split} split")
    paths = [base / name.lstrip("/") for name, _ in entries]
    return LabeledImages(paths, [label for _, label in entries], classes)


def _read_list(path: Path) -> list[tuple[str, int]]:
    entries = []
    for number, line in enumerate(_existing(path, "the list file").read_text().splitlines(), 1):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdigit():
            raise UserError(f"{path}, line {number}: {line!r} is not of the form PATH LABEL")
        entries.append((name, int(label)))
    return entries


def read_coco(root: Path, split: str, top: str = "coco") -> CocoSplit:
    """`annotations/instances_{split}2017.json` and `{split}2017/`."""
    _check_split(split)
    path = root / top / "annotations" / f"instances_{split}2017.json"
    content = _read_json(path, "the annotation file")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    images = _existing(root / top / f"{split}2017", f"the image folder of the {split} split")
    return CocoSplit(path, images, [category["name"] for category in categories])


def read_ade20k(root: Path, split: str, top: str = "ADEChallengeData2016") -> Ade20kSplit:
    """`images/` and `annotations/` with `training` and `validation`; names of objectInfo150.txt."""
    _check_split(split)
    folder = {"train": "training", "val": "validation"}[split]
    info = _existing(root / top / "objectInfo150.txt", "the class list")
    rows = [line.split("\t") for line in info.read_text().splitlines()[1:] if line.strip()]
    # The official names carry synonyms ("wall;..."); the first is the customary one.
    classes = [row[-1].split(";")[0].split(",")[0].strip() for row in rows]
    return Ade20kSplit(
        images=_existing(root / top / "images" / folder, f"the image folder of the {split} split"),
        annotations=_existing(
            root / top / "annotations" / folder, f"the map folder of the {split} split"
        ),
        classes=classes,
        palette=[class_colour(k) for k in range(1, len(classes) + 1)],
    )


def class_colour(index: int) -> tuple[int, int, int]:
    """RGB of a class from the bits of its index; distinct for 1 to 255.

    Source: the colour map of the PASCAL VOC development kit (same construction).
    """
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


CLASSIFICATION_READERS: dict[str, Callable[[Path, str], LabeledImages]] = {
    "imagefolder": read_imagefolder,
    "inat": read_inat,
    "places365": read_places365,
}
