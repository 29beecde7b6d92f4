"""Odd, damaged and large image files: one rule for each, and the decoding of crops."""

import io
import os
import random
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_datasets import make
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from mae_bench.errors import UserError
from tasks.data.crops import RandomCrop, as_image
from tasks.data.formats import Member
from tasks.data.images import (
    ImageDataset,
    evaluation_transform,
    labelled_sets,
    training_transform,
)
from tasks.data.reading import BrokenImage, decode, open_image, read_image


def smooth(width: int, height: int) -> Image.Image:
    """A picture with gradients and edges, different at each corner."""
    y, x = np.mgrid[:height, :width] / (height, width)[0]
    channels = [np.sin(6 * x) * 100 + 120, np.cos(5 * y) * 100 + 120, 200 * (x > y) + 20]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def save(path, image, *arguments, **options):
    image.save(path, *arguments, **options)
    return path


# --- odd files -------------------------------------------------------------------------------


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    colours = smooth(20, 10)
    grey = read_image(save(tmp_path / "l.png", colours.convert("L")))
    assert np.array_equal(np.asarray(grey), np.stack([np.asarray(colours.convert("L"))] * 3, -1))
    clear = colours.copy()
    clear.putalpha(128)
    for name, image in {"rgba.png": clear, "la.png": colours.convert("LA")}.items():
        read = read_image(save(tmp_path / name, image))
        assert read.mode == "RGB" and read.size == (20, 10)
    assert np.array_equal(np.asarray(read_image(tmp_path / "rgba.png")), np.asarray(colours))
    palette = colours.quantize(16)
    read = read_image(save(tmp_path / "p.png", palette, transparency=bytes(range(16))))
    assert np.array_equal(np.asarray(read), np.asarray(palette.convert("RGB")))
    assert read_image(save(tmp_path / "1.png", colours.convert("1"))).mode == "RGB"


def test_cmyk_jpegs_keep_their_colours(tmp_path):
    path = save(tmp_path / "cmyk.jpg", Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK"))
    assert Image.open(path).mode == "CMYK"
    assert np.abs(np.asarray(read_image(path), int) - (200, 40, 90)).max() < 12


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_of_16_bits_the_upper_8_are_kept(tmp_path, suffix):
    """Pillow alone makes everything above 255 of 65535 white."""
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    read = np.asarray(read_image(save(tmp_path / f"x.{suffix}", Image.fromarray(values))))
    assert np.array_equal(read[..., 0], values >> 8) and np.ptp(read) == 255


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("x.gif", "x.webp", "x.png"):
        options = {"lossless": True} if name.endswith("webp") else {}
        save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
        assert read_image(tmp_path / name).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(tmp_path, orientation):
    upright = smooth(24, 16)
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "x.png", stored, exif=exif)
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(upright))
    crop = RandomCrop((16, 24), (1.0, 1.0), (1.5, 1.5), interpolation="bicubic")
    large = upright.resize((240, 160), Image.Resampling.NEAREST)
    stored = large.transpose(inverse[orientation]) if orientation > 1 else large
    path = save(tmp_path / "x.jpg", stored, exif=exif, quality=95)
    with open_image(path) as image:
        difference = np.asarray(crop(image), int) - np.asarray(upright)
    assert np.abs(difference).mean() < 8


@pytest.mark.parametrize("place", [9999, 0])
def test_damaged_exif_does_not_spoil_a_good_image(tmp_path, place):
    exif = b"Exif\0\0" + struct.pack("<2sHI", b"II", 42, place)
    path = save(tmp_path / "x.jpg", smooth(32, 32), exif=exif)
    assert read_image(path).size == (32, 32)
    assert ImageDataset([path], [0], training_transform(8, (0.2, 1.0)))[0]["labels"] == 0


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.gif", "x.bmp"])
def test_truncated_and_false_files_say_their_path(tmp_path, name):
    path = save(tmp_path / name, smooth(64, 64))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:10], b"", b"<html>404</html>"):
        path.write_bytes(damaged)
        with pytest.raises(BrokenImage, match=f"cannot read image {path}: "):
            read_image(path)
        with pytest.raises(BrokenImage, match=f"cannot read image {path}: "):
            ImageDataset([path], [0], training_transform(8, (0.2, 1.0)))[0]
    path.unlink()
    with pytest.raises(BrokenImage, match=r"cannot read image .*No such file"):
        read_image(path)


