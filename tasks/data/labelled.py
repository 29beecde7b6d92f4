"""Readers of labelled images as their owners ship them: ImageNet, iNaturalist, Places.

Each takes the dataset's own folder and a split, "train" or "val", and returns `LabeledImages`. The
json or the list says which image has which label; folders say so only where nothing else does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tasks.data.formats import (
    IMAGE_SUFFIXES,
    Files,
    LabeledImages,
    Tell,
    check_split,
    existing,
    first_existing,
    leads_outside,
    read_annotations,
    read_lines,
    refuse,
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


def read_imagefolder(home: Path, split: str, tell: Tell = refuse) -> LabeledImages:
    """`{train,val}/<class>/*`; a class's label is the rank of its folder among those of train."""
    check_split(split)
    classes = _class_folders(home, "train", tell)
    return _read_folders(home, split, classes, {name: name for name in classes}, tell)


def read_places365_easyformat(home: Path, split: str, tell: Tell = refuse) -> LabeledImages:
    """`{train,val}/<class>/*` with `field/wild` as `field-wild`; labels as in Places365's own list.

    Without that list (see `easyformat_categories`) the classes are in the order of their names,
    which is that of the published list.
    """
    check_split(split)
    listing = easyformat_categories(home)
    found = _class_folders(home, "train", tell)
    names = sorted(name.replace("-", "/") for name in found)
    classes = _categories(listing, tell) if listing else names
    return _read_folders(
        home, split, classes, {name.replace("/", "-"): name for name in classes}, tell
    )


def easyformat_categories(home: Path) -> Path | None:
    """The list of Places365's categories, here or in the folder of `places365` beside it."""
    lists = (home / PLACES365_CATEGORIES, home.parent / "places365" / PLACES365_CATEGORIES)
    return next((path for path in lists if path.is_file()), None)


def _class_folders(home: Path, split: str, tell: Tell) -> list[str]:
    folder = existing(home / split, f"the {split} split of {home.name}")
    folders = (entry for entry in folder.iterdir() if entry.is_dir())
    classes = sorted(entry.name for entry in folders if not entry.name.startswith("."))
    if not classes:
        tell(
            "flat-folder",
            folder,
            f"holds no class folder; the images must lie in {split}/<class>/, sorted there by the "
            "labels that the owner of the data ships",
        )
    return classes


def _read_folders(
    home: Path, split: str, classes: list[str], class_of: Mapping[str, str], tell: Tell
) -> LabeledImages:
    """Images of the class folders of a split.

    Args:
        class_of: name of a folder -> its class.
    """
    found = _class_folders(home, split, tell)
    for name in sorted({*found} - {*class_of}):
        tell("class-lists", home / split / name, "is the folder of no known class")
    for name in sorted({*class_of} - {*found}) if found else ():  # else it is told already
        tell("empty-class", home / split / name, f"class {name!r} has no folder")
    rank = {name: label for label, name in enumerate(classes)}
    names: list[str] = []
    labels: list[int] = []
    for folder in found:
        if folder not in class_of:
            continue
        images = _images(home / split / folder)
        if not images:
            tell("empty-class", home / split / folder, "class folder holds no image")
        names += [f"{folder}/{name}" for name in images]
        labels += [rank[class_of[folder]]] * len(images)
    return LabeledImages(Files(home / split, names), labels, classes)


def _images(folder: Path) -> list[str]:
    found = (name for name in os.listdir(folder) if not name.startswith("."))
    return sorted(name for name in found if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)


