"""What a detector is fed: jitter, order, ids, broken images; what is refused before training."""

import json

import numpy as np
import PIL.Image
import pycocotools.mask
import pytest
import torch
from fake_datasets import coco_format
from tiny_detection import job_in, lazy, prepare

from mae_bench.errors import UserError
from mae_bench.job import STATE_FILE
from tasks import data as datasets
from tasks import detection
from tasks.data import verify
from tasks.detection import data as detection_data
from tasks.detection.data import (
    num_classes,
    register,
    test_loader,
    train_loader,
)
from tasks.detection.picture import Detections, draw

# isort: split
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, detection_utils
from detectron2.utils.events import EventStorage
from fvcore.transforms.transform import CropTransform, HFlipTransform

pytestmark = pytest.mark.detectron2
test_loader.__test__ = False
with_rle = detection_data._with_rle


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("coco"))


def write_coco(folder, images, annotations, categories=((5, "red"),)):
    """A COCO-format `mini-coco` of the given images (name -> array) in both splits."""
    top = folder / "mini-coco" / "coco"
    (top / "annotations").mkdir(parents=True)
    records = []
    for index, (name, pixels) in enumerate(images.items()):
        height, width = pixels.shape[:2]
        records.append(dict(id=index + 1, file_name=name, height=height, width=width))
        for split in ("train2017", "val2017"):
            (top / split).mkdir(exist_ok=True)
            PIL.Image.fromarray(pixels).save(top / split / name)
    content = dict(
        images=records,
        annotations=[dict(id=i + 1) | {"iscrowd": 0} | a for i, a in enumerate(annotations)],
        categories=[dict(id=i, name=n) for i, n in categories],
    )
    for split in ("train2017", "val2017"):
        (top / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def red_l(tmp_path):
    """One image: an L of pure red on blue, given as a polygon; asymmetric both ways."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[..., 2] = 255
    pixels[10:50, 20:30] = pixels[40:50, 20:60] = (255, 0, 0)
    polygon = [20, 10, 30, 10, 30, 40, 60, 40, 60, 50, 20, 50]
    annotation = dict(
        image_id=1, category_id=5, bbox=[20, 10, 40, 40], area=700, segmentation=[polygon]
    )
    return write_coco(tmp_path, {"a.png": pixels, "b.png": pixels}, [annotation])


def mapper(flip=0.5, scale=(0.5, 1.6)):
    """The recipe's own mapper, with another jitter."""
    changes = {"data.flip": flip, "data.min_scale": scale[0], "data.max_scale": scale[1]}
    return instantiate(lazy("nowhere", **changes)["dataloader"].train.mapper)


@pytest.fixture
def coloured(tmp_path):
    """A red L (polygon), a green bar (RLE) on blue; ids 5 and 9; a second image without objects."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[..., 2] = 255
    pixels[10:50, 20:30] = pixels[40:50, 20:60] = (255, 0, 0)
    pixels[5:15, 40:75] = (0, 255, 0)
    polygon = [20, 10, 30, 10, 30, 40, 60, 40, 60, 50, 20, 50]
    bar = pycocotools.mask.encode(np.asfortranarray(pixels[..., 1] > 0))
    bar["counts"] = bar["counts"].decode()
    objects = [
        dict(category_id=5, bbox=[20, 10, 40, 40], area=700, segmentation=[polygon]),
        dict(category_id=9, bbox=[40, 5, 35, 10], area=350, segmentation=bar),
    ]
    names = ((9, "green"), (5, "red"))
    images = {"a.png": pixels, "b.png": np.zeros_like(pixels)}
    return write_coco(tmp_path, images, [dict(image_id=1, **one) for one in objects], names)


def assert_objects_are_where_they_are_seen(root, rounds=40):
    """Class 0 is where red is, class 1 where green; a box is its mask's; only image 1 has any."""
    loader = iter(train_loader("mini-coco", root, mapper(), 1))
    seen = set()
    for _ in range(rounds):
        (item,) = next(loader)
        assert item["image"].shape == (3, 96, 96) and item["image_id"] == 1
        image, objects = item["image"].int(), item["instances"]
        for mask, box, label in zip(
            objects.gt_masks.tensor, objects.gt_boxes.tensor, objects.gt_classes, strict=True
        ):
            there = (image[label] > 128) & (image[2] < 128) & (image[1 - label] < 128)
            # Resampling blurs the outline: compare areas, not single pixels.
            assert (there ^ mask).sum() <= 0.2 * mask.sum() + 20
            rows, columns = torch.nonzero(mask, as_tuple=True)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(edge) for edge in tight]
            seen.add((int(label), *box.tolist()))
    assert len(seen) > rounds and {label for label, *_ in seen} == {0, 1}


