"""Scenes: a light, two surfaces, clutter, and things that stand, lie or hang.

Drawn larger than needed and averaged down. Beside the colours a scene knows for each pixel which
surface it is and which thing owns it, so every label is what can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from tasks.data.miniature.surfaces import (
    SURFACE_PAINTERS,
    Array,
    Light,
    Rng,
    mix,
    noise,
    random_light,
    rgb,
    smoothstep,
    thrice,
)
from tasks.data.miniature.things import FIGURES, Figure, Traits
from tasks.data.specs import (
    FAR_SURFACES,
    NEAR_SURFACES,
    SURFACES,
    THINGS,
    ImagenetSpec,
    InatSpec,
    Place,
    SceneSpec,
    Spec,
)

NOBODY, CLUTTER = -1, -2
Point = tuple[float, float]


@dataclass
class Scene:
    """A picture being painted, and at the end what it shows.

    Attributes:
        image: (H, W, 3) float32 RGB, 0 to 1 while painting; uint8 once finished.
        surface: (H, W) index into SURFACES.
        owner: (H, W) index into `things`, or NOBODY, or CLUTTER.
        horizon: row where the near surface begins.
        things: figure name of each thing.
        crowds: indices of things that are a crowd of tiny ones.
        supersampling: how many painted pixels make one of the finished image, along a side.
    """

    image: Array
    surface: Array
    owner: Array
    horizon: int
    light: Light
    supersampling: int
    things: list[str] = field(default_factory=list)
    crowds: set[int] = field(default_factory=set)

    @property
    def side(self) -> int:
        return self.image.shape[0]


def start(rng: Rng, spec: Spec, far: str | None = None, near: str | None = None) -> Scene:
    """Paint the surfaces; those not given are drawn at random."""
    side = spec.size_px * spec.supersampling
    far = far or FAR_SURFACES[rng.integers(len(FAR_SURFACES))]
    near = near or NEAR_SURFACES[rng.integers(len(NEAR_SURFACES))]
    horizon = int(side * rng.uniform(0.3, 0.58))
    image = np.empty((side, side, 3), np.float32)
    image[:horizon] = SURFACE_PAINTERS[far](rng, horizon, side)
    image[horizon:] = SURFACE_PAINTERS[near](rng, side - horizon, side)
    if far == "brick":
        # Where a wall meets the ground the ground is darker.
        fade = np.exp(-np.arange(side - horizon, dtype=np.float32) / (0.04 * side))
        image[horizon:] *= 1 - 0.45 * fade[:, None, None]
    surface = np.full((side, side), SURFACES.index(near), np.uint8)
    surface[:horizon] = SURFACES.index(far)
    owner = np.full((side, side), NOBODY, np.int16)
    return Scene(image, surface, owner, horizon, random_light(rng), spec.supersampling)


def _window(scene: Scene, at: Point, reach: float) -> tuple[slice, slice]:
    """Rows and columns within `reach` of a point, cut at the scene's border; may be empty."""
    left, top = max(0, int(at[0] - reach)), max(0, int(at[1] - reach))
    right, bottom = (max(0, min(scene.side, int(x + reach) + 1)) for x in at)
    return slice(top, bottom), slice(left, right)


def _rotate(x: Array | float, y: Array | float, angle: float) -> tuple[Any, Any]:
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def _shading(figure: Figure, u: Array, v: Array, distance: Array, light: Point) -> Array:
    """Factor for the colours, (H, W): a sphere's falloff, a bevelled rim, a dark outline."""
    facing = u * light[0] + v * light[1]
    shade = 1 + (0.28 - 0.2 * figure.bulge) * facing
    if figure.bulge:
        lit = np.sqrt(np.clip(1 - u * u - v * v, 0, 1)) * 0.75 + facing * 0.65
        shade = shade * (1 - figure.bulge) + figure.bulge * (0.38 + 0.75 * np.clip(lit, 0, 1))
    rim = smoothstep(-0.11, 0.0, distance)
    return shade * (1 - 0.4 * rim)


