"""Pictures of the page: shrunk once, embedded while there is room, beside the page after that."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mae_bench.job import write_atomically
from mae_bench.records import Picture, Record

LARGEST_PICTURE_BYTES = 60_000
WIDEST_PICTURE_PX = 1100
BESIDE = "pictures"
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


@dataclass(frozen=True)
class Shown:
    """A picture in the page; `address` is a data URI, or a path relative to the page."""

    run: Record
    caption: str
    address: str
    key: str


@dataclass
class Album:
    """Hands out pictures.

    Args:
        runs: holds a folder per run id.
        cache: folder for shrunk pictures, by the hash of what they were made from.
        room: bytes that the page has for pictures, as they count in base64.
    """

    runs: Path
    cache: Path
    room: int
    beside: dict[str, bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def show(self, record: Record, picture: Picture) -> Shown | None:
        """Return the picture, or None (and remember it) when it cannot be read."""
        found = self._read(self.runs / record.id, picture.path)
        if found is None:
            self.left_out.append(f"{record.id}/{picture.path}")
            return None
        media, data, digest = found
        key = f"{record.id}-{digest[:8]}"
        encoded = base64.b64encode(data).decode()
        if len(encoded) <= self.room:
            self.room -= len(encoded)
            return Shown(record, picture.caption, f"data:{media};base64,{encoded}", key)
        name = f"{digest[:16]}.{media.rpartition('/')[2]}"
        self.beside[name] = data
        return Shown(record, picture.caption, f"{BESIDE}/{name}", key)

    def _read(self, folder: Path, name: str) -> tuple[str, bytes, str] | None:
        """Media type, content and hash of a picture inside the run's folder; shrunk when large."""
        path = (folder / name).resolve()
        media = MEDIA_TYPES.get(path.suffix.lower())
        if media is None or not path.is_relative_to(folder.resolve()) or not path.is_file():
            return None
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if len(data) <= LARGEST_PICTURE_BYTES:
            return media, data, digest
        small = self._shrunk(data, digest)
        return None if small is None else ("image/jpeg", small, digest)

    def _shrunk(self, data: bytes, digest: str) -> bytes | None:
        path = self.cache / f"{digest}-{WIDEST_PICTURE_PX}.jpg"
        with suppress(OSError):
            return path.read_bytes()
        small = shrink(data)
        if small is not None:
            with suppress(OSError):  # a work folder that cannot be written to can be reported on
                self.cache.mkdir(parents=True, exist_ok=True)
                write_atomically(path, small)
        return small


def shrink(data: bytes) -> bytes | None:
    """Return a picture as a small JPEG; None if it is none that can be read."""
    from PIL import Image, UnidentifiedImageError  # not every page has a large picture

    try:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None
    picture.thumbnail((WIDEST_PICTURE_PX, WIDEST_PICTURE_PX * 2))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80, optimize=True)
    return file.getvalue()


def write_beside(pictures: Mapping[str, bytes], out: Path) -> None:
    """Write the pictures that the page has no room for, each whole; those that are there stay."""
    if pictures:
        (out / BESIDE).mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        path = out / BESIDE / name
        if not path.is_file():
            write_atomically(path, data)
