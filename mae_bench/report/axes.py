"""Scales of charts: round ticks, and where a value lies. Units are SVG's, origin top left."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

NICE_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Frame:
    """The area of a chart with an x and a y axis, in a drawing of `width` x `height`."""

    x: tuple[float, float]
    y_scale: tuple[float, ...]
    width: float
    height: float
    left: float = 52.0
    right: float = 12.0
    top: float = 10.0
    bottom: float = 26.0

    def at_x(self, value: float) -> float:
        low, high = self.x
        return round(self.left + (value - low) / (high - low) * self.inner_width, 1)

    def at_y(self, value: float) -> float:
        share = (value - self.y_scale[0]) / (self.y_scale[-1] - self.y_scale[0])
        return round(self.top + (1 - share) * (self.height - self.top - self.bottom), 1)

    @property
    def inner_width(self) -> float:
        return self.width - self.left - self.right

    @property
    def x_ticks(self) -> tuple[Tick, ...]:
        low, high = self.x
        inside = [value for value in ticks(low, high) if low <= value <= high]
        return tuple(Tick(self.at_x(value), f"{value:g}") for value in inside)

    @property
    def y_ticks(self) -> tuple[Tick, ...]:
        return tuple(Tick(self.at_y(value), f"{value:g}") for value in self.y_scale)

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        """An SVG path through these points."""
        return "M" + "L".join(f"{self.at_x(x)} {self.at_y(y)}" for x, y in points)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round, evenly spaced values that cover [low, high]; at most `most` steps."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    magnitude = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(
        nice * magnitude
        for nice in (*NICE_STEPS, 20.0)
        if math.ceil(high / (nice * magnitude)) - math.floor(low / (nice * magnitude)) <= most
    )
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def spanned(values: Iterable[float]) -> tuple[float, float]:
    """Lowest and highest value, apart even where all are the same."""
    found = list(values)
    low, high = min(found), max(found)
    return (low, high) if high > low else (low, low + (abs(low) or 1.0))
