"""Things: six of the scenes (ball, box, cube, target, cross, star), three of nature.

A figure lives in its own coordinates: u to the right, v down, the whole within the unit circle. Its
outline is a signed distance (negative inside), its paint an (H, W, 3) RGB image. Shapes and
patterns are the class; colours are random unless the trait `hue` is given (species).

Source: the distance functions follow the usual constructions of constructive geometry (union =
min, intersection = max).
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.data.miniature.surfaces import Array, Rng, mix, rgb, smoothstep, thrice

Field = Callable[[Array, Array], Array]
Traits = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One exemplar.

    Attributes:
        outline: (u, v) -> signed distance, in radii.
        paint: (u, v) -> RGB.
        bulge: 0 flat (bevelled rim only) to 1 a sphere.
        tilt: how far it may be turned, in radians, to either side.
    """

    outline: Field
    paint: Field
    bulge: float = 0.0
    tilt: float = 0.35


def colour_pair(rng: Rng, hue: float | None = None) -> tuple[Array, Array]:
    """Two colours told apart by brightness as well as by hue.

    Args:
        hue: of the first colour, which is then the bright one; all random when not given.
    """
    main = rng.uniform() if hue is None else (hue + rng.normal(0, 0.14)) % 1
    least = 0.35 if hue is None else 0.65
    bright = colorsys.hsv_to_rgb(main, rng.uniform(least, 0.9), rng.uniform(0.85, 1.0))
    other = (main + rng.uniform(0.2, 0.8)) % 1
    dark = colorsys.hsv_to_rgb(other, rng.uniform(0.5, 1.0), rng.uniform(0.25, 0.55))
    pair = rgb(*bright), rgb(*dark)
    return pair if hue is not None or rng.uniform() < 0.5 else pair[::-1]


def _ellipse(u: Array, v: Array, width: float, height: float) -> Array:
    return (np.hypot(u / width, v / height) - 1) * min(width, height)


def _rectangle(u: Array, v: Array, width: float, height: float) -> Array:
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


def _segment(u: Array, v: Array, start: tuple, end: tuple, thickness: float) -> Array:
    du, dv = end[0] - start[0], end[1] - start[1]
    t = np.clip(((u - start[0]) * du + (v - start[1]) * dv) / (du * du + dv * dv), 0, 1)
    return np.hypot(u - start[0] - t * du, v - start[1] - t * dv) - thickness


def ball(rng: Rng, traits: Traits) -> Figure:
    """Sphere; `pattern`: "sectors" of a beach ball or the "band" of a pool ball."""
    first, second = colour_pair(rng)
    pattern = traits.get("pattern", "sectors")
    pole, turn = rng.uniform(-0.35, 0.35, 2), rng.uniform(0, np.pi)
    width = rng.uniform(0.25, 0.4)

    def paint(u: Array, v: Array) -> Array:
        if pattern == "sectors":
            weight = np.sin(3 * np.arctan2(v - pole[1], u - pole[0]) + turn) > 0
        else:
            weight = np.abs(v * np.cos(turn) + u * np.sin(turn)) < width
        return mix(first, second, weight)

    return Figure(lambda u, v: np.hypot(u, v) - 0.95, paint, bulge=1.0, tilt=np.pi)


def box(rng: Rng, traits: Traits) -> Figure:
    """Upright rectangle with stripes across."""
    first, second = colour_pair(rng)
    width, height = rng.uniform(0.52, 0.68), rng.uniform(0.8, 0.9)
    stripes = rng.uniform(2.5, 4.0)
    return Figure(
        lambda u, v: _rectangle(u, v, width, height),
        lambda u, v: mix(first, second, np.sin(v / height * stripes * np.pi) > 0),
    )


