"""Readers of labelled images as their owners ship them: ImageNet, iNaturalist, Places.

Each takes the dataset's own folder and a split, "train" or "val", and returns `LabeledImages`. The
json or the list says which image has which label; folders say so only where nothing else does.
"""

from __future__ import annotations

import os
from pathlib import Path

from mae_bench.errors import UserError
from tasks.data.formats import (
    IMAGE_SUFFIXES,
    LabeledImages,
    below,
    check_split,
    existing,
    first_existing,
    read_annotations,
)

# Where the training and validation images lie once the archives are unpacked; torchvision renames
# the first folder of each size.
PLACES365_FOLDERS = {
    "large": {"train": ("data_large_standard", "data_large"), "val": ("val_large",)},
    "256": {"train": ("data_256_standard", "data_256"), "val": ("val_256",)},
}
PLACES365_CATEGORIES = "categories_places365.txt"
PLACES365_LISTS = {"train": "places365_train_standard.txt", "val": "places365_val.txt"}
PLACES205_IMAGES = "data/vision/torralba/deeplearning/images256"
PLACES205_LISTS = {
    "train": "trainvalsplit_places205/train_places205.csv",
    "val": "trainvalsplit_places205/val_places205.csv",
}


def read_imagefolder(home: Path, split: str) -> LabeledImages:
    """`{train,val}/<class>/*`; a class's label is the rank of its folder's name."""
    classes, folders = _class_folders(home, split)
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = _images(folder)
        paths += found
        labels += [label] * len(found)
    return LabeledImages(paths, labels, classes)


def _class_folders(home: Path, split: str) -> tuple[list[str], list[Path]]:
    check_split(split)
    folder = existing(home / split, f"the {split} split of {home.name}")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        raise UserError(
            f"{folder} holds no class folder; the images must lie in {split}/<class>/, sorted "
            "there by the labels that the owner of the data ships"
        )
    return classes, [folder / name for name in classes]


def _images(folder: Path) -> list[Path]:
    names = [n for n in os.listdir(folder) if os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES]
    if not names:
        raise UserError(f"class folder {folder} holds no image")
    return [folder / name for name in sorted(names)]


def read_inat(home: Path, split: str, year: int) -> LabeledImages:
    """`{train,val}<year>.json`; labels are ranks of category ids, never folder order.

    Training and validation images share one tree, which only the json separates.
    """
    check_split(split)
    path = home / f"{split}{year}.json"
    content = read_annotations(path)
    try:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        rank = {category["id"]: label for label, category in enumerate(categories)}
        files = {image["id"]: below(home, image["file_name"], path) for image in content["images"]}
        pairs = [(item["image_id"], item["category_id"]) for item in content["annotations"]]
        classes = [category["name"] for category in categories]
    except KeyError as error:
        raise UserError(f"{path}: an entry lacks {error}; fetch the file again") from None
    for image, category in pairs:
        if image not in files or category not in rank:
            raise UserError(
                f"{path}: annotation of image {image!r} with category {category!r} names one that "
                "the file does not list"
            )
    return LabeledImages([files[i] for i, _ in pairs], [rank[c] for _, c in pairs], classes)


def read_places365(home: Path, split: str, size: str = "large") -> LabeledImages:
    """The list files of Places365-Standard.

    Args:
        size: "large" or "256", of the images.
    """
    check_split(split)
    classes = [_place(name) for name in _categories(home / PLACES365_CATEGORIES)]
    names = PLACES365_FOLDERS[size][split]
    base = first_existing(home, names, f"the image folder of the {split} split")
    listing = home / PLACES365_LISTS[split]
    return _listed(listing, base, classes)


def read_places365_easyformat(home: Path, split: str) -> LabeledImages:
    """`{train,val}/<class>/*` with `field/wild` as `field-wild`; labels as in Places365's own list.

    Without that list (see `easyformat_categories`) the classes are in the order of their names,
    which is that of the published list.
    """
    found, folders = _class_folders(home, split)
    listing = easyformat_categories(home)
    names = [_place(name) for name in _categories(listing)] if listing else None
    classes = names or sorted(name.replace("-", "/") for name in found)
    rank = {name.replace("/", "-"): label for label, name in enumerate(classes)}
    paths: list[Path] = []
    labels: list[int] = []
    for name, folder in zip(found, folders, strict=True):
        if name not in rank:
            raise UserError(f"class folder {folder} is none of the classes that {listing} lists")
        images = _images(folder)
        paths += images
        labels += [rank[name]] * len(images)
    return LabeledImages(paths, labels, classes)


def easyformat_categories(home: Path) -> Path | None:
    """The list of Places365's categories, here or in the folder of `places365` beside it."""
    lists = (home / PLACES365_CATEGORIES, home.parent / "places365" / PLACES365_CATEGORIES)
    return next((path for path in lists if path.is_file()), None)


def read_places205(home: Path, split: str) -> LabeledImages:
    """`trainvalsplit_places205/{train,val}_places205.csv`, which separate by a space.

    A class is named by the folder of its images; labels are those of the list.
    """
    check_split(split)
    base = existing(home / PLACES205_IMAGES, "the image folder")
    training = home / PLACES205_LISTS["train"]
    names: dict[int, str] = {}
    for name, label in read_list(training):
        names.setdefault(label, name.rpartition("/")[0])
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{training}: labels are not 0, 1, 2, ...")
    classes = [_place(f"/{names[label]}") for label in range(len(names))]
    return _listed(home / PLACES205_LISTS[split], base, classes)


def _place(name: str) -> str:
    """ "/f/field/wild" is the category field/wild, filed under its first letter."""
    return name[3:] if name[2:3] == "/" else name.lstrip("/")


def _categories(path: Path) -> list[str]:
    """Category names in the order of their labels."""
    ordered = sorted(read_list(path), key=lambda item: item[1])
    if [label for _, label in ordered] != list(range(len(ordered))):
        raise UserError(f"{path}: labels are not 0, 1, 2, ...")
    return [name for name, _ in ordered]


def _listed(listing: Path, base: Path, classes: list[str]) -> LabeledImages:
    entries = read_list(listing)
    for name, label in entries:
        if label >= len(classes):
            raise UserError(
                f"{listing}: label {label} of {name} is not one of 0 to {len(classes) - 1}"
            )
    # The training list of Places365 names categories from the root: "/a/airfield/00000001.jpg 0".
    paths = [below(base, name.removeprefix("/"), listing) for name, _ in entries]
    return LabeledImages(paths, [label for _, label in entries], classes)


def read_list(path: Path) -> list[tuple[str, int]]:
    """Lines of the form PATH LABEL.

    Raises:
        UserError: missing, empty, or a line of another form.
    """
    entries = []
    for number, line in enumerate(existing(path, "the list file").read_text().splitlines(), 1):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdecimal():
            raise UserError(f"{path}, line {number}: {line!r} is not of the form PATH LABEL")
        entries.append((name, int(label)))
    if not entries:
        raise UserError(f"{path} is empty; it needs lines of the form PATH LABEL")
    return entries
