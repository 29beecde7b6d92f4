"""Random crops of image files that are decoded no larger than needed."""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageFile
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import functional

from tasks.data.reading import decode, is_turned


class RandomCrop(RandomResizedCropAndInterpolation):
    """timm's random resized crop, of files that are decoded no larger than the crop needs.

    The box is drawn as ever, on the size in the file's header. Where it has at least twice the
    pixels it is resized to, along both sides, the JPEG decoder leaves the finest frequencies out.
    """

    def __call__(self, image: Image.Image) -> Image.Image:
        """An image, decoded or only opened -> crop of the final size."""
        lazy = isinstance(image, ImageFile.ImageFile)
        if not lazy or image.format != "JPEG" or is_turned(image):
            return super().__call__(decode(image))
        width, height = image.size
        top, left, rows, columns = self.get_params(image, self.scale, self.ratio)
        enough = (
            math.ceil(width * self.size[1] / columns),
            math.ceil(height * self.size[0] / rows),
        )
        image = decode(image, enough)
        if image.size == (width, height):
            box = (top, left, rows, columns)
            return functional.resized_crop(image, *box, self.size, self.interpolation)
        x, y = image.width / width, image.height / height
        area = (left * x, top * y, (left + columns) * x, (top + rows) * y)
        return image.resize(self.size[::-1], Image.Resampling.BICUBIC, box=area)


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
