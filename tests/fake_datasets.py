"""Tiny trees in the layout of every dataset, without a fault; `verify` tests plant theirs in them.

Every image is a different picture, so that no two files of a tree have the same content.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORY_IDS = (2, 3, 7)
PLACES = ("/a/airfield", "/f/field/road", "/f/field/wild")
SPECIES = ("Papilio", "Carabus", "Salix")
WIDTH, HEIGHT = 24, 16


def picture(path: Path, seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """Write noise of its own; the suffix says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def folder_tree(home: Path, classes: tuple[str, ...] = ("n01", "n02", "n03")) -> Path:
    """`{train,val}/<class>/`: three training images a class, one validation image."""
    for label, name in enumerate(classes):
        for k in range(4):
            split = "val" if k == 3 else "train"
            picture(home / split / name / f"{name}_{k}.JPEG", 10 * label + k)
    return home


def inat(home: Path, year: int, images: str) -> Path:
    """The json of each split; training and validation images in one tree."""
    categories = [{"id": k, "name": name} for k, name in enumerate(SPECIES)]
    for split, number in (("train", 2), ("val", 1)):
        listed, labels = [], []
        for category in categories:
            folder = category["name"] if year == 2017 else category["id"]
            for k in range(number):
                image_id = len(listed) + 1000 * (split == "val")
                name = f"{images}/Insecta/{folder}/{split}{k}.jpg"
                picture(home / name, image_id)
                listed.append({"id": image_id, "file_name": name})
                label = {"id": image_id, "image_id": image_id, "category_id": category["id"]}
                labels.append(label)
        content = {"images": listed, "annotations": labels, "categories": categories}
        (home / f"{split}{year}.json").write_text(json.dumps(content))
    return home


def places365(home: Path, size: str) -> Path:
    """Lists and images of Places365-Standard."""
    train, val = f"data_{size}_standard", f"val_{size}"
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for label, place in enumerate(PLACES):
        for k in range(2):
            picture(home / f"{train}{place}/{k:08}.jpg", 10 * label + k)
            lines["train"].append(f"{place}/{k:08}.jpg {label}")
        name = f"Places365_val_{label:08}.jpg"
        picture(home / val / name, 10 * label + 5)
        lines["val"].append(f"{name} {label}")
    (home / "places365_train_standard.txt").write_text("\n".join(lines["train"]) + "\n")
    (home / "places365_val.txt").write_text("\n".join(lines["val"]) + "\n")
    categories = [f"{place} {label}" for label, place in enumerate(PLACES)]
    (home / "categories_places365.txt").write_text("\n".join(categories) + "\n")
    return home


def places205(home: Path) -> Path:
    """Lists and images of Places205."""
    images = home / "data/vision/torralba/deeplearning/images256"
    for split, number in (("train", 2), ("val", 1)):
        lines = []
        for label, place in enumerate(PLACES):
            for k in range(number):
                name = f"{place[1:]}/{split}{k}.jpg"
                picture(images / name, 100 * label + 10 * k + (split == "val"))
                lines.append(f"{name} {label}")
        path = home / "trainvalsplit_places205" / f"{split}_places205.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return home


def coco_json(path: Path, images: Path, first_id: int, number: int = 2) -> None:
    """An instance file with a polygon, and a crowd as RLE, in each of its images."""
    listed, labels = [], []
    for k in range(number):
        image_id = first_id + k
        picture(images / f"{image_id:012}.jpg", image_id)
        size = {"width": WIDTH, "height": HEIGHT}
        listed.append({"id": image_id, "file_name": f"{image_id:012}.jpg", **size})
        for n, category in enumerate(CATEGORY_IDS):
            box = [2.0 + n, 3.0, 8.0, 6.0]
            x, y, width, height = box
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            single = {"segmentation": [corners], "iscrowd": 0, "area": 48.0, "bbox": box}
            labels.append({"category_id": category, "image_id": image_id, **single})
        counts = [0, HEIGHT * 4, HEIGHT * (WIDTH - 4)]
        rle = {"size": [HEIGHT, WIDTH], "counts": counts}
        crowd = {"segmentation": rle, "iscrowd": 1, "area": 4 * HEIGHT, "bbox": [0, 0, 4, HEIGHT]}
        labels.append({"category_id": CATEGORY_IDS[0], "image_id": image_id, **crowd})
    labels = [{"id": 1 + k, **label} for k, label in enumerate(labels)]
    categories = [{"id": k, "name": f"thing{k}"} for k in CATEGORY_IDS]
    content = {"images": listed, "annotations": labels, "categories": categories}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def coco(home: Path) -> Path:
    """COCO 2017."""
    for split, first_id in (("train", 100), ("val", 200)):
        path = home / "annotations" / f"instances_{split}2017.json"
        coco_json(path, home / f"{split}2017", first_id)
    return home


def ade20k(home: Path) -> Path:
    """ADEChallengeData2016 with three classes."""
    for folder, seed in (("training", 1), ("validation", 5)):
        ade20k_pairs(home / "images" / folder, home / "annotations" / folder, seed)
    rows = [f"{k}\t0.3\t3\t3\t1\t{name}" for k, name in enumerate(("wall", "sky", "tree"), 1)]
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]
    (home / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    return home


def ade20k_pairs(images: Path, maps: Path, seed: int, first: int = 0) -> None:
    """Three images with maps of the values `first` to `first` + 3."""
    maps.mkdir(parents=True, exist_ok=True)
    for k in range(3):
        picture(images / f"{seed + k}.jpg", seed + k)
        columns = (np.arange(WIDTH) * 4 // WIDTH + first).astype(np.uint8)
        Image.fromarray(np.tile(columns, (HEIGHT, 1))).save(maps / f"{seed + k}.png")


def coco_format(home: Path) -> Path:
    """A user's set, as exported by annotation tools: json and images in one folder a split."""
    for split, first_id in (("train", 100), ("valid", 200)):
        coco_json(home / split / "_annotations.coco.json", home / split, first_id)
    return home


def ade20k_format(home: Path) -> Path:
    """A user's set whose classes start at 0."""
    for folder, seed in (("train", 1), ("val", 5)):
        ade20k_pairs(home / "img_dir" / folder, home / "ann_dir" / folder, seed)
    about = {"classes": ["wall", "sky", "tree", "road"], "reduce_zero_label": False}
    (home / "dataset.json").write_text(json.dumps(about))
    return home


# Name of a dataset ("{}" stands for the data root) -> (its folder below the data root, its tree).
TREES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "imagenet": ("imagenet", folder_tree),
    "inat2017": ("inat2017", lambda home: inat(home, 2017, "train_val_images")),
    "inat2018": ("inat2018", lambda home: inat(home, 2018, "train_val2018")),
    "inat2019": ("inat2019", lambda home: inat(home, 2019, "train_val2019")),
    "places205": ("places205", places205),
    "places365": ("places365", lambda home: places365(home, "large")),
    "places365-small": ("places365", lambda home: places365(home, "256")),
    "places365-easyformat": (
        "places365_standard",
        lambda home: folder_tree(home, ("airfield", "field-road", "field-wild")),
    ),
    "coco": ("coco", coco),
    "ade20k": ("ADEChallengeData2016", ade20k),
    "imagefolder:{}/own": ("own", folder_tree),
    "coco-format:{}/own": ("own", coco_format),
    "ade20k-format:{}/own": ("own", ade20k_format),
}


def make(name: str, root: Path) -> tuple[str, Path]:
    """Build the tree of a key of `TREES`; returns the dataset's name and its own folder."""
    place, build = TREES[name]
    return name.format(root), build(root / place)
