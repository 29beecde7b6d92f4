"""Random crops of image files that are decoded no larger than needed."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageFile
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg

from tasks.data.reading import decode, is_plain, is_turned


class RandomCrop(RandomResizedCropAndInterpolation):
    """timm's random resized crop, of files that are decoded no larger than the crop needs.

    The box is drawn as ever, on the size in the file's header. Where it has at least twice the
    pixels it is resized to, along both sides, the JPEG decoder leaves the finest frequencies out.
    Other upright RGB files are decoded and resized by torch: the same pixels as Pillow's, the same
    resize up to rounding, in half the time. What is decoded already is resized by Pillow.
    """

    def __call__(self, image: Image.Image) -> Image.Image | Tensor:
        """An image, decoded or only opened -> crop of the final size.

        Returns:
            an image, or (3, H, W) uint8; `as_image` makes an image of either.
        """
        lazy = isinstance(image, ImageFile.ImageFile)
        if not lazy or image.format != "JPEG" or is_turned(image):
            return super().__call__(decode(image))
        width, height = image.size
        top, left, rows, columns = self.get_params(image, self.scale, self.ratio)
        enough = (
            math.ceil(width * self.size[1] / columns),
            math.ceil(height * self.size[0] / rows),
        )
        image.draft(None, enough)
        if image.size == (width, height) and is_plain(image):
            pixels = _decode(image)[:, top : top + rows, left : left + columns]
            return interpolate(pixels[None], self.size, mode="bicubic", antialias=True)[0]
        image = decode(image)
        x, y = image.width / width, image.height / height
        area = (left * x, top * y, (left + columns) * x, (top + rows) * y)
        return image.resize(self.size[::-1], Image.Resampling.BICUBIC, box=area)


def _decode(image: Image.Image) -> Tensor:
    """Pixels (3, H, W) of an opened JPEG that needs no conversion, uint8."""
    content = torch.frombuffer(bytearray(image.fp.getvalue()), dtype=torch.uint8)
    try:
        return decode_jpeg(content, ImageReadMode.RGB)
    except RuntimeError:  # Pillow bears some damage, and says better what is wrong
        return torch.from_numpy(np.array(decode(image))).permute(2, 0, 1)


def as_image(pixels: Image.Image | Tensor) -> Image.Image:
    """Image of a crop, for what works on images only."""
    if isinstance(pixels, Tensor):
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return pixels


class SingleDrawCrop(RandomCrop):
    """Random resized crop from one draw of area and shape, cut to the image where it is larger.

    The usual one draws up to ten times until a box fits. Source: arXiv:2111.06377 Table 10 (its TF
    code), facebookresearch/mae util/crop.py, after BYOL's.
    """

    @staticmethod
    def get_params(
        image: Image.Image, scale: tuple[float, float], ratio: tuple[float, float]
    ) -> tuple[int, int, int, int]:
        """Draw a box: top, left, rows, columns."""
        width, height = image.size
        area = width * height * _uniform(*scale)
        shape = math.exp(_uniform(*(math.log(side) for side in ratio)))
        columns = max(1, min(round(math.sqrt(area * shape)), width))
        rows = max(1, min(round(math.sqrt(area / shape)), height))
        top, left = (int(torch.randint(room + 1, ())) for room in (height - rows, width - columns))
        return top, left, rows, columns


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))
