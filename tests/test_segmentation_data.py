"""Images and maps of a user's own: what is read right, and what is refused by its name."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmseg.registry import DATASETS, MODELS
from PIL import Image

from mae_bench.errors import UserError
from mae_bench.job import STATE_FILE, Job
from mae_bench.recipes import load_recipe
from mae_bench.records import Run
from tasks.data.maps import read_map, to_labels
from tasks.data.verify.scan import scan_map
from tasks.segmentation import build_segmentor, building, mmseg_config
from tasks.segmentation.checks import check_maps
from tasks.segmentation.scores import evaluate

pytestmark = pytest.mark.mmseg
CLASSES = ["sky", "road", "car"]
SIZE = (40, 60)  # height, width
OVERRIDES = {
    "data.image_size": 32,
    "data.crop_size": 32,
    "model.channels": 8,
    "model.aux_channels": 8,
    "solver.iterations": 2,
    "solver.batch_size": 2,
    "solver.num_workers": 0,
}


def maps(values, size=SIZE):
    """A map of stripes of these values."""
    return np.repeat(np.resize(values, size[0])[:, None], size[1], axis=1)


@pytest.fixture
def streets(tmp_path):
    """A whole ade20k-format set: 3 images for training, 2 for validation."""
    home = tmp_path / "streets"
    random = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for kind in ("images", "annotations"):
            (home / kind / split).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / "images" / split / f"{number}.jpg")
            labels = maps([0, 1, 2, 3]).astype(np.uint8)
            Image.fromarray(labels).save(home / "annotations" / split / f"{number}.png")
    (home / "dataset.json").write_text(json.dumps({"classes": CLASSES}))
    return home


def recipe(**overrides):
    return load_recipe(
        "segmentation/own_data", {**OVERRIDES, **overrides}, backbone="vit_mini_patch8"
    )


def config_of(home, **overrides):
    return mmseg_config(
        recipe(**overrides),
        dataset=f"ade20k-format:{home}",
        data_root=home.parent,
        backbone="vit_mini_patch8",
    )


def sets_of(home, **overrides):
    config = config_of(home, **overrides)
    with building():
        return [
            DATASETS.build(config[loader]["dataset"])
            for loader in ("train_dataloader", "val_dataloader")
        ]


def check(home):
    run = Run(
        task="segmentation",
        task_version=1,
        dataset=f"ade20k-format:{home}",
        data_fingerprint="",
        backbone="vit_mini_patch8",
        init="random",
        recipe="segmentation/own_data",
        recipe_values=recipe(),
        seed=0,
    )
    check_maps(Job(run, home.parent, home.parent), *sets_of(home))


def seen_by_training(home, index=0):
    """Labels of a training image as they are read, before jitter and crop."""
    training, _ = sets_of(home)
    image, labels = training.pipeline.transforms[:2]
    return labels(image(training.get_data_info(index)))["gt_seg_map"]


def save(home, image, split="train", name="0.png"):
    image.save(home / "annotations" / split / name)


def palette_image(values):
    image = Image.fromarray(values.astype(np.uint8), mode="P")
    image.putpalette([200, 10, 10, 3, 3, 3, 99, 99, 0, 1, 2, 3])
    return image


class FewBits:
    """A grey PNG of few bits, which Pillow cannot write."""

    def __init__(self, values, bits):
        self.values, self.bits = values, bits

    def save(self, path):
        def chunk(kind, content):
            check = zlib.crc32(kind + content)
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

        height, width = self.values.shape
        digits = (self.values[..., None] >> np.arange(self.bits)[::-1]) & 1
        rows = np.packbits(digits.reshape(height, -1).astype(np.uint8), axis=1)
        filtered = np.pad(rows, ((0, 0), (1, 0))).tobytes()
        header = struct.pack(">2I5B", width, height, self.bits, 0, 0, 0, 0)
        parts = {b"IHDR": header, b"IDAT": zlib.compress(filtered), b"IEND": b""}
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items()))


EXPECTED = maps([255, 0, 1, 2])


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(maps([0, 1, 2, 3]).astype(np.uint8)),
        Image.fromarray(maps([0, 1, 2, 3]).astype(np.uint16)),
        palette_image(maps([0, 1, 2, 3])),
        FewBits(maps([0, 1, 2, 3]), bits=2),
        FewBits(maps([0, 1, 2, 3]), bits=4),
    ],
    ids=["grey", "16-bit", "palette", "2-bit", "4-bit"],
)
def test_maps_are_read_as_stored(image, streets):
    """Of few bits, too: tools that make PNGs smaller write them, and Pillow scales the values."""
    save(streets, image)
    assert scan_map(streets / "annotations/train/0.png").histogram == dict.fromkeys(range(4), 600)
    check(streets)
    assert np.array_equal(seen_by_training(streets), EXPECTED)


@pytest.mark.parametrize(
    ("about", "stored", "labels"),
    [
        ({}, [0, 1, 3, 255], [255, 0, 2, 255]),
        ({"reduce_zero_label": False}, [0, 1, 2, 255], [0, 1, 2, 255]),
        ({"reduce_zero_label": False, "ignore_value": 0}, [0, 1, 2, 2], [255, 1, 2, 2]),
        ({"ignore_value": 9}, [0, 1, 9, 3], [255, 0, 255, 2]),
    ],
)
def test_the_rules_of_a_class_list(about, stored, labels, streets):
    (streets / "dataset.json").write_text(json.dumps({"classes": CLASSES, **about}))
    for path in (streets / "annotations").glob("*/*.png"):
        Image.fromarray(maps(stored).astype(np.uint8)).save(path)
    check(streets)
    assert np.array_equal(seen_by_training(streets), maps(labels))
    _, validation = sets_of(streets)
    truth = validation[0]["data_samples"].gt_sem_seg.data[0].numpy()
    assert np.array_equal(truth, maps(labels)), "at the image's own size, shifted once"


def test_a_shift_too_many_would_be_noticed(streets):
    """The mutation: mmseg's own loader, which shifts as the dataset says, behind ours."""
    once = np.bincount(seen_by_training(streets).ravel(), minlength=256)
    twice = to_labels(seen_by_training(streets).astype(int), 3, "x.png")
    assert not np.array_equal(np.bincount(twice.ravel(), minlength=256), once)
    config = config_of(streets)
    kinds = [step["type"] for step in config["train_pipeline"] + config["tta_pipeline"]]
    assert kinds.count("LoadLabels") == 1 and "LoadAnnotations" not in str(config)