def read_inat(home: Path, split: str, tell: Tell = refuse, *, year: int) -> LabeledImages:
    """`{train,val}<year>.json`; labels are ranks of category ids, never folder order.

    Training and validation images share one tree, which only the json separates.
    """
    check_split(split)
    path = home / f"{split}{year}.json"
    content = read_annotations(path)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    rank = {category["id"]: label for label, category in enumerate(categories)}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    if len(files) < len(content["images"]) or len(rank) < len(categories):
        tell("duplicate-id", path, "several images, or several categories, have the same id")
    names: list[str] = []
    labels: list[int] = []
    for annotation in content["annotations"]:
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in files:
            tell("unknown-image", path, f"an annotation is of image {image!r}, which is not listed")
        elif category not in rank:
            tell("label-range", path, f"image {image!r} has category {category!r}, not listed")
        elif leads_outside(files[image]):
            tell("outside-root", path, f"names {files[image]!r}, outside of {home}")
        else:
            names.append(files[image])
            labels.append(rank[category])
    annotated = {annotation["image_id"] for annotation in content["annotations"]}
    for image in (image for image in files if image not in annotated):
        tell("no-label", path, f"image {image!r}, {files[image]!r}, has no annotation")
    return LabeledImages(Files(home, names), labels, [c["name"] for c in categories])


def read_places365(
    home: Path, split: str, tell: Tell = refuse, *, size: str = "large"
) -> LabeledImages:
    """The list files of Places365-Standard.

    Args:
        size: "large" or "256", of the images.
    """
    check_split(split)
    names = PLACES365_FOLDERS[size][split]
    base = first_existing(home, names, f"the image folder of the {split} split")
    classes = _categories(home / PLACES365_CATEGORIES, tell)
    listing = home / PLACES365_LISTS[split]
    # The training list names categories from the root, as in "/a/airfield/00000001.jpg 0".
    entries = [(name.removeprefix("/"), label) for name, label in read_list(listing, tell)]
    return _labelled(entries, listing, base, classes, tell)


def read_places205(home: Path, split: str, tell: Tell = refuse) -> LabeledImages:
    """`trainvalsplit_places205/{train,val}_places205.csv`, which separate by a space.

    A class is named by the folder of its images; labels are those of the list.
    """
    check_split(split)
    base = existing(home / PLACES205_IMAGES, "the image folder")
    training = home / PLACES205_LISTS["train"]
    names: dict[int, str] = {}
    for name, label in read_list(training, tell):
        names.setdefault(label, name.rpartition("/")[0])
    classes = _in_order({place(f"/{name}"): label for label, name in names.items()}, training, tell)
    listing = home / PLACES205_LISTS[split]
    return _labelled(read_list(listing, tell), listing, base, classes, tell)


def place(name: str) -> str:
    """Category of a folder: "/f/field/wild" is field/wild, filed under its first letter."""
    return name[3:] if name[2:3] == "/" else name.lstrip("/")


def _categories(path: Path, tell: Tell) -> list[str]:
    """Category names in the order of their labels."""
    return _in_order({place(name): label for name, label in read_list(path, tell)}, path, tell)


def _in_order(labels: Mapping[str, int], path: Path, tell: Tell) -> list[str]:
    if sorted(labels.values()) != list(range(len(labels))):
        tell("label-range", path, "labels of the classes are not 0, 1, 2, ...")
    return sorted(labels, key=lambda name: labels[name])


def _labelled(
    entries: list[tuple[str, int]], listing: Path, base: Path, classes: list[str], tell: Tell
) -> LabeledImages:
    names: list[str] = []
    labels: list[int] = []
    for name, label in entries:
        if label >= len(classes):
            tell(
                "label-range",
                listing,
                f"label {label} of {name} is not one of 0 to {len(classes) - 1}",
            )
        elif leads_outside(name):
            tell("outside-root", listing, f"names {name!r}, outside of {base}")
        else:
            names.append(name)
            labels.append(label)
    return LabeledImages(Files(base, names), labels, classes)


def read_list(path: Path, tell: Tell = refuse) -> list[tuple[str, int]]:
    """Lines of the form PATH LABEL."""
    entries = []
    for number, line in enumerate(read_lines(path, "the list file"), 1):
        name, _, label = line.rpartition(" ")
        if name and label.isdecimal():
            entries.append((name, int(label)))
        else:
            tell("list-line", path, f"line {number}, {line!r}, is not of the form PATH LABEL")
    return entries