def test_classes_masks_and_boxes_stay_on_their_objects_through_jitter(coloured):
    assert_objects_are_where_they_are_seen(coloured)


def masks_stay(self, segmentation):
    return segmentation


def ids_off_by_one(record):
    for item in record["annotations"]:
        item["category_id"] = (item["category_id"] + 1) % 2
    return record


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (HFlipTransform, "apply_segmentation", masks_stay),
        (CropTransform, "apply_segmentation", masks_stay),
        (detection_data, "_with_rle", lambda record: ids_off_by_one(with_rle(record))),
        (detection_utils, "convert_PIL_to_numpy", lambda image, _: np.asarray(image)[..., ::-1]),
    ],
    ids=["masks not flipped", "masks not cropped", "class ids off by one", "RGB and BGR swapped"],
)
def test_a_fault_in_the_pipeline_is_caught(coloured, monkeypatch, owner, name, fault):
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        assert_objects_are_where_they_are_seen(coloured, rounds=10)


def test_flip_moves_the_mask_with_the_image(red_l):
    masks = []
    for flip in (0.0, 1.0):
        loader = iter(train_loader("mini-coco", red_l, mapper(flip, (1.0, 1.0)), 1))
        (item,) = next(loader)
        assert item["image"].shape == (3, 96, 96)
        content = item["image"][0, :72]  # 60 x 80 on a 96 px box is 72 x 96
        red = content.float() * item["instances"].gt_masks.tensor[0, :72]
        assert red.sum() / 255 == pytest.approx(1.44 * 700, rel=0.1)
        masks.append(item["instances"].gt_masks.tensor[0, :72])
    assert torch.equal(masks[0].flip(1), masks[1]) and not torch.equal(*masks)


def test_order_depends_on_position_only(root):
    """The same batches for any worker count, and from the middle."""

    def batches(count, **options):
        loader = iter(train_loader("mini-coco", root, mapper(), 3, seed=7, **options))
        return [next(loader) for _ in range(count)]

    whole, workers = batches(6), batches(6, num_workers=2)
    late = batches(2, start=12)
    for left, right in [*zip(whole, workers, strict=True), *zip(whole[4:], late, strict=True)]:
        for a, b in zip(left, right, strict=True):
            assert a["image_id"] == b["image_id"]
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)


def test_validation_reads_each_image_once_with_and_without_objects(red_l):
    plain = DatasetMapper(False, augmentations=[], image_format="RGB")
    loader = test_loader("mini-coco", red_l, plain)
    assert [item["image_id"] for (item,) in loader] == [1, 2]


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_recipes_loaders_read_rgb(red_l, split):
    """A small red L on blue, whatever the jitter."""
    loader = instantiate(lazy(red_l, **{"solver.batch_size": 1})["dataloader"][split])
    (item,) = next(iter(loader))
    red, _, blue = item["image"].float().mean((1, 2))
    assert blue > 2 * red


