"""Surfaces ("stuff") under a horizon: sky and brick above; grass, wood, sand and water below.

Images are (H, W, 3) float32 RGB, 0 to 1. Each surface draws its own noise, so no two images share
a patch of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

Array = np.ndarray
Rng = np.random.Generator


@dataclass(frozen=True)
class Light:
    """How a scene is lit.

    Attributes:
        direction: (x, y) towards the light, y up the image is negative; unit length.
        brightness: exposure.
        warmth: -1 (blue) to 1 (orange).
    """

    direction: tuple[float, float]
    brightness: float
    warmth: float


def random_light(rng: Rng) -> Light:
    """Light from somewhere above."""
    angle = rng.uniform(-1.0, 1.0)
    return Light(
        direction=(float(np.sin(angle)), -float(np.cos(angle))),
        brightness=rng.uniform(0.75, 1.1),
        warmth=float(np.clip(rng.normal(0, 0.3), -1, 1)),
    )


def noise(rng: Rng, height: int, width: int, rows: float, cols: float, octaves: int = 2) -> Array:
    """(height, width) smooth noise, about unit variance, with `rows` x `cols` coarsest cells."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = (max(2, int(rows * 2**octave)), max(2, int(cols * 2**octave)))
        grid = rng.standard_normal(cells, dtype=np.float32)
        layer = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        total += layer * (0.75 * 0.6**octave)
    return total


def rgb(red: float, green: float, blue: float) -> Array:
    """A colour, (3,) float32."""
    return np.array([red, green, blue], np.float32)


def thrice(weight: Array) -> Array:
    """(H, W) -> (H, W, 3) float32; NumPy is slow to broadcast over an inner axis of three."""
    weight = np.asarray(weight, np.float32)
    return cv2.merge((weight, weight, weight))


def mix(first: Array, second: Array, weight: Array) -> Array:
    """Blend two colours (3,) or images (H, W, 3) by an (H, W) weight of the second."""
    if first.ndim == second.ndim == 1:
        matrix = np.stack([second - first, first], axis=1)
        return cv2.transform(np.asarray(weight, np.float32)[..., None], matrix)
    return first + (second - first) * thrice(weight)


def smoothstep(low: float, high: float, values: Array) -> Array:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _colour(rng: Rng, red: float, green: float, blue: float, spread: float = 0.05) -> Array:
    shift = rng.normal(0, spread / 2) + rng.normal(0, spread, 3) * 0.7
    return np.clip(rgb(red, green, blue) + shift, 0.02, 1).astype(np.float32)


def _ground(rng: Rng, height: int, width: int) -> tuple[Array, Array, Array]:
    """Ground coordinates of each pixel below the horizon.

    Returns:
        across, along: position on the ground, in image widths; depth (H, 1): 1 near, 2.5 far.
    """
    rows = (np.arange(height, dtype=np.float32) + 0.5) / height
    depth = (1 / (0.4 + 0.6 * rows))[:, None]
    columns = (np.arange(width, dtype=np.float32) + 0.5) / width
    across = (columns[None] - np.float32(rng.uniform(0.2, 0.8))) * depth
    along = np.broadcast_to(depth * 1.2, across.shape)
    return across, along, depth


def _lay(texture: Array, across: Array, along: Array, scale: float) -> Array:
    """Lay a square texture on the ground, `scale` texture pixels to an image width."""
    return cv2.remap(
        texture,
        (across + 1.5) * np.float32(scale),
        along * np.float32(scale),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )


def sky(rng: Rng, height: int, width: int) -> Array:
    """Gradient from deep to pale blue with clouds."""
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None] * np.ones((1, width), np.float32)
    deep = _colour(rng, 0.22, 0.46, 0.82, 0.06)
    pale = _colour(rng, 0.72, 0.84, 0.95, 0.04)
    image = mix(deep, pale, rows**1.2)
    clouds = noise(rng, height, width, 2 + height / width * 3, 3, octaves=3)
    cover = rng.uniform(-0.2, 1.2)
    return mix(image, rgb(0.97, 0.97, 0.98), smoothstep(cover, cover + 1.3, clouds) * 0.85)