FAULTS = {
    "values": (
        Image.fromarray(maps([1, 4, 17]).astype(np.uint8)),
        r"holds \[4, 17\]; classes are 1 to 3",
    ),
    "16-bit values": (Image.fromarray(maps([1, 257]).astype(np.uint16)), r"holds \[257\]; "),
    "colours": (Image.new("RGB", SIZE[::-1]), r"is an image of mode RGB; one channel"),
    "size": (Image.new("L", (60, 41)), r"is 60 x 41 pixels, its image 60 x 40; "),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("fault", FAULTS)
def test_bad_maps_are_refused_before_training(fault, split, streets):
    image, message = FAULTS[fault]
    save(streets, image, split, "1.png")
    with pytest.raises(UserError, match=rf"{split}/1\.png {message}"):
        check(streets)


def test_missing_pairs_and_damaged_files_are_refused(streets, tmp_path):
    (streets / "annotations" / "val" / "1.png").unlink()
    with pytest.raises(UserError, match=r"val/1\.png is missing; every image needs one"):
        check(streets)
    (streets / "annotations" / "val" / "1.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UserError, match=r"val/1\.png cannot be read"):
        check(streets)
    image = streets / "images" / "train" / "2.jpg"
    image.write_bytes(image.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"train/2\.jpg cannot be read \(.*truncated"):
        check(streets)
    image.write_bytes(b"")
    with pytest.raises(UserError, match=r"train/2\.jpg cannot be read"):
        check(streets)
    (tmp_path / STATE_FILE).touch()
    check(streets)  # a training that continues has read them all


def test_an_image_on_its_side_is_turned_before_sizes_are_compared(streets):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    Image.fromarray(pixels).save(streets / "images" / "train" / "0.jpg", exif=exif)
    check(streets)
    assert seen_by_training(streets).shape == SIZE


def test_negative_values_are_no_classes():
    with pytest.raises(
        UserError, match=r"map x\.png holds \[-1\]; classes are 0 to 2, unlabelled is 255"
    ):
        to_labels(np.array([[-1, 0]]), 3, "x.png", reduce_zero_label=False)
    with pytest.raises(UserError, match="is missing"):
        read_map("nowhere.png")


@pytest.mark.parametrize(
    ("size", "mode"),
    [((10, 90), "slide"), ((90, 10), "slide"), ((9, 11), "slide"), ((33, 200), "whole")],
)
def test_images_of_odd_shapes_are_scored_whole(mode, size, streets):
    """More than 4:1, and smaller than the crop: every pixel of the map is scored."""
    for split in ("train", "val"):
        for path in (streets / "images" / split).glob("*.jpg"):
            Image.new("RGB", size[::-1], (90, 60, 30)).save(path)
            labels = Image.fromarray(maps([0, 1, 2, 3], size).astype(np.uint8))
            labels.save(streets / "annotations" / split / f"{path.stem}.png")
    check(streets)
    training, validation = sets_of(streets, **{"test.mode": mode})
    sample = training[0]
    assert sample["data_samples"].gt_sem_seg.data.shape[-1] <= 32
    with building():
        model = build_segmentor(config_of(streets, **{"test.mode": mode})["model"], 0)
    scores, examples = evaluate(model, validation)
    assert examples[0].prediction.shape == size
    assert np.isfinite(scores.aacc)


def test_padding_is_never_trained_on(streets):
    small = {"data.image_size": 16, "data.crop_size": 32, "data.scale_range": [1.0, 1.0]}
    training, _ = sets_of(streets, **small)
    with building():
        prepare = MODELS.build(config_of(streets, **small)["model"]["data_preprocessor"])
    batch = prepare(pseudo_collate([training[0], training[1]]), training=True)
    assert batch["inputs"].shape == (2, 3, 32, 32)
    for sample in batch["data_samples"]:
        labels = sample.gt_sem_seg.data[0]
        assert (
            labels.shape == (32, 32)
            and (labels[16:] == 255).all()
            and (labels[:, 24:] == 255).all()
        )
        assert set(labels[:16, :24].unique().tolist()) == {0, 1, 2, 255}


def test_thin_images_are_padded_and_the_padding_is_cut_off(streets):
    """What a window sees of a thin image is the image, then zeros; its logits are those alone."""
    image = torch.randint(0, 255, (3, 8, 64), dtype=torch.uint8)
    with building():
        model = build_segmentor(config_of(streets)["model"], 0).eval()
    validation = sets_of(streets)[1]
    sample = validation[0]["data_samples"]
    sample.set_metainfo({"img_shape": (8, 64), "ori_shape": (8, 64)})
    batch = model.data_preprocessor({"inputs": [image], "data_samples": [sample]}, False)
    assert batch["inputs"].shape == (1, 3, 32, 64) and not batch["inputs"][0, :, 8:].any()
    with torch.no_grad():
        padded = model.slide_inference(batch["inputs"], [dict(ori_shape=(8, 64))])
        found = model.predict(**batch)[0].seg_logits.data
    torch.testing.assert_close(found, padded[0, :, :8])


def test_sizes_follow_the_data(streets):
    config = mmseg_config(
        load_recipe("segmentation/own_data", backbone="vit_mini_patch8"),
        dataset=f"ade20k-format:{streets}",
        data_root=streets.parent,
        backbone="vit_mini_patch8",
    )
    resize = next(step for step in config["train_pipeline"] if step["type"] == "RandomResize")
    assert resize["scale"] == (256, 64), "40 px is below the least"
    assert config["model"]["test_cfg"]["crop_size"] == (64, 64)
    assert config["model"]["test_cfg"]["stride"] == (42, 42)
    # 50 epochs of 3 images in batches of 8.
    assert config["train_cfg"]["max_iters"] == round(50 * 3 / 8)
    for path in (streets / "images" / "train").iterdir():
        Image.new("RGB", (300, 210)).save(path)
    for backbone, crop in (
        ("vit_base_patch16", 192),
        ("timm:resnet18", 192),
        ("vit_mini_patch8", 208),
    ):
        sized = mmseg_config(
            load_recipe("segmentation/own_data", backbone=backbone),
            dataset=f"ade20k-format:{streets}",
            data_root=streets.parent,
            backbone=backbone,
        )
        assert sized["model"]["data_preprocessor"]["size"] == (crop, crop)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"test.stride": 0}, r"test\.stride is 0; 1 to data\.crop_size \(32\)"),
        ({"test.stride": 33}, r"test\.stride is 33"),
        ({"test.mode": "tiles"}, r"test\.mode is 'tiles'"),
        ({"test.windows": -1}, r"test\.windows=-1 .* of at least 1 is needed"),
        ({"test.scales": []}, r"test\.scales is \[\]; a list of numbers above 0"),
        ({"test.scales": [1.0, "2"]}, r"test\.scales is \[1\.0, '2'\]; a list"),
        ({"data.scale_range": [0, 1]}, r"data\.scale_range is \[0, 1\]; a list of numbers above 0"),
        ({"data.scale_range": [2, 1]}, r"data\.scale_range is \[2, 1\]; \[smallest, largest\]"),
    ],
)
def test_ways_to_crop_and_test_that_cannot_be_are_refused(overrides, message, streets):
    with pytest.raises(UserError, match=message):
        config_of(streets, **overrides)
