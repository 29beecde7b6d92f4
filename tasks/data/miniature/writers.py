"""The five sets, written as the owners of the real ones lay them out."""

from __future__ import annotations

import json
import zlib
from functools import singledispatch
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tasks.data.miniature import truth
from tasks.data.miniature.scenes import draw_place, draw_scene, draw_subject
from tasks.data.miniature.surfaces import Array, Rng
from tasks.data.specs import (
    SURFACES,
    THINGS,
    Ade20kSpec,
    CocoSpec,
    ImagenetSpec,
    InatSpec,
    PlacesSpec,
    Spec,
)

SPLITS = ("train", "val")


def image_rng(spec: Spec, split: str, index: int) -> Rng:
    """A generator of the image's own, so that each can be drawn alone and none repeats."""
    name = zlib.crc32(spec.name.encode())
    return np.random.default_rng([spec.seed, name, SPLITS.index(split), index])


def _write_image(path: Path, image: Array, *options: int) -> None:
    # OpenCV wants BGR; a map has one channel.
    pixels = image[..., ::-1] if image.ndim == 3 else image
    encoded = cv2.imencode(path.suffix.lower().replace(".jpeg", ".jpg"), pixels, options)[1]
    path.write_bytes(encoded.tobytes())


def _write_jpeg(path: Path, image: Array, spec: Spec) -> None:
    _write_image(path, image, cv2.IMWRITE_JPEG_QUALITY, spec.jpeg_quality)


def _folders(root: Path, *names: str) -> list[Path]:
    made = [root / name for name in names]
    for folder in made:
        folder.mkdir(parents=True, exist_ok=True)
    return made


@singledispatch
def write(spec: Spec, root: Path) -> None:
    """Draw the set and write it below `root`, in the layout of the dataset it stands for."""
    raise TypeError(f"no writer for {type(spec).__name__}")


@write.register
def _(spec: ImagenetSpec, root: Path) -> None:
    for split, per_class in zip(SPLITS, (spec.train_per_class, spec.val_per_class), strict=True):
        for label, look in enumerate(spec.looks):
            wnid = f"n{90000001 + label:08d}"
            (folder,) = _folders(root, f"imagenet/{split}/{wnid}")
            for index in range(label * per_class, (label + 1) * per_class):
                rng = image_rng(spec, split, index)
                scene = draw_subject(rng, spec, look.figure, dict(look.traits), others=THINGS)
                _write_jpeg(folder / f"{wnid}_{index}.JPEG", scene.image, spec)


@write.register
def _(spec: CocoSpec, root: Path) -> None:
    categories = [
        {"id": number, "name": name, "supercategory": "thing"}
        for number, name in zip(spec.category_ids, THINGS, strict=True)
    ]
    for split, count in zip(SPLITS, (spec.num_train, spec.num_val), strict=True):
        folder, listing = _folders(root, f"coco/{split}2017", "coco/annotations")
        images: list[dict[str, Any]] = []
        labels: list[dict[str, Any]] = []
        for index in range(count):
            scene = draw_scene(image_rng(spec, split, index), spec)
            number = (SPLITS.index(split) + 1) * 100_000 + index
            name = f"{number:012d}.jpg"
            _write_jpeg(folder / name, scene.image, spec)
            size = {"height": spec.size_px, "width": spec.size_px}
            images.append({"id": number, "file_name": name, **size})
            for instance in truth.instances(scene, spec.min_visible_px):
                category = spec.category_ids[instance.pop("category")]
                ids = {"id": len(labels) + 1, "image_id": number, "category_id": category}
                labels.append({**ids, **instance})
        content = {"images": images, "annotations": labels, "categories": categories}
        (listing / f"instances_{split}2017.json").write_text(json.dumps(content))


