"""Image files -> tensors: reading, and the datasets of pretraining and classification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from mae_bench.errors import UserError
from tasks.data import classification_split

Transform = Callable[[Image.Image], Tensor]


def read_image(path: Path) -> Image.Image:
    """Decode a file to upright RGB.

    Raises:
        UserError: the file is not an image or is damaged; the message has its path.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise UserError(f"cannot read image {path}: {error}") from None


class ImageDataset(Dataset):
    """Labelled images; an item is {"images": (3, H, W) float, "labels": int}.

    Args:
        cache: keep decoded images in memory (for sets that are small, such as the miniature).
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        transform: Transform,
        cache: bool = False,
    ):
        self.paths, self.labels, self.transform = list(paths), list(labels), transform
        self._cache: dict[int, Image.Image] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"images": self.transform(self._image(index)), "labels": self.labels[index]}

    def _image(self, index: int) -> Image.Image:
        if self._cache is None:
            return read_image(self.paths[index])
        if index not in self._cache:
            self._cache[index] = read_image(self.paths[index])
        return self._cache[index]


def normalise(image: Image.Image) -> Tensor:
    """RGB image -> (3, H, W) float32, ImageNet mean and deviation removed."""
    array = np.asarray(image, dtype=np.float32) * _SCALE - _SHIFT
    return torch.from_numpy(array).permute(2, 0, 1)


_SCALE = 1 / (255 * np.array(IMAGENET_DEFAULT_STD, dtype=np.float32))
_SHIFT = np.array(IMAGENET_DEFAULT_MEAN, np.float32) / np.array(IMAGENET_DEFAULT_STD, np.float32)


def training_transform(size: int, scale: Sequence[float]) -> Transform:
    """Random resized crop (bicubic), horizontal flip, ImageNet normalisation.

    Source: facebookresearch/mae main_pretrain.py (scale 0.2-1) and main_linprobe.py.
    """
    crop = RandomResizedCropAndInterpolation(size, tuple(scale), interpolation="bicubic")
    flip = transforms.RandomHorizontalFlip()
    return transforms.Compose([crop, flip, normalise])


def evaluation_transform(size: int, crop_ratio: float = 224 / 256) -> Transform:
    """Resize the short side to size / crop_ratio (bicubic), centre crop, normalise.

    Source: facebookresearch/mae util/datasets.py.
    """
    bicubic = transforms.InterpolationMode.BICUBIC
    resize = transforms.Resize(round(size / crop_ratio), interpolation=bicubic)
    return transforms.Compose([resize, transforms.CenterCrop(size), normalise])


def labelled_sets(
    name: str, data_root: Path, data: Mapping[str, Any]
) -> tuple[ImageDataset, ImageDataset, list[str]]:
    """Training set, validation set and class names of a dataset.

    Args:
        data: the `data` section of a recipe: image_size, crop_scale, crop_ratio (of evaluation),
            cache, val_images (only the first so many; None for all).
    """
    train, val = (classification_split(name, data_root, split) for split in ("train", "val"))
    size, limit = data["image_size"], data["val_images"]
    train_set = ImageDataset(
        train.paths, train.labels, training_transform(size, data["crop_scale"]), data["cache"]
    )
    evaluation = evaluation_transform(size, data["crop_ratio"])
    # A limit takes images spread over the set, which is sorted by class.
    some = range(0, len(val.paths), max(1, len(val.paths) // (limit or len(val.paths))))[:limit]
    val_set = ImageDataset([val.paths[i] for i in some], [val.labels[i] for i in some], evaluation)
    return train_set, val_set, list(train.classes)


def denormalise(images: Tensor) -> Tensor:
    """Undo the ImageNet normalisation: (B, 3, H, W) -> the same in [0, 1] (not clipped)."""
    mean = images.new_tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
    std = images.new_tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
    return images * std + mean


def normalise_batch(images: Tensor) -> Tensor:
    """Inverse of `denormalise`: (B, 3, H, W) in [0, 1] -> ImageNet mean and deviation removed."""
    mean = images.new_tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
    std = images.new_tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
    return (images - mean) / std
