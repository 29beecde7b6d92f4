"""What the checks of each kind of dataset have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.data.catalog import Dataset
from tasks.data.formats import Files, Member, Tell
from tasks.data.verify.scan import Scan

Place = Path | Member


def texts(places: Sequence[Place]) -> list[str]:
    """Paths as text."""
    return [*places.texts()] if isinstance(places, Files) else [str(place) for place in places]


class Kind:
    """One dataset while it is looked at; a class for each kind of split.

    Args:
        home: the dataset's own folder.
        tell: hears of each fault.
    """

    def __init__(self, dataset: Dataset, home: Path, tell: Tell):
        self.dataset, self.home, self.tell = dataset, home, tell
        self.splits: dict[str, Any] = {}

    def add(self, split: str, found: Any) -> dict[str, Any]:
        """Take a split that was read; returns facts: images, classes, histogram, ..."""
        raise NotImplementedError

    def check(self) -> None:
        """Tell what lists and jsons have wrong, once all splits that can be read are there."""

    def images(self, split: str) -> Sequence[Place]:
        """Image files of a split; none of one that could not be read."""
        raise NotImplementedError

    def maps(self, split: str) -> Sequence[Path]:
        """Label maps of a split."""
        return ()

    def saw_image(self, split: str, place: Place, scan: Scan) -> None:
        """Tell what is wrong with an image that could be read."""

    def saw_map(self, split: str, place: Place, scan: Scan) -> None:
        """Tell what is wrong with a map that could be read; all images of the split are known."""

    def finish(self, split: str) -> dict[str, Any]:
        """Tell what only all files together show; returns further facts."""
        return {}