@write.register
def _(spec: Ade20kSpec, root: Path) -> None:
    top = root / "ADEChallengeData2016"
    names = (*SURFACES, *THINGS)
    pixels = np.zeros(1 + len(names), np.int64)
    holding = {split: np.zeros(1 + len(names), np.int64) for split in SPLITS}
    counts = (("training", "train", spec.num_train), ("validation", "val", spec.num_val))
    for folder, split, count in counts:
        images, maps = _folders(top, f"images/{folder}", f"annotations/{folder}")
        for index in range(count):
            scene = draw_scene(image_rng(spec, split, index), spec)
            labels = truth.class_map(scene)
            stem = f"ADE_{split}_{index + 1:08d}"
            _write_jpeg(images / f"{stem}.jpg", scene.image, spec)
            _write_image(maps / f"{stem}.png", labels)
            histogram = np.bincount(labels.ravel(), minlength=len(pixels))
            pixels += histogram
            holding[split] += histogram > 0
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for number, name in enumerate(names, 1):
        share, stuff = pixels[number] / pixels[1:].sum(), int(name in SURFACES)
        train, val = (holding[split][number] for split in SPLITS)
        lines.append(f"{number}\t{share:.4f}\t{train}\t{val}\t{stuff}\t{name}")
    (top / "objectInfo150.txt").write_text("\n".join(lines) + "\n")


def long_tail(spec: InatSpec) -> list[int]:
    """Training images of each species, falling geometrically from head to tail."""
    counts = np.geomspace(spec.head_images, spec.tail_images, len(spec.species))
    return [round(count) for count in counts.tolist()]


@write.register
def _(spec: InatSpec, root: Path) -> None:
    top = root / "inat2018"
    categories = [
        {"id": label, "name": species.name, "supercategory": species.supercategory}
        for label, species in enumerate(spec.species)
    ]
    counts = {"train": long_tail(spec), "val": [spec.val_per_class] * len(spec.species)}
    for split in SPLITS:
        images: list[dict[str, Any]] = []
        labels: list[dict[str, Any]] = []
        for label, species in enumerate(spec.species):
            name = f"train_val2018/{species.supercategory}/{label}"
            (folder,) = _folders(top, name)
            for _ in range(counts[split][label]):
                rng = image_rng(spec, split, len(images))
                scene = draw_subject(rng, spec, species.look.figure, dict(species.look.traits))
                number = (SPLITS.index(split) + 1) * 100_000 + len(images)
                file_name = f"{zlib.crc32(str(number).encode()):08x}.jpg"
                _write_jpeg(folder / file_name, scene.image, spec)
                size = {"height": spec.size_px, "width": spec.size_px}
                images.append({"id": number, "file_name": f"{name}/{file_name}", **size})
                labels.append({"id": number, "image_id": number, "category_id": label})
        content = {"images": images, "annotations": labels, "categories": categories}
        (top / f"{split}2018.json").write_text(json.dumps(content))


@write.register
def _(spec: PlacesSpec, root: Path) -> None:
    top = root / "places365"
    names = [place.name for place in spec.places]
    _folders(top, "val_256", *(f"data_256_standard{name}" for name in names))
    lists: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, per_class in zip(SPLITS, (spec.train_per_class, spec.val_per_class), strict=True):
        for index in range(per_class * len(names)):
            label = index // per_class
            scene = draw_place(image_rng(spec, split, index), spec, spec.places[label])
            # The training list names categories from the root; the validation folder is flat.
            if split == "train":
                name = f"{names[label]}/{index + 1:08d}.jpg"
                _write_jpeg(top / f"data_256_standard{name}", scene.image, spec)
            else:
                name = f"Places365_val_{index + 1:08d}.jpg"
                _write_jpeg(top / "val_256" / name, scene.image, spec)
            lists[split].append(f"{name} {label}\n")
    categories = "".join(f"{name} {label}\n" for label, name in enumerate(names))
    (top / "categories_places365.txt").write_text(categories)
    (top / "places365_train_standard.txt").write_text("".join(lists["train"]))
    (top / "places365_val.txt").write_text("".join(lists["val"]))