def test_the_catalog_follows_the_data_root(root, red_l):
    name = register("mini-coco", red_l, "train")
    DatasetCatalog.get(name)
    assert MetadataCatalog.get(name).thing_classes == ["red"]
    assert register("mini-coco", root, "train") == name
    DatasetCatalog.get(name)
    classes = datasets.coco_split("mini-coco", root, "train").classes
    assert MetadataCatalog.get(name).thing_classes == classes
    assert num_classes("mini-coco", red_l) == 1


def test_a_batch_larger_than_the_set_is_refused(red_l):
    with pytest.raises(UserError, match=r"batch of 2 .* set of 1 images .* solver.batch_size"):
        train_loader("mini-coco", red_l, mapper(), 2)


@pytest.mark.parametrize("name", ["ball", "$\\frac$"])
def test_the_picture_shows_truth_and_predictions(name):
    image = np.full((20, 30, 3), 200, np.uint8)
    mask = np.zeros((1, 20, 30), bool)
    mask[0, 5:10, 5:15] = True
    found = Detections(np.array([[5.0, 5, 15, 10]]), mask, [0], [0.9])
    nothing = Detections(np.zeros((0, 4)), np.zeros((0, 20, 30), bool), [])
    with_box, without = (draw([image], [d], [nothing], [name]) for d in (found, nothing))
    assert with_box.startswith(b"\x89PNG") and with_box != without


def test_splits_with_other_categories_are_refused(red_l, tmp_path):
    path = datasets.coco_split("mini-coco", red_l, "val").json
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(UserError, match="has no annotations"):
        detection.check_data(job_in(tmp_path / "run", red_l))
    content["categories"][0]["name"] = "green"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"different categories \(red and green\)"):
        detection.check_data(job_in(tmp_path / "run", red_l))


# --- images that cannot be used --------------------------------------------------------------


def paths_of(root, split):
    files = datasets.coco_split("mini-coco", root, split)
    return [
        files.images / image["file_name"] for image in json.loads(files.json.read_text())["images"]
    ]


def cut_off(path):
    path.write_bytes(path.read_bytes()[:60])


def other_size(path):
    PIL.Image.new("RGB", (31, 17)).save(path)


FAULTS = {"missing": lambda path: path.unlink(), "cut off": cut_off, "another size": other_size}


@pytest.mark.parametrize("fault", FAULTS)
def test_training_goes_on_without_an_image_that_cannot_be_used(tmp_path, capsys, fault):
    """The image behind it takes its place; all others are as they were; at the limit it stops."""
    folder = prepare(tmp_path)

    def batches(**options):
        loader = iter(train_loader("mini-coco", folder, mapper(), 5, seed=3, **options))
        return [item for _ in range(2) for item in next(loader)]

    whole = batches()
    broken = next(path for path in paths_of(folder, "train") if path.name in whole[4]["file_name"])
    FAULTS[fault](broken)
    left = batches(max_broken=1)
    for before, after in zip(whole, left, strict=True):
        if before["file_name"] == str(broken):
            assert after["file_name"] != str(broken)
        else:
            assert torch.equal(before["image"], after["image"])
    assert broken.name in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"{broken.name}.*data.max_broken allows 0"):
        batches()


def test_a_fault_that_is_not_the_images_is_not_taken_for_one(root):
    def wrong(record):
        raise ValueError("a mistake of the augmentation")

    with pytest.raises(ValueError, match="of the augmentation"):
        next(iter(train_loader("mini-coco", root, wrong, 1, max_broken=5)))


@pytest.fixture
def own(tmp_path):
    """A user's set, a job on it, and its files."""
    coco_format(tmp_path / "own")
    job = job_in(tmp_path / "run", tmp_path)
    job.run = job.run.model_copy(update={"dataset": f"coco-format:{tmp_path / 'own'}"})
    return job


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "not there"),
        ("cut off", "unreadable-image"),
        ("another size", "is 31 x 17 pixels"),
    ],
)
def test_an_image_of_ones_own_that_cannot_be_used_is_known_before_training(own, split, fault, said):
    detection.check_images(own)
    folder = own.data_root / "own" / split
    broken = sorted(path for path in folder.iterdir() if path.suffix == ".jpg")[1]
    FAULTS[fault](broken)
    with pytest.raises(UserError, match=rf"{broken.name}.*{said}.*mae-bench data verify"):
        detection.run(own)
    assert not (own.folder / "config.yaml").exists()
    (own.folder / STATE_FILE).touch()  # looked at when the training began
    detection.check_images(own)


