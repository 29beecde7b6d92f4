"""What a split of a dataset is, and what all readers share. Neither torch nor OpenCV is needed."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, overload

from mae_bench.errors import UserError, unknown

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}
SPLITS = ("train", "val")
# What entries of a json of the COCO family cannot do without, and of what type.
ANNOTATION_KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "annotations": {"image_id": (int, str), "category_id": int},
    "categories": {"id": int, "name": str},
    "images": {"id": (int, str), "file_name": str},
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


class Files(Sequence[Path]):
    """Many files below one folder, in a tenth of the memory of as many `Path` objects.

    A million of those are half a gigabyte, and as much again in each worker of a loader that
    touches them.
    """

    def __init__(self, base: Path, names: Iterable[str]):
        """Take the names relative to the folder."""
        encoded = [os.fsencode(name) for name in names]
        self._base = base
        self._names = b"".join(encoded)
        self._ends = array("Q", accumulate(map(len, encoded)))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...

    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        end = self._ends[index]
        at = range(len(self))[index]
        start = self._ends[at - 1] if at else 0
        return self._base / os.fsdecode(self._names[start:end])

    def texts(self) -> Iterator[str]:
        """All paths as text, ten times as fast as by `Path` objects."""
        start = 0
        for end in self._ends:
            yield f"{self._base}/{os.fsdecode(self._names[start:end])}"
            start = end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


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


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a text file, without their ends; a byte order mark is left out.

    Raises:
        UserError: missing, or not in UTF-8.
    """
    try:
        with existing(path, what).open(encoding="utf-8-sig") as file:
            return [line.removesuffix("\n") for line in file]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{what} {path} is no text in UTF-8 ({error.reason} at byte {error.start}); convert it"
        ) from None


def read_annotations(path: Path) -> dict[str, Any]:
    """Read a json of the COCO family: images, annotations, categories.

    Raises:
        UserError: missing, not JSON, or lacks a list, the categories, or a needed key.
    """
    what = "the annotation file"
    try:
        content = json.loads(existing(path, what).read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} {path} is not JSON ({error}); fetch it again") from None
    found = content if isinstance(content, dict) else {}
    if any(not isinstance(found.get(name), list) for name in ANNOTATION_KEYS):
        raise UserError(f"{what} {path} lacks one of {', '.join(ANNOTATION_KEYS)}")
    for name, keys in ANNOTATION_KEYS.items():
        for number, entry in enumerate(found[name]):
            for key, kind in keys.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                    said = entry.get(key) if isinstance(entry, dict) else entry
                    raise UserError(
                        f"{what} {path}: {key} of entry {number} of {name} is {said!r}; it must be "
                        f"{'a text' if kind is str else 'a whole number'}"
                    )
    try:
        os.fsencode("".join(image["file_name"] for image in content["images"]))
    except UnicodeEncodeError as error:
        odd = error.object[error.start : error.end]
        raise UserError(
            f"{what} {path} names a file with {odd!r}, which no name can hold"
        ) from None
    if not content["categories"]:
        raise UserError(f"{what} {path} has no categories; it needs the list of classes")
    return content


def in_unicode(place: Path | Member) -> str:
    """A file's path for messages and records; bytes of it that are no UTF-8 are written out."""
    return os.fsencode(str(place)).decode(errors="backslashreplace")


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
