"""Readers of detection and segmentation sets: COCO and ADE20K, and users' own in these formats.

Each takes the dataset's own folder and a split, "train" or "val".
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from mae_bench.errors import UserError
from mae_bench.records import Strict
from tasks.data.formats import (
    IMAGE_SUFFIXES,
    Ade20kSplit,
    CocoSplit,
    check_split,
    class_colour,
    existing,
    first_existing,
    read_annotations,
    read_lines,
)

# What a split is called in file and folder names.
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
# Where the annotation file of a user's COCO-format set may lie; the first pattern that fits.
COCO_FILES = (
    "annotations/instances_{split}*.json",
    "annotations/{split}*.json",
    "instances_{split}*.json",
    "{split}*.json",
    "{split}/_annotations.coco.json",
)
# How many of a json's images are looked for to find their folder.
IMAGES_TRIED = 20
ADE20K_FILE = "dataset.json"
ADE20K_CLASS_LISTS = (ADE20K_FILE, "objectInfo150.txt", "classes.txt")
# Folders of images and maps: ADE20K's own, and those of mmseg's tutorials.
ADE20K_FOLDERS = (("images", "annotations"), ("img_dir", "ann_dir"))


def read_coco(home: Path, split: str) -> CocoSplit:
    """`annotations/instances_{split}2017.json` and `{split}2017/`."""
    check_split(split)
    path = home / "annotations" / f"instances_{split}2017.json"
    classes, _ = _summary(path)
    images = existing(home / f"{split}2017", f"the image folder of the {split} split")
    return CocoSplit(path, images, list(classes))


def read_coco_format(home: Path, split: str) -> CocoSplit:
    """A user's set: the json by one of `COCO_FILES`, its images where the json's names lead."""
    check_split(split)
    path = _coco_file(home, split)
    classes, names = _summary(path)
    return CocoSplit(path, _image_folder(home, path, split, names), list(classes))


def _coco_file(home: Path, split: str) -> Path:
    existing(home, "the dataset's folder")
    for pattern in COCO_FILES:
        for name in SPLIT_NAMES[split]:
            found = sorted(home.glob(pattern.format(split=name)))
            if len(found) > 1:
                raise UserError(
                    f"{home} has several annotation files for {split}: "
                    f"{', '.join(str(path.relative_to(home)) for path in found)}; leave one"
                )
            if found:
                return found[0]
    patterns = ", ".join(pattern.format(split=split) for pattern in COCO_FILES)
    raise UserError(f"{home} has no annotation file for {split}; it may be one of: {patterns}")


def _summary(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    status = existing(path, "the annotation file").stat()
    return _read_summary(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _read_summary(path: Path, *version: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names in the order of their ids, and the names of the first images.

    Kept, since a task asks several times and COCO's training file takes ten seconds to read.
    """
    content = read_annotations(path)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    names = [image["file_name"] for image in content["images"][:IMAGES_TRIED]]
    return tuple(category["name"] for category in categories), tuple(names)


def _image_folder(home: Path, path: Path, split: str, names: Sequence[str]) -> Path:
    """The folder from which the first images that a json names can be found."""
    if not names:
        raise UserError(f"{path} lists no image")
    stem = path.stem.removeprefix("instances_")
    parts = (stem, *SPLIT_NAMES[split])
    tried = [home / part for part in parts] + [home / "images" / part for part in parts]
    tried = list(dict.fromkeys([*tried, home / "images", path.parent, home]))
    for name in names:
        for folder in tried:
            if (folder / name).is_file():
                return folder
    places = ", ".join(os.path.relpath(folder, home) for folder in tried)
    raise UserError(
        f"{path} names {names[0]}, which is in none of these folders of {home}: {places}"
    )


def read_ade20k(home: Path, split: str) -> Ade20kSplit:
    """`images/` and `annotations/` with `training` and `validation`; names of objectInfo150.txt."""
    check_split(split)
    folder = {"train": "training", "val": "validation"}[split]
    classes = _object_info(existing(home / "objectInfo150.txt", "the class list"))
    return Ade20kSplit(
        images=existing(home / "images" / folder, f"the image folder of the {split} split"),
        annotations=existing(home / "annotations" / folder, f"the map folder of the {split} split"),
        classes=classes,
        palette=_palette(len(classes)),
    )


Grey = Annotated[int, Field(ge=0, le=255)]


