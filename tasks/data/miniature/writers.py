"""The five sets, written as the owners of the real ones lay them out."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
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
    return np.random.default_rng([
        spec.seed,
        zlib.crc32(spec.name.encode()),
        SPLITS.index(split),
        index,
    ])


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
    pixels = np.zeros(1 + len(SURFACES) + len(THINGS), np.int64)
    counts = (("training", "train", spec.num_train), ("validation", "val", spec.num_val))
    for folder, split, count in counts:
        images, maps = _folders(top, f"images/{folder}", f"annotations/{folder}")
        for index in range(count):
            scene = draw_scene(image_rng(spec, split, index), spec)
            labels = truth.class_map(scene)
            stem = f"ADE_{split}_{index + 1:08d}"
            _write_jpeg(images / f"{stem}.jpg", scene.image, spec)
            _write_image(maps / f"{stem}.png", labels)
            pixels += np.bincount(labels.ravel(), minlength=len(pixels))
    shares = pixels[1:] / pixels[1:].sum()
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for number, (name, share) in enumerate(zip((*SURFACES, *THINGS), shares, strict=True), 1):
        stuff = int(name in SURFACES)
        lines.append(f"{number}\t{share:.4f}\t{spec.num_train}\t{spec.num_val}\t{stuff}\t{name}")
    (top / "objectInfo150.txt").write_text("\n".join(lines) + "\n")


def long_tail(spec: InatSpec) -> list[int]:
    """Training images of each species, falling geometrically from head to tail."""
    ranks = np.linspace(0, 1, len(spec.species))
    return (
        np
        .rint(spec.head_images * (spec.tail_images / spec.head_images) ** ranks)
        .astype(int)
        .tolist()
    )


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
    (top / "categories_places365.txt").write_text(
        "".join(f"{name} {label}\n" for label, name in enumerate(names))
    )

    def paint(split: str, per_class: int, path: Callable[[str, int], str], listing: str) -> None:
        lines = []
        for label, place in enumerate(spec.places):
            for index in range(label * per_class, (label + 1) * per_class):
                scene = draw_place(image_rng(spec, split, index), spec, place)
                name = path(place.name, index + 1)
                folder = "data_256_standard" if split == "train" else "val_256/"
                _write_jpeg(top / f"{folder}{name}", scene.image, spec)
                lines.append(f"{name} {label}\n")
        (top / listing).write_text("".join(lines))

    paint(
        "train",
        spec.train_per_class,
        lambda name, number: f"{name}/{number:08d}.jpg",
        "places365_train_standard.txt",
    )
    paint(
        "val",
        spec.val_per_class,
        lambda name, number: f"Places365_val_{number:08d}.jpg",
        "places365_val.txt",
    )