def brick(rng: Rng, height: int, width: int) -> Array:
    """Courses of bricks, each with its own tone, in pale mortar."""
    course = width / rng.uniform(9, 13)
    length = course * rng.uniform(2.0, 2.6)
    y = np.arange(height, dtype=np.float32)[:, None] / course + np.float32(rng.uniform())
    row = np.floor(y)
    x = (
        np.arange(width, dtype=np.float32)[None] / length
        + row % 2 * 0.5
        + np.float32(rng.uniform())
    )
    column = np.floor(x)
    tones = rng.normal(0, 1, (int(row.max()) + 1, int(column.max()) + 1)).astype(np.float32)
    tone = tones[row.astype(int), column.astype(int)] + 0.5 * noise(rng, height, width, 20, 20, 1)
    image = mix(_colour(rng, 0.62, 0.27, 0.2), _colour(rng, 0.74, 0.42, 0.3), 0.5 + 0.25 * tone)
    edge = np.minimum(
        np.minimum(y - row, 1 - (y - row)) * course,
        np.minimum(x - column, 1 - (x - column)) * length,
    )
    mortar = 1 - smoothstep(0.03 * course, 0.14 * course, edge)
    bevel = (0.5 - (y - row))[..., None] * 0.16
    return mix(image * (1 + bevel), _colour(rng, 0.78, 0.74, 0.68, 0.04), mortar)


def grass(rng: Rng, height: int, width: int) -> Array:
    """Upright blades over slow patches of yellow and dark green."""
    blades = noise(rng, height, width, height / 9, width / 2.6, octaves=1)
    patches = noise(rng, height, width, 2, 3, octaves=2)
    dark, bright = _colour(rng, 0.12, 0.3, 0.08), _colour(rng, 0.42, 0.62, 0.2)
    image = mix(dark, bright, np.clip(0.5 + 0.26 * blades + 0.16 * patches, 0, 1.15))
    return mix(image, rgb(0.66, 0.64, 0.26), smoothstep(0.4, 2.2, patches) * 0.5)


def wood(rng: Rng, height: int, width: int) -> Array:
    """Floor boards that run to the horizon, with grain."""
    across, along, _ = _ground(rng, height, width)
    boards = rng.uniform(5, 8)
    position = across * boards + 40
    board = np.floor(position).astype(int)
    tone = rng.normal(0, 1, board.max() + 1).astype(np.float32)[board]
    grain = _lay(noise(rng, 96, 96, 6, 48, octaves=1), across, along, 64)
    image = mix(
        _colour(rng, 0.42, 0.25, 0.12),
        _colour(rng, 0.76, 0.53, 0.3),
        np.clip(0.5 + 0.2 * tone + 0.2 * grain, 0, 1),
    )
    gap = np.abs(position - board - 0.5)
    return image * thrice(1 - 0.65 * smoothstep(0.42, 0.49, gap))


def sand(rng: Rng, height: int, width: int) -> Array:
    """Pale ripples and grains."""
    across, along, _ = _ground(rng, height, width)
    bend = noise(rng, height, width, 2, 2, octaves=1)
    ripples = np.sin(along * np.float32(rng.uniform(22, 34)) + bend * 1.6 + across * 2)
    grains = noise(rng, height, width, height / 2, width / 2, octaves=1)
    dark, bright = _colour(rng, 0.74, 0.6, 0.38, 0.04), _colour(rng, 0.95, 0.86, 0.64, 0.03)
    return mix(dark, bright, np.clip(0.55 + 0.2 * ripples + 0.16 * grains, 0, 1.1))


def water(rng: Rng, height: int, width: int) -> Array:
    """Flat waves that grow towards the viewer, with glints."""
    across, along, depth = _ground(rng, height, width)
    waves = _lay(noise(rng, 96, 96, 40, 9, octaves=2), across, along, 64)
    deep, pale = _colour(rng, 0.05, 0.26, 0.42), _colour(rng, 0.36, 0.64, 0.74)
    image = mix(deep, pale, np.clip(0.25 + 0.22 * waves + 0.25 * (depth - 1), 0, 1))
    return mix(image, rgb(0.92, 0.97, 1.0), smoothstep(1.1, 1.8, waves) * 0.8)


SURFACE_PAINTERS: dict[str, Callable[[Rng, int, int], Array]] = {
    "sky": sky,
    "brick": brick,
    "grass": grass,
    "wood": wood,
    "sand": sand,
    "water": water,
}
