"""Image files -> tensors: reading, and the datasets of pretraining and classification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

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


def _to_tensor() -> list[Any]:
    return [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    ]


def training_transform(size: int, scale: Sequence[float]) -> Transform:
    """Random resized crop (bicubic), horizontal flip, ImageNet normalisation.

    Source: facebookresearch/mae main_pretrain.py (scale 0.2-1) and main_linprobe.py.
    """
    low, high = scale
    return v2.Compose([
        v2.RandomResizedCrop(
            size, scale=(low, high), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
        ),
        v2.RandomHorizontalFlip(),
        *_to_tensor(),
    ])


def evaluation_transform(size: int, crop_ratio: float = 224 / 256) -> Transform:
    """Resize the short side to size / crop_ratio (bicubic), centre crop, normalise.

    Source: facebookresearch/mae util/datasets.py.
    """
    short = round(size / crop_ratio)
    return v2.Compose([
        v2.Resize(short, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.CenterCrop(size),
        *_to_tensor(),
    ])


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
    val_set = ImageDataset(val.paths[:limit], val.labels[:limit], evaluation)
    return train_set, val_set, list(train.classes)


def denormalise(images: Tensor) -> Tensor:
    """Undo the ImageNet normalisation: (B, 3, H, W) -> the same in [0, 1] (not clipped)."""
    mean = images.new_tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
    std = images.new_tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
    return images * std + mean
