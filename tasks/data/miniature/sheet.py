"""One picture of all five sets, for the documentation and for looking at what was changed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tasks.data.formats import class_colour
from tasks.data.miniature.scenes import Scene, draw_place, draw_scene, draw_subject
from tasks.data.miniature.surfaces import Array
from tasks.data.miniature.truth import class_map, instances
from tasks.data.miniature.writers import image_rng
from tasks.data.specs import (
    SPECS,
    THINGS,
    Ade20kSpec,
    CocoSpec,
    ImagenetSpec,
    InatSpec,
    PlacesSpec,
    Spec,
)

_TILE, _GAP, _COLUMNS = 96, 4, 12


def _row(images: list[Array]) -> Array:
    """(tile + gap, columns * (tile + gap), 3) from square RGB images."""
    row = np.full((_TILE + _GAP, _COLUMNS * (_TILE + _GAP), 3), 255, np.uint8)
    for column, image in enumerate(images):
        tile = cv2.resize(image, (_TILE, _TILE), interpolation=cv2.INTER_CUBIC)
        left = column * (_TILE + _GAP)
        row[:_TILE, left : left + _TILE] = tile
    return row


def _title(text: str) -> Array:
    bar = np.full((18, _COLUMNS * (_TILE + _GAP), 3), 255, np.uint8)
    cv2.putText(bar, text, (2, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
    return bar


def _subjects(spec: ImagenetSpec | InatSpec) -> list[Array]:
    looks = spec.looks if isinstance(spec, ImagenetSpec) else [s.look for s in spec.species]
    others = THINGS if isinstance(spec, ImagenetSpec) else ()
    return [
        draw_subject(
            image_rng(spec, "train", 100_000 + index),
            spec,
            look.figure,
            dict(look.traits),
            others=others,
        ).image
        for index, look in enumerate(looks * 2)
    ]


def _boxed(scene: Scene, spec: CocoSpec) -> Array:
    image = scene.image.copy()
    for instance in instances(scene, spec.min_visible_px):
        left, top, width, height = map(int, instance["bbox"])
        colour = tuple(127 + c // 2 for c in class_colour(instance["category"] + 1))
        cv2.rectangle(image, (left, top), (left + width - 1, top + height - 1), colour, 1)
    return image


def _scenes(spec: CocoSpec | Ade20kSpec) -> list[Array]:
    scenes = [draw_scene(image_rng(spec, "train", k), spec) for k in range(_COLUMNS)]
    if isinstance(spec, CocoSpec):
        return [scene.image for scene in scenes] + [_boxed(scene, spec) for scene in scenes]
    palette = np.array([class_colour(k) for k in range(256)], np.uint8)
    return [scene.image for scene in scenes] + [palette[class_map(scene)] for scene in scenes]


def _places(spec: PlacesSpec) -> list[Array]:
    count = len(spec.places)
    return [
        draw_place(image_rng(spec, "train", 100_000 + k), spec, spec.places[k % count]).image
        for k in range(2 * _COLUMNS)
    ]


def _samples(spec: Spec) -> list[Array]:
    if isinstance(spec, CocoSpec | Ade20kSpec):
        return _scenes(spec)
    if isinstance(spec, PlacesSpec):
        return _places(spec)
    return _subjects(spec)


def contact_sheet(out: Path) -> None:
    """Write a PNG with two rows of samples of each set; boxes and maps under their scenes."""
    rows = []
    for spec in SPECS.values():
        images = _samples(spec)
        rows += [_title(f"{spec.name}, {spec.size_px} px")]
        rows += [_row(images[k : k + _COLUMNS]) for k in range(0, len(images), _COLUMNS)]
    out.write_bytes(cv2.imencode(".png", np.concatenate(rows)[..., ::-1])[1].tobytes())
