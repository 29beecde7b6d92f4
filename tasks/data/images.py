"""Image files -> tensors: reading, and the datasets of pretraining and classification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from mae_bench.errors import UserError, unknown
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


def training_transform(
    size: int,
    scale: Sequence[float],
    rand_augment: str = "",
    erasing: float = 0.0,
    augmentation: str = "random",
    crop_ratio: float = 224 / 256,
) -> Transform:
    """Random resized crop (bicubic), horizontal flip, ImageNet normalisation, and options.

    Args:
        rand_augment: timm's description, as "rand-m9-mstd0.5-inc1" (two operations of magnitude 9
            with deviation 0.5, all growing with the magnitude); "" for none.
        erasing: probability that a random box is filled with noise.
        augmentation: "none" (as in evaluation), "fixed" (crop of one size, flip), "random", or
            "random+jitter" (of the colours).
        crop_ratio: of fixed crops: their side to the image's short side.

    Raises:
        UserError: a description that timm does not know, an unknown augmentation.

    Source: facebookresearch/mae main_pretrain.py (scale 0.2-1), main_linprobe.py, util/datasets.py
    (fine-tuning's RandAugment and erasing).
    """
    steps = _crop(size, scale, augmentation, crop_ratio)
    if rand_augment:
        steps.append(_rand_augment(rand_augment, size))
    steps.append(normalise)
    if erasing:
        steps.append(RandomErasing(erasing, mode="pixel", device="cpu"))
    return transforms.Compose(steps)


def _resize(size: int, crop_ratio: float) -> transforms.Resize:
    """Short side to size / crop_ratio, bicubic."""
    return transforms.Resize(
        round(size / crop_ratio), interpolation=transforms.InterpolationMode.BICUBIC
    )


def _crop(size: int, scale: Sequence[float], augmentation: str, crop_ratio: float) -> list[Any]:
    """Steps of one row of the MAE paper's Table 1e."""
    flip, resize = transforms.RandomHorizontalFlip(), _resize(size, crop_ratio)
    random = [RandomResizedCropAndInterpolation(size, tuple(scale), interpolation="bicubic"), flip]
    steps = {
        "none": [resize, transforms.CenterCrop(size)],
        "fixed": [resize, transforms.RandomCrop(size), flip],
        "random": random,
        # The paper gives no strength: that of BEiT's pretraining, which has no hue either.
        "random+jitter": [*random, transforms.ColorJitter(0.4, 0.4, 0.4)],
    }
    if augmentation not in steps:
        raise unknown("augmentation", augmentation, steps)
    return steps[augmentation]


def _rand_augment(description: str, size: int) -> Callable[[Image.Image], Image.Image]:
    hints = {
        "translate_const": int(size * 0.45),
        "img_mean": tuple(round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN),
        "interpolation": Image.Resampling.BICUBIC,
    }
    try:
        return rand_augment_transform(description, hints)
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(
            f"RandAugment description {description!r} is not timm's ({error}); one is "
            "rand-m9-mstd0.5-inc1"
        ) from None


def evaluation_transform(size: int, crop_ratio: float = 224 / 256) -> Transform:
    """Resize the short side to size / crop_ratio (bicubic), centre crop, normalise.

    Source: facebookresearch/mae util/datasets.py.
    """
    return transforms.Compose([_resize(size, crop_ratio), transforms.CenterCrop(size), normalise])


def labelled_sets(
    name: str, data_root: Path, data: Mapping[str, Any]
) -> tuple[ImageDataset, ImageDataset, list[str]]:
    """Training set, validation set and class names of a dataset.

    Args:
        data: the `data` section of a recipe: image_size, crop_scale, crop_ratio (of evaluation),
            cache, val_images (only the first so many; None for all); perhaps augmentation,
            rand_augment, erasing.
    """
    train, val = (classification_split(name, data_root, split) for split in ("train", "val"))
    size, limit = data["image_size"], data["val_images"]
    augmentation = training_transform(
        size,
        data["crop_scale"],
        data.get("rand_augment", ""),
        data.get("erasing", 0.0),
        data.get("augmentation", "random"),
        data["crop_ratio"],
    )
    train_set = ImageDataset(train.paths, train.labels, augmentation, data["cache"])
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