class Ade20kFile(Strict):
    """`dataset.json` of a user's set of images and maps.

    Attributes:
        classes: their names, in the order of their values.
        reduce_zero_label: whether 0 is unlabelled and class k has the value k + 1, as in ADE20K;
            False: class k has the value k.
        ignore_value: another value that is no class.
        palette: an RGB triple for each class, for pictures.
    """

    classes: tuple[str, ...]
    reduce_zero_label: bool = True
    ignore_value: int = 255
    palette: tuple[tuple[Grey, Grey, Grey], ...] | None = None


def read_ade20k_format(home: Path, split: str) -> Ade20kSplit:
    """A user's set: `images/` and `annotations/` (or `img_dir/`, `ann_dir/`), one folder a split.

    Classes: `dataset.json` (see `Ade20kFile`), or as ADE20K's `objectInfo150.txt`, or `classes.txt`
    with a name a line.
    """
    check_split(split)
    about = _about(ade20k_class_list(home))
    images, maps = _ade20k_folders(home, split)
    return Ade20kSplit(
        images=images,
        annotations=maps,
        classes=list(about.classes),
        palette=list(about.palette or _palette(len(about.classes))),
        reduce_zero_label=about.reduce_zero_label,
        ignore_value=about.ignore_value,
        image_suffix=_suffix(images, IMAGE_SUFFIXES),
        map_suffix=_suffix(maps, {".png"}),
    )


def ade20k_class_list(home: Path) -> Path:
    """The file that names the classes of a user's set.

    Raises:
        UserError: there is none.
    """
    return first_existing(home, ADE20K_CLASS_LISTS, "the class list")


def _about(listing: Path) -> Ade20kFile:
    if listing.name != ADE20K_FILE:
        lines = [line.strip() for line in read_lines(listing, "the class list") if line.strip()]
        classes = _object_info(listing) if listing.name == "objectInfo150.txt" else lines
        about = Ade20kFile(classes=tuple(classes))
    else:
        try:
            text = "\n".join(read_lines(listing, "the class list"))
            about = Ade20kFile.model_validate_json(text)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()
            )
            raise UserError(
                f"{listing}: {wrong}; it has classes, and may have reduce_zero_label, "
                "ignore_value and palette"
            ) from None
    if not about.classes or len(about.classes) > 255:
        raise UserError(f"{listing} names {len(about.classes)} classes; 1 to 255 are possible")
    if about.palette and len(about.palette) != len(about.classes):
        raise UserError(
            f"{listing}: palette has {len(about.palette)} colours for {len(about.classes)} classes"
        )
    twice = [name for name, count in Counter(about.classes).items() if count > 1 or not name]
    if twice:
        raise UserError(f"{listing}: each class needs a name of its own; {twice[0]!r} is none")
    last = len(about.classes) - 1 + about.reduce_zero_label
    if last == about.ignore_value and "ignore_value" not in about.model_fields_set:
        raise UserError(
            f"{listing}: {last} is the value of {about.classes[-1]!r} and the one that is ignored; "
            "say another ignore_value in dataset.json, or the same if that is meant"
        )
    return about


def _ade20k_folders(home: Path, split: str) -> tuple[Path, Path]:
    tried = [
        (home / images / name, home / maps / name)
        for images, maps in ADE20K_FOLDERS
        for name in SPLIT_NAMES[split]
    ]
    for images, maps in tried:
        if images.is_dir():
            return images, existing(maps, f"the map folder of the {split} split")
    names = ", ".join(str(images.relative_to(home)) for images, _ in tried)
    raise UserError(f"{home} has no image folder of the {split} split; it may be one of: {names}")


def _suffix(folder: Path, allowed: set[str]) -> str:
    """The one suffix of a folder's files, which mmseg pairs by it."""
    found = {os.path.splitext(name)[1] for name in os.listdir(folder)}
    found = {suffix for suffix in found if suffix.lower() in allowed}
    if len(found) != 1:
        what = f"files of several suffixes ({', '.join(sorted(found))})" if found else "no file"
        raise UserError(f"{folder} holds {what}; one of {', '.join(sorted(allowed))} is needed")
    return found.pop()


def _object_info(path: Path) -> list[str]:
    """The names in ADE20K's class list, a table with the columns Idx to Name."""
    lines = read_lines(path, "the class list")[1:]
    rows = [line.split("\t") for line in lines if line.strip()]
    # The official names carry synonyms ("wall;..."); the first is the customary one.
    classes = [row[-1].split(";")[0].split(",")[0].strip() for row in rows]
    if not classes:
        raise UserError(f"{path} names no class; its first line is the heading, then one a line")
    return classes


def _palette(count: int) -> list[tuple[int, int, int]]:
    return [class_colour(k) for k in range(1, count + 1)]
