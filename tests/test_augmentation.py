"""The augmentations of MAE's Table 1e."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from mae_bench.errors import UserError
from tasks.data.images import denormalise, evaluation_transform, training_transform


@pytest.fixture
def image():
    rows, columns = np.mgrid[:90, :120]
    return Image.fromarray(np.stack([rows * 2, columns * 2, rows + columns], 2).astype(np.uint8))


def draws(image, augmentation, count=8):
    """Tensors of `count` draws, each after a seed of its own."""
    transform = training_transform(32, (0.2, 1.0), augmentation=augmentation, crop_ratio=0.8)
    tensors = []
    for seed in range(count):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        tensors.append(transform(image))
    return tensors


def test_none_is_the_evaluation_transform(image):
    expected = evaluation_transform(32, 0.8)(image)
    assert all(torch.equal(tensor, expected) for tensor in draws(image, "none"))


def test_fixed_is_a_window_of_the_resized_image_or_of_its_mirror(image):
    # The short side becomes 32 / 0.8 = 40 px, and every crop is a window of that picture.
    resized = np.asarray(image.resize((53, 40), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    windows = np.lib.stride_tricks.sliding_window_view(resized, (32, 32, 3)).reshape(-1, 32, 32, 3)
    found = []
    for tensor in draws(image, "fixed"):
        crop = denormalise(tensor[None])[0].permute(1, 2, 0).numpy()
        distance = [np.abs(windows - c).max(axis=(1, 2, 3)).min() for c in (crop, crop[:, ::-1])]
        assert min(distance) < 1e-5
        found.append((int(np.argmin(distance)), round(float(crop.mean()), 4)))
    assert {flipped for flipped, _ in found} == {0, 1}
    assert len({mean for _, mean in found}) > 2


def test_random_is_the_default_and_draws_what_it_always_did(image):
    torch.manual_seed(0)
    default = training_transform(32, (0.2, 1.0))
    assert len(default.transforms) == 3
    assert [type(step).__name__ for step in default.transforms[:2]] == [
        "RandomCrop",
        "RandomHorizontalFlip",
    ]


def test_jitter_changes_colours_within_its_strength():
    grey = Image.new("RGB", (64, 64), (100, 100, 100))
    values = [float(denormalise(t[None]).mean()) * 255 for t in draws(grey, "random+jitter", 40)]
    assert all(100 * 0.6 - 1 <= value <= 100 * 1.4 + 1 for value in values)
    assert min(values) < 75 and max(values) > 125
    plain = draws(grey, "random", 2)
    assert float(denormalise(plain[0][None]).mean()) * 255 == pytest.approx(100, abs=0.01)


def test_unknown_augmentation():
    with pytest.raises(UserError, match=r"unknown augmentation 'randon'\. Did you mean random"):
        training_transform(32, (0.2, 1.0), augmentation="randon")


def test_none_from_the_command_line(image):
    one, other = (draws(image, augmentation, 1)[0] for augmentation in (None, "none"))
    assert torch.equal(one, other)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.2), (0.2, 1.5), (0.2,), (float("nan"), 1.0)])
def test_scale_that_is_no_share_of_an_image(scale):
    with pytest.raises(UserError, match=r"data\.crop_scale .*as in \[0\.2, 1\.0\]"):
        training_transform(32, scale)


def test_rand_augment_bears_its_largest_magnitude(image):
    """At 10, which the deviation of published recipes reaches, posterizing keeps no bit."""
    augment = training_transform(32, (0.2, 1.0), "rand-m10-inc1").transforms[-2]
    for operation in augment.ops:
        operation.prob = 1.0
        is_black = operation(image).getbbox() is None
        assert is_black == (operation.name == "PosterizeIncreasing")