def cube(rng: Rng, traits: Traits) -> Figure:
    """Three faces seen from above; `pattern`: "checker" or the "frame" of a crate."""
    first, second = colour_pair(rng)
    pattern = traits.get("pattern", "checker")

    def paint(u: Array, v: Array) -> Array:
        top = v < -np.abs(u) / np.sqrt(3)
        a = np.where(top, u / np.sqrt(3) - v, np.abs(u) * 2 / np.sqrt(3)) / 0.95
        b = np.where(top, -u / np.sqrt(3) - v, np.abs(u) / np.sqrt(3) + v) / 0.95
        if pattern == "checker":
            weight = (np.floor(a * 3) + np.floor(b * 3)) % 2
        else:
            weight = np.maximum(np.abs(a - 0.5), np.abs(b - 0.5)) > 0.32
        shade = np.where(top, 1.1, np.where(u > 0, 0.6, 0.85))
        return mix(first, second, weight) * thrice(shade)

    def outline(u: Array, v: Array) -> Array:
        return np.maximum(np.abs(u), np.abs(u) / 2 + np.abs(v) * 0.866) - 0.82

    return Figure(outline, paint, tilt=0.2)


def target(rng: Rng, traits: Traits) -> Figure:
    """Ellipse with concentric rings."""
    first, second = colour_pair(rng)
    width, height = 0.92, rng.uniform(0.62, 0.85)
    rings = rng.uniform(2.6, 3.4)
    return Figure(
        lambda u, v: _ellipse(u, v, width, height),
        lambda u, v: mix(first, second, np.sin(np.hypot(u / width, v / height) * rings * 3.1) > 0),
        tilt=np.pi,
    )


def cross(rng: Rng, traits: Traits) -> Figure:
    """Plus sign; `pattern`: "plain" or "stripes"."""
    first, second = colour_pair(rng)
    pattern = traits.get("pattern", "plain")
    arm = rng.uniform(0.24, 0.33)

    def paint(u: Array, v: Array) -> Array:
        if pattern == "plain":
            return np.broadcast_to(first, (*u.shape, 3))
        return mix(first, second, np.sin((u + v) * 10) > 0)

    def outline(u: Array, v: Array) -> Array:
        return np.minimum(_rectangle(u, v, arm, 0.92), _rectangle(u, v, 0.92, arm))

    return Figure(outline, paint, tilt=np.pi)


def star(rng: Rng, traits: Traits) -> Figure:
    """Five points and a round heart of another colour."""
    first, second = colour_pair(rng)
    notch = rng.uniform(0.42, 0.52)
    fifth = 2 * np.pi / 5
    tip, inner = np.array([0.98, 0.0]), notch * np.array([np.cos(fifth / 2), np.sin(fifth / 2)])
    normal = np.array([inner[1] - tip[1], tip[0] - inner[0]])
    normal /= np.linalg.norm(normal)

    def outline(u: Array, v: Array) -> Array:
        radius, angle = np.hypot(u, v), np.arctan2(u, -v)
        folded = np.abs(angle - fifth * np.round(angle / fifth))
        x, y = radius * np.cos(folded), radius * np.sin(folded)
        return (x - tip[0]) * normal[0] + (y - tip[1]) * normal[1]

    return Figure(
        outline, lambda u, v: mix(first, second, np.hypot(u, v) < 0.6 * notch), tilt=np.pi
    )


def butterfly(rng: Rng, traits: Traits) -> Figure:
    """Two pairs of wings; traits: `bands` (1 to 4 dark bands), `hind` (size of the hind wings)."""
    first, second = colour_pair(rng, traits.get("hue"))
    bands = traits.get("bands", rng.integers(1, 5))
    hind = traits.get("hind", rng.uniform(0.5, 1.05)) * rng.uniform(0.95, 1.05)
    sweep, width = rng.normal(-0.45, 0.06), rng.uniform(0.3, 0.36)
    cos, sin = np.cos(sweep), np.sin(sweep)

    def wings(u: Array, v: Array) -> Array:
        a, x, y = np.abs(u), np.abs(u) - 0.46, v + 0.3
        fore = _ellipse(x * cos + y * sin, y * cos - x * sin, 0.5, width)
        rear = _ellipse(a - 0.36 * hind, v - 0.36 * hind, 0.38 * hind, 0.44 * hind)
        return np.minimum(fore, rear)

    def body(u: Array, v: Array) -> Array:
        return np.minimum(
            _ellipse(u, v - 0.05, 0.085, 0.55),
            _segment(np.abs(u), v, (0.02, -0.45), (0.22, -0.85), 0.025),
        )

    def paint(u: Array, v: Array) -> Array:
        reach = np.hypot(u, v * 1.1)
        weight = (np.sin(reach * np.pi * (bands + 0.4) * 1.05 - 0.6) > 0.35) | (wings(u, v) > -0.06)
        return mix(mix(first, second, weight), rgb(0.12, 0.09, 0.08), body(u, v) < 0)

    return Figure(lambda u, v: np.minimum(wings(u, v), body(u, v)), paint, tilt=0.6)


