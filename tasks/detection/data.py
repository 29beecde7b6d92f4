"""Datasets of `tasks.data` in detectron2: catalogs, loaders with an exact order, evaluator."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycocotools.mask
from pycocotools.coco import COCO
from torch.utils.data import DataLoader, Dataset

# Before detectron2: it restores names that detectron2 reads.
import backbones.detectron2  # isort: skip  # noqa: F401
from detectron2 import data
from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import COCOEvaluator

from mae_bench.errors import UserError
from tasks import distributed
from tasks.data import coco_split, prepare
from tasks.data.extent import contents, image_side
from tasks.data.formats import CocoSplit
from tasks.data.images import BrokenImages
from tasks.data.reading import DAMAGE, BrokenImage, read_image
from tasks.engine import PositionSampler, PositionSeeded

# Training images with annotations as published, to compose a config where the data is not.
PUBLISHED_TRAIN_IMAGES = {"coco": 117_266}


def register(dataset: str, data_root: str | Path, split: str) -> str:
    """Put a split of one of `tasks.data` into detectron2's catalogs; returns its name there."""
    files, name = _split(dataset, data_root, split), f"{dataset}_{split}"
    if name in data.DatasetCatalog.list():
        if data.MetadataCatalog.get(name).json_file == str(files.json):
            return name
        data.DatasetCatalog.remove(name)
        data.MetadataCatalog.remove(name)
    register_coco_instances(name, {}, str(files.json), str(files.images))
    return name


def num_classes(dataset: str, data_root: str | Path) -> int:
    """How many categories the training split names."""
    return len(_split(dataset, data_root, "train").classes)


def num_train_images(dataset: str, data_root: str | Path) -> int:
    """Training images with annotations; of a public set that is not there, as published."""
    try:
        return contents(_split(dataset, data_root, "train").json).annotated
    except UserError:
        if dataset in PUBLISHED_TRAIN_IMAGES:
            return PUBLISHED_TRAIN_IMAGES[dataset]
        raise


def fitting_side(dataset: str, data_root: str | Path) -> int:
    """Image size that follows the training images."""
    return image_side(contents(_split(dataset, data_root, "train").json).side)


def _split(dataset: str, data_root: str | Path, split: str) -> CocoSplit:
    """Files of a split; detectron2's own tool comes here without having prepared a miniature."""
    root = Path(data_root)
    if not (root / dataset).exists():
        prepare(dataset, root)
    return coco_split(dataset, root, split)


def train_loader(
    dataset: str,
    data_root: str | Path,
    mapper: Any,
    batch_size: int,
    num_workers: int = 0,
    seed: int = 0,
    start: int = 0,
    max_broken: int = 0,
) -> DataLoader:
    """Endless batches of mapped images that have annotations, the same for any `num_workers`.

    Of several processes each gets its share of every batch.

    Args:
        batch_size: of all processes together.
        start: samples already seen, by all processes together.
        max_broken: how many images `TrainingImages` may leave out.

    Raises:
        UserError: fewer images with annotations than one batch holds.
    """
    records = data.get_detection_dataset_dicts(register(dataset, data_root, "train"))
    if batch_size > len(records):
        raise UserError(
            f"batch of {batch_size} is larger than the training set of {len(records)} images with "
            f"annotations; set solver.batch_size to at most {len(records)}"
        )
    broken = BrokenImages([Path(record["file_name"]) for record in records], max_broken)
    images = DatasetFromList([_with_rle(record) for record in records], copy=False)
    rank, world = distributed.rank(), distributed.world_size()
    sampler = PositionSampler(len(records), seed, batch_size, rank, world)
    sampler.skip(start // world)
    # Not detectron2's own: that gives another order for another number of workers.
    return DataLoader(
        PositionSeeded(TrainingImages(images, mapper, broken), seed),
        batch_size=batch_size // world,
        sampler=sampler,
        num_workers=distributed.loading_processes(num_workers),
        collate_fn=trivial_batch_collator,
    )


class TrainingImages(Dataset):
    """Mapped records, made to go on where an image cannot be used.

    Args:
        mapper: as detectron2's `DatasetMapper`; a function of the record and the random state.
        broken: images that cannot be read, or have another size than the json says; reported and
            left out up to its limit, each replaced by the image behind it.
    """

    def __init__(
        self,
        records: Dataset,
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        broken: BrokenImages,
    ):
        self.records, self.mapper, self.broken = records, mapper, broken

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        while True:
            record = self.records[index]
            try:
                return self.mapper(record)
            except SizeMismatchError as error:
                self.broken.add(index, BrokenImage(f"{error}"))
            except DAMAGE:
                damage = _damage(record["file_name"])
                if damage is None:
                    raise
                self.broken.add(index, damage)
            index = (index + 1) % len(self)


def _damage(path: str) -> BrokenImage | None:
    """What is wrong with an image file; None if it can be read."""
    try:
        read_image(Path(path))
    except BrokenImage as error:
        return error
    return None


def _with_rle(record: dict[str, Any]) -> dict[str, Any]:
    """Rasterise polygons once, as pycocotools does for the scores.

    detectron2 crops polygons with shapely, and cannot mix them with RLE masks in one image.
    """
    size = record["height"], record["width"]
    for item in record["annotations"]:
        if isinstance(item.get("segmentation"), list):
            parts = pycocotools.mask.frPyObjects(item["segmentation"], *size)
            item["segmentation"] = pycocotools.mask.merge(parts)
    return record


def test_loader(
    dataset: str,
    data_root: str | Path,
    mapper: Any,
    max_images: int | None = None,
    num_workers: int = 0,
) -> DataLoader:
    """Validation images, each once, with or without annotations, one at a time.

    Args:
        max_images: only so many of them; the evaluator then scores these only.
    """
    name = register(dataset, data_root, "val")
    records = data.get_detection_dataset_dicts(name, filter_empty=False)[:max_images]
    return DataLoader(
        MapDataset(DatasetFromList(records, copy=False), mapper),
        batch_size=1,
        sampler=InferenceSampler(len(records)),
        num_workers=distributed.loading_processes(num_workers),
        collate_fn=trivial_batch_collator,
    )


def evaluator(dataset: str, data_root: str | Path, output_dir: str | None = None) -> COCOEvaluator:
    """detectron2's evaluator on pycocotools, boxes and masks."""
    name = register(dataset, data_root, "val")
    data.DatasetCatalog.get(name)  # fills in the class names and the map of category ids
    coco = COCOEvaluator(name, tasks=("bbox", "segm"), output_dir=output_dir, use_fast_impl=False)
    complete(coco._coco_api)
    return coco


def complete(truth: COCO) -> None:
    """Fill in what pycocotools cannot do without and users' files often lack, in place.

    That is `iscrowd` (0), `area` (of the mask, as in COCO), and annotation ids from 1 on: it takes
    a match with annotation 0 for no match, and faster-coco-eval knows ids of 64 bits only.
    """
    for number, item in enumerate(truth.dataset["annotations"], start=1):
        item["id"] = number
        item.setdefault("iscrowd", 0)
        if "area" not in item:
            item["area"] = float(pycocotools.mask.area(truth.annToRLE(item)))
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
