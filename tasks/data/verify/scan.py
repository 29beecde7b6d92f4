"""Reading every file of a dataset once, in parallel: can it be decoded, what size, what content.

Decoding and hashing leave Python's lock, so threads suffice.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tasks.data.formats import Member
from tasks.data.maps import stored_values
from tasks.data.reading import DAMAGE, cause, is_turned

# Files that a thread takes at once, and how many such lots wait for each thread.
LOT, LOTS_AHEAD = 64, 4


class Scan(NamedTuple):
    """What one file is.

    Attributes:
        error: why it cannot be read, None if it can.
        missing: it is not there at all.
        size: width and height, upright; None if unknown.
        mode: Pillow's name of the pixel format.
        digest: of the file's content.
        histogram: value -> pixels, of a map; None for images, and if it has several channels.
    """

    error: str | None
    missing: bool = False
    size: tuple[int, int] | None = None
    mode: str = ""
    digest: bytes = b""
    histogram: dict[int, int] | None = None


def scan_image(place: Path | Member) -> Scan:
    """Read an image to its end.

    A JPEG is decoded in grey at an eighth of its size: that goes through all of its data, and what
    is cut off or damaged shows as it does at full size.
    """
    return _scan(place, is_map=False)


def scan_map(place: Path | Member) -> Scan:
    """Read a map and count its values."""
    return _scan(place, is_map=True)


def _scan(place: Path | Member, is_map: bool) -> Scan:
    try:
        content = place.read() if isinstance(place, Member) else place.read_bytes()
        digest = hashlib.sha256(content).digest()
        with Image.open(io.BytesIO(content)) as image:
            size = image.size[::-1] if not is_map and is_turned(image) else image.size
            mode = image.mode
            if not is_map:
                image.draft("L", (1, 1))
            histogram = _histogram(image) if is_map else None
            image.load()
    except FileNotFoundError:
        return Scan("there is no such file", missing=True)
    except DAMAGE as error:
        return Scan(cause(error))
    return Scan(None, False, size, mode, digest, histogram)


def _histogram(image: Image.Image) -> dict[int, int] | None:
    stored = stored_values(image)
    if stored is None:
        return None
    values, pixels = np.unique(stored, return_counts=True)
    return dict(zip(values.tolist(), pixels.tolist(), strict=True))


def scan(
    places: Sequence[Path | Member],
    look: Callable[[Path | Member], Scan] = scan_image,
    workers: int | None = None,
) -> Iterator[Scan]:
    """Look at every file; results in the order of `places`, few of them in memory at a time.

    Args:
        workers: threads; by default one for each core that this process may use.
    """
    workers = workers or len(os.sched_getaffinity(0))
    lots = (places[start : start + LOT] for start in range(0, len(places), LOT))
    with ThreadPoolExecutor(workers) as pool:

        def start(lot: Sequence[Path | Member]) -> Any:
            return pool.submit(lambda: [look(place) for place in lot])

        waiting = deque(start(lot) for lot in islice(lots, workers * LOTS_AHEAD))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(start(lot) for lot in islice(lots, 1))