def changed(own, split, change):
    path = own.data_root / "own" / split / "_annotations.coco.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return own.run.dataset, own.data_root, "detection"


@pytest.mark.parametrize(
    ("split", "change", "said"),
    [
        ("train", lambda c: c.pop("categories"), "lacks one of annotations, categories, images"),
        ("train", lambda c: c["categories"].clear(), "has no categories"),
        ("train", lambda c: c["annotations"][0].update(image_id=99), "not listed"),
        ("train", lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 5]), "must be above 0"),
        ("train", lambda c: c["annotations"][0].update(bbox=[9, 9, -3, -3]), "must be above 0"),
        (
            "train",
            lambda c: c["annotations"][0].update(segmentation=[{}, [1]]),
            "neither polygons",
        ),
        ("train", lambda c: c["images"][0].update(width=11), "its image is 11 x 16"),
        ("valid", lambda c: c["annotations"].clear(), "no annotation of a single object"),
        ("valid", lambda c: c["images"][0].update(file_name="gone.jpg"), "gone.jpg"),
        ("valid", lambda c: c["categories"][0].update(name="other"), "class"),
    ],
)
def test_a_json_with_a_fault_is_refused_before_training(own, split, change, said):
    verify.check(own.run.dataset, own.data_root, "detection")
    with pytest.raises(UserError, match=said):
        verify.check(*changed(own, split, change))


# --- targets ---------------------------------------------------------------------------------


def test_targets_are_finite_with_nothing_tiny_boxes_crowds_and_both_kinds_of_masks(tmp_path):
    """Single pixels, polygons beside run lengths, images that lost all in the jitter, a crowd."""
    side = 64

    def block(x, y, w, h, coded=False, **more):
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        mask = np.zeros((side, side), np.uint8, order="F")
        mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
        code = pycocotools.mask.encode(mask)
        code["counts"] = code["counts"].decode()
        segmentation = code if coded else [polygon]
        return dict(category_id=5, bbox=[x, y, w, h], area=w * h, segmentation=segmentation, **more)

    objects = {
        1: [block(3, 3, 1, 1), block(10, 10, 0.4, 0.4), block(20, 20, 30, 30, coded=True)],
        2: [block(0, 0, 64, 64), block(5, 40, 50, 2, coded=True)],
        3: [block(0, 0, 2, 1), block(63, 63, 1, 1, coded=True)],
    }
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    images = {f"{k}.png": pixels for k in objects}
    annotations = [dict(image_id=k, **one) for k, ones in objects.items() for one in ones]
    crowd = dict(image_id=2, **{**block(8, 8, 40, 40, coded=True), "iscrowd": 1})
    folder = write_coco(tmp_path, images, [*annotations, crowd])
    cfg = lazy(folder, **{"solver.batch_size": 3, "data.min_scale": 0.1, "data.max_scale": 2.0})
    torch.manual_seed(0)
    model = instantiate(cfg["model"])
    loader = iter(instantiate(cfg["dataloader"].train))
    counts = set()
    for _ in range(6):
        batch = next(loader)
        counts |= {len(item["instances"]) for item in batch}
        for item in batch:
            boxes = item["instances"].gt_boxes.tensor
            assert boxes.isfinite().all() and (boxes[:, 2:] > boxes[:, :2]).all()
        with EventStorage():
            losses = model(batch)
        model.zero_grad()
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values())
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert {0, 2} <= counts <= {0, 1, 2, 3}