def _shadow(distance: Array, radius: float, light: Point) -> Array:
    """Factor for what lies behind, (H, W): the outline, soft, moved away from the light."""
    move = np.float32([[1, 0, -0.16 * light[0] * radius], [0, 1, -0.16 * light[1] * radius]])
    size = distance.shape[::-1]
    moved = cv2.warpAffine(distance, move, size, borderMode=cv2.BORDER_REPLICATE)
    return 0.5 + 0.5 * smoothstep(-0.1, 0.16, moved)


def paint_figure(
    scene: Scene, figure: Figure, at: Point, radius: float, angle: float, owner: int
) -> None:
    """Paint a figure and its shadow.

    Args:
        at: (x, y) of its centre, painted pixels. radius: painted pixels. angle: radians.
        owner: written to `scene.owner` where the figure covers more than half a painted pixel.
    """
    window = rows, columns = _window(scene, at, 1.4 * radius)
    x = (np.arange(columns.start, columns.stop) + 0.5 - at[0]) / radius
    y = (np.arange(rows.start, rows.stop) + 0.5 - at[1]) / radius
    if not (len(x) and len(y)):
        return
    u, v = _rotate(x[None].astype(np.float32), y[:, None].astype(np.float32), angle)
    light = _rotate(*scene.light.direction, angle)
    distance = figure.outline(u, v).astype(np.float32)
    behind = scene.image[window] * thrice(_shadow(distance, radius, scene.light.direction))
    colours = figure.paint(u, v) * thrice(_shading(figure, u, v, distance, light))
    if figure.bulge == 1.0:
        glint = np.hypot(u - light[0] * 0.45, v - light[1] * 0.45)
        colours = mix(colours, rgb(1, 1, 1), 0.7 * (1 - smoothstep(0.05, 0.24, glint)))
    cover = np.clip(0.5 - distance * radius, 0, 1)
    scene.image[window] = mix(behind, colours, cover)
    scene.owner[window][cover > 0.5] = owner


def scatter_clutter(rng: Rng, scene: Scene, most: int) -> None:
    """Pebbles on the ground, labelled as nothing."""
    unit = scene.side / 64
    for _ in range(rng.integers(0, most + 1)):
        radius = rng.uniform(1.2, 2.6) * unit
        flat = rng.uniform(0.5, 0.8)
        tone = rng.uniform(0.3, 0.75) * rgb(1.0, 0.97, 0.92)
        pebble = Figure(
            lambda u, v, flat=flat: (np.hypot(u, v / flat) - 0.9) * flat,
            lambda u, v, tone=tone: np.broadcast_to(tone, (*u.shape, 3)),
            bulge=0.5,
        )
        at = (rng.uniform(0, scene.side), rng.uniform(scene.horizon + radius, scene.side))
        paint_figure(scene, pebble, at, radius, 0.0, CLUTTER)


def add_thing(rng: Rng, scene: Scene, name: str, at: Point, radius: float, traits: Traits) -> None:
    """Paint one thing and remember it."""
    figure = FIGURES[name](rng, traits)
    angle = rng.uniform(-figure.tilt, figure.tilt)
    paint_figure(scene, figure, at, radius, angle, len(scene.things))
    scene.things.append(name)


def add_crowd(rng: Rng, scene: Scene, name: str, at: Point, radius: float) -> None:
    """Paint a heap of tiny things that share one label."""
    for _ in range(rng.integers(6, 10)):
        figure = FIGURES[name](rng, {})
        spot = (at[0] + rng.normal(0, 1.5) * radius, at[1] + rng.normal(0, 0.9) * radius)
        paint_figure(
            scene, figure, spot, radius, rng.uniform(-1, 1) * figure.tilt, len(scene.things)
        )
    scene.crowds.add(len(scene.things))
    scene.things.append(name)


