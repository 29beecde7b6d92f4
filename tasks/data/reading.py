"""Image files -> pixels: whatever the file is, upright 8-bit RGB or one clear error.

Grey, CMYK and palette images are converted; of 16 bits the upper 8 are kept; transparency is
dropped; of an animation the first frame counts; the camera's orientation is applied.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mae_bench.errors import UserError
from tasks.data.formats import Member, in_unicode

# What damaged files make Pillow raise.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
ORIENTATION = 0x0112  # of EXIF; from 5 on width and height change places


class BrokenImage(UserError):
    """A file that is no image, or is damaged; the message has its path."""


def open_image(place: Path | Member) -> Image.Image:
    """Open a file (use it in `with`) without decoding it: size and format are known at once.

    Raises:
        BrokenImage: no such file, or no image.
    """
    try:
        # At once: Pillow reads a file in small pieces.
        content = place.read() if isinstance(place, Member) else Path(place).read_bytes()
        image = Image.open(io.BytesIO(content))
    except DAMAGE as error:
        raise BrokenImage(f"cannot read image {in_unicode(place)}: {cause(error)}") from None
    image.place = place
    return image


def decode(image: Image.Image, smallest: tuple[int, int] | None = None) -> Image.Image:
    """Upright RGB of an image that was opened; one that is decoded already is returned as it is.

    Args:
        smallest: width and height, as stored, that are enough: a JPEG is then decoded at 1/2, 1/4
            or 1/8 of its size if that is no smaller.

    Raises:
        BrokenImage: the file is damaged, or its pixels have no agreed range.
    """
    if not isinstance(image, ImageFile.ImageFile):
        return image
    try:
        if smallest is not None:
            image.draft(None, smallest)
        return _eight_bits(ImageOps.exif_transpose(image)).convert("RGB")
    except DAMAGE as error:
        place = getattr(image, "place", image.filename)
        raise BrokenImage(f"cannot read image {in_unicode(place)}: {cause(error)}") from None


def cause(error: Exception) -> str:
    """Why a file cannot be read; Pillow names an object of Python's where it knows no format."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image, or of a format that Pillow does not know"
    return str(error) or type(error).__name__


def read_image(place: Path | Member) -> Image.Image:
    """Decode a file to upright RGB.

    Raises:
        BrokenImage: the file is not an image or is damaged; the message has its path.
    """
    with open_image(place) as image:
        return decode(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; store it with 8 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("more than 16 bits a pixel; store it with 8 bits")
        # Pillow would clip at 255, which makes most of such an image white.
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image


def is_turned(image: Image.Image) -> bool:
    """Whether the camera's orientation makes width and height change places."""
    return _orientation(image) >= 5


def is_plain(image: Image.Image) -> bool:
    """Whether decoding alone gives upright 8-bit RGB."""
    return image.mode == "RGB" and _orientation(image) == 1


def _orientation(image: Image.Image) -> int:
    """As in EXIF, from 1 (upright) to 8."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except DAMAGE:
        return 8  # decoding will say what is wrong