def test_pixels_without_a_range_are_refused(tmp_path):
    path = save(tmp_path / "x.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(BrokenImage, match="floating-point pixels have no agreed range"):
        read_image(path)


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = save(tmp_path / "x.png", smooth(64, 64))
    with pytest.raises(BrokenImage, match="exceeds limit"):
        read_image(path)


def test_an_image_smaller_than_a_patch_is_enlarged(tmp_path):
    path = save(tmp_path / "x.png", Image.new("RGB", (1, 3), "green"))
    for transform in (training_transform(32, (0.2, 1.0)), evaluation_transform(32)):
        item = ImageDataset([path], [0], transform)[0]["images"]
        assert item.shape == (3, 32, 32) and item.isfinite().all()


# --- decoding no more than the crop needs ----------------------------------------------------


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return save(tmp_path_factory.mktemp("photo") / "x.jpg", smooth(1600, 1200), quality=92)


def crops(path, crop, count=20):
    for seed in range(count):
        random.seed(seed)
        with open_image(path) as image:
            yield np.asarray(as_image(crop(image)), int), image.size


def test_reduced_decoding_gives_the_same_crops(photo):
    """Same boxes, nearly the same pixels, as the whole image decoded first."""
    size = 96
    ours = RandomCrop(size, (0.2, 1.0), interpolation="bicubic")
    timms = RandomResizedCropAndInterpolation(size, (0.2, 1.0), interpolation="bicubic")
    whole = read_image(photo)
    decoded = set()
    for seed, (crop, decoded_size) in enumerate(crops(photo, ours)):
        random.seed(seed)
        expected = np.asarray(timms(whole), int)
        assert crop.shape == (size, size, 3)
        assert np.abs(crop - expected).mean() < 1.5, "another box would differ by tens"
        decoded.add(decoded_size)
    assert decoded <= {(800, 600), (400, 300), (200, 150)} and len(decoded) > 1


def test_what_is_decoded_is_never_smaller_than_the_crop(photo):
    size = 224
    for scale in (0.05, 0.2, 1.0):
        crop = RandomCrop(size, (scale, scale), (1.0, 1.0), interpolation="bicubic")
        side = (scale * 1600 * 1200) ** 0.5
        for _, (width, _) in crops(photo, crop, 3):
            factor = 1600 // width
            assert side / factor >= size - 1
            assert factor == 8 or side / (2 * factor) < size + 1


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_small_files_are_cropped_as_by_pillow(options, tmp_path):
    """The same box to a rounding; what is decoded already to the last bit."""
    path = save(tmp_path / "x.jpg", smooth(100, 80), **options)
    ours = RandomCrop(64, (0.2, 1.0), interpolation="bicubic")
    timms = RandomResizedCropAndInterpolation(64, (0.2, 1.0), interpolation="bicubic")
    for seed, (crop, _) in enumerate(crops(path, ours, 8)):
        random.seed(seed)
        expected = np.asarray(timms(read_image(path)), int)
        assert np.abs(crop - expected).max() <= 2 and np.abs(crop - expected).mean() < 0.3
        random.seed(seed)
        assert np.array_equal(ours(read_image(path)), expected)
    decoded = read_image(path)
    assert decode(decoded) is decoded


def test_files_that_torch_cannot_decode_go_to_pillow(tmp_path, monkeypatch):
    """What Pillow can read is read; what it cannot is named with Pillow's reason."""
    path = save(tmp_path / "x.jpg", smooth(100, 80))
    crop = RandomCrop(64, (1.0, 1.0), (1.25, 1.25), interpolation="bicubic")
    (expected, _), *_ = crops(path, crop, 1)

    def refuse(*_):
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("tasks.data.crops.decode_jpeg", refuse)
        (found, _), *_ = crops(path, crop, 1)
    assert np.array_equal(found, expected)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BrokenImage, match=r"cannot read image .*x\.jpg: .*truncated"):
        next(crops(path, crop, 1))


@pytest.mark.parametrize(
    "options", [{"rand_augment": "rand-m9"}, {"augmentation": "random+jitter"}]
)
def test_augmentations_of_images_get_images(options, tmp_path):
    path = save(tmp_path / "x.jpg", smooth(100, 80))
    item = ImageDataset([path], [0], training_transform(32, (0.2, 1.0), **options))[0]["images"]
    assert item.shape == (3, 32, 32) and item.dtype == torch.float32 and item.is_contiguous()


# --- broken images in a training set ---------------------------------------------------------


