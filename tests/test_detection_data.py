"""What a detector is fed: jitter, order, ids, broken images; what is refused before training."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from tiny_detection import job_in, lazy, prepare

from mae_bench.errors import UserError
from tasks import data as datasets
from tasks import detection
from tasks.detection.data import (
    num_classes,
    register,
    test_loader,
    train_loader,
)
from tasks.detection.picture import Detections, draw

# isort: split
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog

pytestmark = pytest.mark.detectron2
test_loader.__test__ = False


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
        annotations=[dict(id=i + 1, iscrowd=0, **a) for i, a in enumerate(annotations)],
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


def test_masks_and_boxes_stay_on_their_object_through_jitter(red_l):
    """In RGB order, the mask is where the red is; the box is the mask's; only image 1 has any."""
    loader = iter(train_loader("mini-coco", red_l, mapper(), 1))
    seen = set()
    for _ in range(40):
        (item,) = next(loader)
        assert item["image"].shape == (3, 96, 96) and item["image_id"] == 1
        if not len(item["instances"]):
            continue
        image, objects = item["image"].int(), item["instances"]
        mask = objects.gt_masks.tensor[0]
        red = (image[0] > 128) & (image[2] < 128)
        # Resampling blurs the outline: compare areas and centres, not single pixels.
        assert (red ^ mask).sum() <= 0.2 * mask.sum() + 20
        rows, columns = torch.nonzero(mask, as_tuple=True)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert objects.gt_boxes.tensor[0].tolist() == [float(v) for v in tight]
        assert objects.gt_classes.tolist() == [0]
        seen.add(tuple(objects.gt_boxes.tensor[0].tolist()))
    assert len(seen) > 20


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


def test_the_picture_shows_truth_and_predictions():
    image = np.full((20, 30, 3), 200, np.uint8)
    mask = np.zeros((1, 20, 30), bool)
    mask[0, 5:10, 5:15] = True
    found = Detections(np.array([[5.0, 5, 15, 10]]), mask, [0], [0.9])
    nothing = Detections(np.zeros((0, 4)), np.zeros((0, 20, 30), bool), [])
    with_box, without = (draw([image], [d], [nothing], ["ball"]) for d in (found, nothing))
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