def beetle(rng: Rng, traits: Traits) -> Figure:
    """Wing cases, thorax, head, six legs; traits: `spots` (rows of them, 0 = lines), `width`."""
    first, second = colour_pair(rng, traits.get("hue"))
    spots = traits.get("spots", rng.integers(0, 4))
    width = traits.get("width", rng.uniform(0.4, 0.64)) * rng.uniform(0.95, 1.05)
    legs = [(-0.3, -0.55), (0.1, 0.15), (0.45, 0.7)]

    def case(u: Array, v: Array) -> Array:
        return _ellipse(u, v - 0.18, width, 0.66)

    def front(u: Array, v: Array) -> Array:
        return np.minimum(
            _ellipse(u, v + 0.48, width * 0.72, 0.2), _ellipse(u, v + 0.68, width * 0.4, 0.18)
        )

    def outline(u: Array, v: Array) -> Array:
        a = np.abs(u)
        inner, outer = width * 0.6, min(width + 0.32, 0.82)
        limbs = [_segment(a, v, (inner, low), (outer, high), 0.04) for low, high in legs]
        return np.minimum.reduce([case(u, v), front(u, v), *limbs])

    def paint(u: Array, v: Array) -> Array:
        a = np.abs(u)
        if spots:
            step = 1.0 / spots
            rows = (v + 0.35) / step
            centre = (np.floor(rows) + 0.5) * step - 0.35
            marks = np.hypot(a - width * 0.45, v - centre) < min(0.42 * step, width * 0.3)
        else:
            marks = np.abs(np.sin(a / width * np.pi * 2.2)) < 0.4
        image = mix(first, second, marks | (a < 0.03))
        black = rgb(0.1, 0.08, 0.09)
        return mix(image, black, (case(u, v) > 0) | (front(u, v) < -0.02) & (v < -0.36))

    return Figure(outline, paint, bulge=0.7, tilt=0.6)


def leaf(rng: Rng, traits: Traits) -> Figure:
    """Blade on a stem; traits: `lobes` (0 = smooth rim), `width`."""
    first, second = colour_pair(rng, traits.get("hue"))
    lobes = traits.get("lobes", rng.integers(0, 6))
    width = traits.get("width", rng.uniform(0.32, 0.64)) * rng.uniform(0.93, 1.07)
    slope, veins = rng.uniform(0.7, 1.1), rng.uniform(9, 11)

    def blade(u: Array, v: Array) -> Array:
        t = np.clip((v + 0.12) / 0.84, -1, 1)
        half = width * (1 - t * t) ** 0.8 * (1 + 0.25 * t)
        if lobes:
            half = half * (0.78 + 0.3 * np.cos(t * np.pi * lobes))
        return np.maximum(np.abs(u) - half, np.abs(v + 0.12) - 0.84) * 0.8

    def outline(u: Array, v: Array) -> Array:
        return np.minimum(blade(u, v), _segment(u, v, (0, 0.6), (0.06, 0.97), 0.04))

    def paint(u: Array, v: Array) -> Array:
        a = np.abs(u)
        vein = smoothstep(0.8, 0.95, np.cos((v + a * slope) * veins))
        weight = np.maximum(vein * 0.8, a < 0.035)
        return mix(first, second, weight)

    return Figure(outline, paint, bulge=0.2, tilt=np.pi)


FIGURES: dict[str, Callable[[Rng, Traits], Figure]] = {
    "ball": ball,
    "box": box,
    "cube": cube,
    "target": target,
    "cross": cross,
    "star": star,
    "butterfly": butterfly,
    "beetle": beetle,
    "leaf": leaf,
}
