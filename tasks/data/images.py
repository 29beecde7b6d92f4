"""Image files -> tensors: reading, and the datasets of pretraining and classification."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.auto_augment import posterize, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from mae_bench.errors import UserError, unknown
from tasks.data import classification_split, get_dataset
from tasks.data.crops import RandomCrop, SingleDrawCrop, as_image
from tasks.data.formats import Member, in_unicode
from tasks.data.reading import BrokenImage, decode, open_image, read_image

Transform = Callable[[Image.Image], Tensor]


class BrokenImages:
    """Which images of a set could not be read, known to all workers of a loader.

    Args:
        limit: how many may be left out.
    """

    def __init__(self, places: Sequence[Path | Member], limit: int):
        self._places, self.limit = places, limit
        self._flags = torch.zeros(len(places), dtype=torch.bool).share_memory_()

    @property
    def places(self) -> list[str]:
        """Those found so far."""
        return [in_unicode(self._places[i]) for i in self._flags.nonzero().flatten().tolist()]

    def add(self, index: int, error: BrokenImage) -> None:
        """Report one more.

        Raises:
            UserError: more than the limit, with the list.
        """
        if self._flags[index]:
            return
        self._flags[index] = True
        found = self.places
        if len(found) > min(self.limit, len(self._places) - 1):
            raise UserError(
                f"{error}; that is image {len(found)} of {len(self._places)} that cannot be read, "
                f"data.max_broken allows {self.limit}. Repair or remove: {', '.join(found[:20])}"
                + (", ..." if len(found) > 20 else "")
            )
        print(f"{error}; left out, the next one takes its place", flush=True)


class ImageDataset(Dataset):
    """Labelled images; an item is {"images": (3, H, W) float, "labels": int}.

    Args:
        places: image files, or members of tar archives.
        transform: of an image that is decoded or only opened (see `reading.decode`).
        cache: keep decoded images in memory (for sets that are small, such as the miniature).
        max_broken: how many unreadable images are reported and left out, each replaced by the
            image behind it; the next one stops the run.
    """

    def __init__(
        self,
        places: Sequence[Path | Member],
        labels: Sequence[int],
        transform: Transform,
        cache: bool = False,
        max_broken: int = 0,
    ):
        self.places, self.labels, self.transform = places, list(labels), transform
        self.broken = BrokenImages(self.places, max_broken) if max_broken else None
        self._cache: dict[int, Image.Image] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        while True:
            try:
                return {"images": self._image(index), "labels": self.labels[index]}
            except BrokenImage as error:
                if self.broken is None:
                    raise
                self.broken.add(index, error)
            index = (index + 1) % len(self)

    def _image(self, index: int) -> Tensor:
        if self._cache is None:
            with open_image(self.places[index]) as image:
                return self.transform(image)
        if index not in self._cache:
            self._cache[index] = read_image(self.places[index])
        return self.transform(self._cache[index])


def normalise(image: Image.Image | Tensor) -> Tensor:
    """RGB image, or (3, H, W) uint8 -> (3, H, W) float32, ImageNet mean and deviation removed."""
    pixels = image
    if not isinstance(image, Tensor):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(_SCALE).sub_(_SHIFT)


_MEAN, _DEVIATION = (
    np.array(values, np.float32).reshape(3, 1, 1)
    for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
)
_SCALE = torch.from_numpy(1 / (255 * _DEVIATION))
_SHIFT = torch.from_numpy(_MEAN / _DEVIATION)


def training_transform(
    size: int,
    scale: Sequence[float],
    rand_augment: str = "",
    erasing: float = 0.0,
    augmentation: str | None = "random",
    crop_ratio: float = 224 / 256,
) -> Transform:
    """Random resized crop (bicubic), horizontal flip, ImageNet normalisation, and options.

    Args:
        rand_augment: timm's description, as "rand-m9-mstd0.5-inc1" (two operations of magnitude 9
            with deviation 0.5, all growing with the magnitude); "" for none.
        erasing: probability that a random box is filled with noise.
        augmentation: "none" (as in evaluation), "fixed" (crop of one size, flip), "random",
            "random+jitter" (of the colours), or "single-draw" (linear probes; `SingleDrawCrop`).
        crop_ratio: of fixed crops: their side to the image's short side.

    Raises:
        UserError: a description that timm does not know, an unknown augmentation, a scale that is
            no share of an image.

    Source: facebookresearch/mae main_pretrain.py (scale 0.2-1), main_linprobe.py, util/datasets.py
    (fine-tuning's RandAugment and erasing).
    """
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(
            f"data.crop_scale {list(scale)}: the least and the largest share of an image's area "
            "are needed, as in [0.2, 1.0]"
        )
    # On the command line the word "none" is read as None.
    steps = _crop(size, scale, augmentation or "none", crop_ratio)
    if rand_augment:
        steps += [as_image, _rand_augment(rand_augment, size)]
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
    random = [RandomCrop(size, tuple(scale), interpolation="bicubic"), flip]
    steps = {
        "none": [decode, resize, transforms.CenterCrop(size)],
        "fixed": [decode, resize, transforms.RandomCrop(size), flip],
        "random": random,
        "single-draw": [SingleDrawCrop(size, tuple(scale), interpolation="bicubic"), flip],
        # The paper gives no strength: that of BEiT's pretraining, which has no hue either.
        "random+jitter": [*random, as_image, transforms.ColorJitter(0.4, 0.4, 0.4)],
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
        augment = rand_augment_transform(description, hints)
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(
            f"RandAugment description {description!r} is not timm's ({error}); one is "
            "rand-m9-mstd0.5-inc1"
        ) from None
    for operation in augment.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return augment


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's, also of no bits at all: a black image, as ever, where Pillow 13 raises an error."""
    return posterize(image, bits, **options) if bits else Image.new(image.mode, image.size)


def evaluation_transform(size: int, crop_ratio: float = 224 / 256) -> Transform:
    """Resize the short side to size / crop_ratio (bicubic), centre crop, normalise.

    Source: facebookresearch/mae util/datasets.py.
    """
    return transforms.Compose([
        decode,
        _resize(size, crop_ratio),
        transforms.CenterCrop(size),
        normalise,
    ])


def labelled_sets(
    name: str, data_root: Path, data: Mapping[str, Any]
) -> tuple[ImageDataset, ImageDataset, list[str]]:
    """Training set, validation set and class names of a dataset.

    Args:
        data: the `data` section of a recipe: image_size, crop_scale, crop_ratio (of evaluation),
            cache, val_images (only the first so many; None for all); perhaps augmentation,
            rand_augment, erasing, max_broken.
    """
    train, val = (classification_split(name, data_root, split) for split in ("train", "val"))
    if train.classes != val.classes:
        raise UserError(
            f"dataset {name!r}: train has {len(train.classes)} classes and val {len(val.classes)}, "
            "or others; labels would mean different things. `mae-bench data verify` lists them"
        )
    size, limit = data["image_size"], data["val_images"]
    augmentation = training_transform(
        size,
        data["crop_scale"],
        data.get("rand_augment", ""),
        data.get("erasing", 0.0),
        data.get("augmentation", "random"),
        data["crop_ratio"],
    )
    # A user's own set may be of any size; only what this project draws is known to be small.
    cache = data["cache"] and get_dataset(name).spec is not None
    train_set = ImageDataset(
        train.paths, train.labels, augmentation, cache, data.get("max_broken", 0)
    )
    # A limit takes images spread over the set, which is sorted by class.
    some = range(0, len(val.paths), max(1, len(val.paths) // (limit or len(val.paths))))[:limit]
    if get_dataset(name).spec is None:
        # Nothing may be left out of a score: better to find out now than when the training is done.
        check_images([val.paths[index] for index in some])
    val_set = ImageDataset(
        [val.paths[i] for i in some],
        [val.labels[i] for i in some],
        evaluation_transform(size, data["crop_ratio"]),
    )
    return train_set, val_set, list(train.classes)


def check_images(places: Sequence[Path | Member]) -> None:
    """Read files to their ends, as threads and reduced decoding can.

    Raises:
        BrokenImage: the first that cannot be used.
    """

    def look(place: Path | Member) -> None:
        with open_image(place) as image:
            decode(image, (1, 1))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(look, places):
            pass


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