def _spread(
    rng: Rng, scene: Scene, radii: list[float], hung: float
) -> list[tuple[float, float, float]]:
    """Find (x, y, radius) for each thing, far ones first; overlaps are allowed, hiding is not."""
    placed: list[tuple[float, float, float]] = []
    for radius in radii:
        for _ in range(12):
            x = rng.uniform(0.1, 0.9) * scene.side
            if rng.uniform() < hung:
                y = rng.uniform(min(radius, scene.horizon * 0.5), max(scene.horizon, radius + 1.0))
            else:
                y = rng.uniform(scene.horizon, scene.side) - 0.4 * radius
            if all(np.hypot(x - a, y - b) > 0.75 * (radius + r) for a, b, r in placed):
                break
        placed.append((x, y, radius))
    return sorted(placed, key=lambda place: place[1])


def finish(rng: Rng, scene: Scene) -> Scene:
    """Light the scene, add the camera's noise and average it down; labels are the centre's."""
    side, factor = scene.side, scene.supersampling
    pixels = side // factor
    image = cv2.resize(scene.image, (pixels, pixels), interpolation=cv2.INTER_AREA)
    warmth = rgb(0.1, 0.0, -0.12) * scene.light.warmth
    glow = noise(rng, pixels, pixels, 2, 2, octaves=1)[..., None] * 0.05
    grain = rng.standard_normal((pixels, pixels, 1), dtype=np.float32) * 0.012
    image = image * (scene.light.brightness * (1 + warmth) + glow) + grain
    centre = slice(factor // 2, None, factor)
    return Scene(
        image=(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8),
        surface=scene.surface[centre, centre].copy(),
        owner=scene.owner[centre, centre].copy(),
        horizon=scene.horizon // factor,
        light=scene.light,
        supersampling=1,
        things=scene.things,
        crowds=scene.crowds,
    )


def draw_subject(
    rng: Rng,
    spec: ImagenetSpec | InatSpec,
    name: str,
    traits: Traits,
    others: tuple[str, ...] = (),
) -> Scene:
    """One dominant figure on surfaces; one of `others`, much smaller, may be behind it."""
    scene = start(rng, spec)
    scatter_clutter(rng, scene, 4)
    if others and rng.uniform() < 0.5:
        at = (rng.uniform(0, 1) * scene.side, rng.uniform(0.2, 0.95) * scene.side)
        add_thing(rng, scene, others[rng.integers(len(others))], at, scene.side * 0.12, {})
    radius = rng.uniform(*spec.radius) * scene.side
    at = tuple(rng.uniform(0.38, 0.62, 2) * scene.side)
    add_thing(rng, scene, name, at, radius, traits)
    return finish(rng, scene)


def draw_scene(rng: Rng, spec: SceneSpec) -> Scene:
    """Several things on surfaces."""
    scene = start(rng, spec)
    scatter_clutter(rng, scene, 5)
    if rng.uniform() < spec.crowd_share:
        at = (rng.uniform(0.2, 0.8) * scene.side, rng.uniform(0.6, 0.9) * scene.side)
        add_crowd(rng, scene, THINGS[rng.integers(len(THINGS))], at, 0.045 * scene.side)
    count = rng.integers(spec.num_things[0], spec.num_things[1] + 1)
    radii = [rng.uniform(*spec.radius) * scene.side for _ in range(count)]
    for x, y, radius in _spread(rng, scene, radii, hung=0.35):
        add_thing(rng, scene, THINGS[rng.integers(len(THINGS))], (x, y), radius, {})
    return finish(rng, scene)


def draw_place(rng: Rng, spec: Spec, place: Place) -> Scene:
    """A scene of one category."""
    scene = start(rng, spec, place.far, place.near)
    scatter_clutter(rng, scene, 3)
    count = rng.integers(place.num_things[0], place.num_things[1] + 1)
    radii = [rng.uniform(0.13, 0.22) * scene.side for _ in range(count)]
    for x, y, radius in _spread(rng, scene, radii, hung=0.35):
        add_thing(rng, scene, place.things[rng.integers(len(place.things))], (x, y), radius, {})
    return finish(rng, scene)
