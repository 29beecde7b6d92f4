"""From what a scene shows to the labels of the real formats: polygons, RLE, class maps."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from tasks.data.miniature.scenes import CLUTTER, Scene
from tasks.data.miniature.surfaces import Array
from tasks.data.specs import SURFACES, THINGS

# Contours pass through pixel centres; on a mask this much larger they pass close to its border.
_CONTOUR_SCALE = 4
_MIN_POLYGON_AREA_PX = 2.0


def polygons(mask: Array) -> list[list[float]]:
    """Outline an (H, W) mask as COCO polygons [x1, y1, x2, y2, ...] in pixels.

    COCO polygons know no holes, so a mask with one is cut in two through it.
    """
    large = np.kron(mask.astype(np.uint8), np.ones((_CONTOUR_SCALE,) * 2, np.uint8))
    contours, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    found: list[list[float]] = []
    for contour, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True):
        if parent >= 0:
            x, _, width, _ = cv2.boundingRect(contour)
            column = (x + width // 2) // _CONTOUR_SCALE
            left, right = mask.copy(), mask.copy()
            left[:, column:], right[:, :column] = 0, 0
            return polygons(left) + polygons(right)
        points = cv2.approxPolyDP(contour, 0.25 * _CONTOUR_SCALE, closed=True)[:, 0]
        border = (points.astype(np.float64) + 0.5) / _CONTOUR_SCALE
        if len(points) >= 3 and cv2.contourArea(border.astype(np.float32)) >= _MIN_POLYGON_AREA_PX:
            found.append(border.round(2).ravel().tolist())
    return found


def run_lengths(mask: Array) -> dict[str, Any]:
    """Encode an (H, W) mask as COCO's uncompressed RLE: columns first, zeros first."""
    flat = mask.astype(bool).ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(edges).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def box(mask: Array) -> list[float]:
    """COCO box [x, y, width, height] around an (H, W) mask, pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = columns[0], rows[0]
    return [float(left), float(top), float(columns[-1] - left + 1), float(rows[-1] - top + 1)]


def instances(scene: Scene, min_visible_px: int) -> list[dict[str, Any]]:
    """COCO annotations of a finished scene, without ids; `category` is an index into THINGS."""
    found = []
    for index, name in enumerate(scene.things):
        mask = scene.owner == index
        if mask.sum() < min_visible_px:
            continue
        crowd = index in scene.crowds
        found.append({
            "category": THINGS.index(name),
            "segmentation": run_lengths(mask) if crowd else polygons(mask),
            "area": float(mask.sum()),
            "bbox": box(mask),
            "iscrowd": int(crowd),
        })
    return [annotation for annotation in found if annotation["segmentation"]]


def class_map(scene: Scene) -> Array:
    """(H, W) uint8 of ADE20K: 0 unlabelled (clutter), then the surfaces, then the things."""
    labels = scene.surface + 1
    labels[scene.owner == CLUTTER] = 0
    for index, name in enumerate(scene.things):
        labels[scene.owner == index] = 1 + len(SURFACES) + THINGS.index(name)
    return labels
