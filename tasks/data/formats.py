"""What a split of a dataset is, and what all readers share. Neither torch nor OpenCV is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mae_bench.errors import UserError, unknown

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}
SPLITS = ("train", "val")
# What entries of a json of the COCO family cannot do without.
ANNOTATION_KEYS = {
    "annotations": {"image_id", "category_id"},
    "categories": {"id", "name"},
    "images": {"id", "file_name"},
}


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
    """Images and maps of the same stems.

    Attributes:
        classes: what map values mean. With `reduce_zero_label` value k > 0 is `classes[k - 1]` and
            0 is unlabelled (the reader of the maps shifts them, once); without it value k is
            `classes[k]`.
        palette: RGB of each class.
        ignore_value: value in the files that is no class either; never scored.
        image_suffix, map_suffix: of all files in the two folders, as ".jpg".
    """

    images: Path
    annotations: Path
    classes: list[str]
    palette: list[tuple[int, int, int]]
    reduce_zero_label: bool = True
    ignore_value: int = 255
    image_suffix: str = ".jpg"
    map_suffix: str = ".png"


# Told by a reader when a dataset breaks a rule of `verify.RULES`: rule, file, what is wrong. The
# reader goes on behind a fault, so that all are told; what has no right label is left out.
Tell = Callable[[str, Path, str], None]


def refuse(rule: str, file: Path, wrong: str) -> None:
    """Stop at the first fault: a dataset with one is not used.

    Raises:
        UserError: always.
    """
    raise UserError(f"{file}: {wrong}; `mae-bench data verify` lists everything that is wrong")


def check_split(split: str) -> None:
    """Refuse any split but "train" and "val".

    Raises:
        UserError: another one.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)


def existing(path: Path, what: str) -> Path:
    """Return the path if something is there.

    Raises:
        UserError: nothing is.
    """
    if not path.exists():
        raise UserError(
            f"{what} is missing: {path} does not exist; check --data-root, "
            "or run `mae-bench data prepare mini` for the miniature sets"
        )
    return path


def first_existing(folder: Path, names: Iterable[str], what: str) -> Path:
    """Return the first of these that is in the folder.

    Raises:
        UserError: none is.
    """
    names = list(names)
    for name in names:
        if (folder / name).exists():
            return folder / name
    tried = f" (nor {', '.join(names[1:])} there)" if names[1:] else ""
    raise UserError(
        f"{what} is missing: {folder / names[0]} does not exist{tried}; check --data-root, "
        "or run `mae-bench data prepare mini` for the miniature sets"
    )


def read_annotations(path: Path) -> dict[str, Any]:
    """Read a json of the COCO family: images, annotations, categories.

    Raises:
        UserError: missing, not JSON, or lacks a list, the categories, or a needed key.
    """
    what = "the annotation file"
    try:
        content = json.loads(existing(path, what).read_bytes())
    except ValueError as error:
        raise UserError(f"{what} {path} is not JSON ({error}); fetch it again") from None
    found = content if isinstance(content, dict) else {}
    for name, keys in ANNOTATION_KEYS.items():
        if not isinstance(found.get(name), list):
            raise UserError(f"{what} {path} lacks one of {', '.join(ANNOTATION_KEYS)}")
        for number, entry in enumerate(found[name]):
            if not isinstance(entry, dict) or not keys <= entry.keys():
                raise UserError(
                    f"{what} {path}: entry {number} of {name} lacks one of "
                    f"{', '.join(sorted(keys))}"
                )
    if not content["categories"]:
        raise UserError(f"{what} {path} has no categories; it needs the list of classes")
    return content


def leads_outside(name: str) -> bool:
    """Whether a name in a list is absolute, or climbs out of the list's image folder by "..".

    Links inside it may lead anywhere: who made them wanted so.
    """
    return name.startswith("/") or (".." in name and os.path.normpath(name).startswith(".."))


def class_colour(index: int) -> tuple[int, int, int]:
    """RGB of a class from the bits of its index; distinct for 1 to 255.

    Source: the colour map of the PASCAL VOC development kit (same construction).
    """
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]