@pytest.fixture
def places(tmp_path):
    paths = []
    for number in range(8):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (16, 16), (30 * number, 0, 0)).save(paths[-1])
    return paths


def dataset(places, max_broken):
    transform = training_transform(8, (1.0, 1.0))
    return ImageDataset(places, list(range(8)), transform, max_broken=max_broken)


def test_the_next_image_takes_the_place_of_a_broken_one(places, capsys):
    for number in (2, 3, 7):
        places[number].write_bytes(b"broken")
    images = dataset(places, 3)
    assert [images[index]["labels"] for index in range(8)] == [0, 1, 4, 4, 4, 5, 6, 0]
    assert images.broken.places == [str(places[number]) for number in (2, 3, 7)]
    assert capsys.readouterr().out.count("left out") == 3, "each is reported once"
    assert torch.equal(images[2]["images"], images[4]["images"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_beyond_the_limit_the_run_stops_with_the_list(places, num_workers):
    for number in (1, 2, 3):
        places[number].write_bytes(b"broken")
    images = dataset(places, 2)
    loader = torch.utils.data.DataLoader(images, batch_size=1, num_workers=num_workers)
    with pytest.raises(UserError, match=r"image 3 of 8 .*max_broken allows 2. Repair") as caught:
        list(loader)
    assert all(str(places[number]) in str(caught.value) for number in (1, 2, 3))


def test_a_broken_image_of_any_name_can_be_recorded(places, capsys):
    odd = Path(os.fsdecode(os.fsencode(places[2].parent) + b"/\xff.png"))
    odd.write_bytes(b"broken")
    images = dataset([*places[:2], odd, *places[3:]], max_broken=1)
    assert images[2]["labels"] == 3
    assert images.broken.places == [rf"{odd.parent}/\xff.png"]
    assert r"cannot read image" in capsys.readouterr().out.encode().decode()


def test_if_all_are_broken_it_stops_whatever_the_limit(places):
    for place in places:
        place.write_bytes(b"")
    with pytest.raises(UserError, match="image 8 of 8 that cannot be read"):
        dataset(places, 100)[0]


def test_without_a_limit_the_first_one_stops(places):
    places[0].write_bytes(b"")
    with pytest.raises(BrokenImage):
        dataset(places, 0)[0]


DATA = {
    "image_size": 8,
    "crop_scale": [0.2, 1.0],
    "crop_ratio": 1.0,
    "val_images": 4,
    "cache": True,
    "max_broken": 2,
}


def test_sets_of_a_source(places, tmp_path):
    """A broken validation image stops before the training; nothing is kept in memory."""
    places[0].write_bytes(b"")
    folder = tmp_path
    with pytest.raises(BrokenImage, match=r"cannot read image .*0\.png"):
        labelled_sets(f"imagefolder:{folder}", tmp_path, DATA)
    Image.new("RGB", (16, 16)).save(places[0])
    places[5].write_bytes(b"")
    for split in ("train", "val"):
        (folder / split).mkdir()
    for number, place in enumerate(places):
        place.rename(folder / ("val" if number < 3 else "train") / place.name)
    train, val, classes = labelled_sets(f"imagefolder:{folder}", tmp_path, DATA)
    assert (len(train), len(val), classes) == (5, 3, [""]) and train._cache is None
    assert val[1]["images"].shape == (3, 8, 8)


def test_a_broken_validation_image_of_a_published_set_stops_before_the_training(tmp_path):
    make("imagenet", tmp_path)
    _, val, _ = labelled_sets("imagenet", tmp_path, {**DATA, "val_images": None})
    broken = val.places[-1]
    broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(BrokenImage, match=rf"cannot read image {broken}: .*runcated"):
        labelled_sets("imagenet", tmp_path, {**DATA, "val_images": None})


def test_members_of_a_tar_are_read_like_files(places, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for place in places:
            archive.add(place, place.name)
        broken = tarfile.TarInfo("broken.png")
        broken.size = 9
        archive.addfile(broken, io.BytesIO(b"no image!"))
    with tarfile.open(tmp_path / "x.tar") as archive:
        members = [Member(tmp_path / "x.tar", m.name, m.offset_data, m.size) for m in archive]
    transform = evaluation_transform(8)
    for place, member in zip(places, members, strict=False):
        ours, theirs = (ImageDataset([p], [0], transform)[0]["images"] for p in (member, place))
        assert torch.equal(ours, theirs)
    with pytest.raises(BrokenImage, match=r"cannot read image .*x\.tar/broken\.png"):
        read_image(members[-1])
