"""Scores by pycocotools, and the detections of a few images as a picture."""

from __future__ import annotations

import contextlib
import functools
import io
import math
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader

# Before detectron2: it restores names that detectron2 reads.
import backbones.detectron2  # isort: skip  # noqa: F401
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances, read_image
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.evaluator import inference_context
from detectron2.structures import BoxMode, Instances

from mae_bench.job import Job, write_atomically
from mae_bench.records import Metric, Picture
from tasks import distributed
from tasks.detection.data import register
from tasks.detection.picture import Detections, draw

PICTURE_FILE = "detections.png"
NUM_PICTURES = 4
PICTURE_SCORE = 0.3
# detectron2's name of a score -> ours, after "box_" or "mask_".
SCORES = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "APs": "ap_small",
    "APm": "ap_medium",
    "APl": "ap_large",
}


class Progress(DatasetEvaluator):
    """Tells the job how many images are done."""

    def __init__(self, job: Job, total: int):
        self.job, self.total, self.done = job, total, 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self.done += len(inputs)
        if distributed.is_main():
            self.job.report("evaluate", self.done, self.total)


def evaluate(job: Job, cfg: DictConfig, model: nn.Module) -> dict[str, dict[str, float]]:
    """Score the validation images once with pycocotools; "bbox" and "segm" -> score -> AP.

    Several processes share the images; only the main one has results.
    """
    loader = instantiate(cfg.dataloader.test)
    cfg.dataloader.evaluator.output_dir = str(job.folder / "inference")
    # pycocotools prints its table; it belongs to the results.
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        coco = instantiate(cfg.dataloader.evaluator)
        evaluators = [_only(coco, loader), Progress(job, len(loader))]
        results = inference_on_dataset(model, loader, evaluators)
    if distributed.is_main():
        write_atomically(job.folder / "inference" / "pycocotools.txt", printed.getvalue())
    return results


def _only(coco: COCOEvaluator, loader: DataLoader) -> COCOEvaluator:
    """Score against the images of the loader and no others (smoke runs read a few)."""
    ids = [record["image_id"] for record in loader.dataset._dataset]
    coco.evaluate = functools.partial(coco.evaluate, img_ids=ids)
    return coco


def metrics_of(results: Mapping[str, Mapping[str, float]]) -> dict[str, Metric]:
    """detectron2's results -> our metrics, in percent.

    A size class without any object has no score and is left out. A detector that found nothing at
    all has 0, where detectron2 says NaN.
    """
    metrics = {}
    for kind, prefix in (("bbox", "box"), ("segm", "mask")):
        for theirs, ours in SCORES.items():
            value = results[kind][theirs]
            if math.isnan(value):
                if theirs in {"APs", "APm", "APl"}:
                    continue
                value = 0.0
            metrics[f"{prefix}_{ours}"] = Metric(value=value, unit="AP")
    return metrics


def per_class(results: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Box and mask AP of each class; those without an object in the split are left out."""
    return {
        prefix: {
            key.removeprefix("AP-"): value
            for key, value in results[kind].items()
            if key.startswith("AP-") and not math.isnan(value)
        }
        for kind, prefix in (("bbox", "box_ap"), ("segm", "mask_ap"))
    }


def picture(job: Job, cfg: DictConfig, model: nn.Module) -> Picture:
    """Draw the first validation images that have objects: truth above, predictions below."""
    loader = instantiate(cfg.dataloader.test)
    records = loader.dataset._dataset
    chosen = [i for i in range(len(records)) if records[i]["annotations"]][:NUM_PICTURES]
    classes = MetadataCatalog.get(register(**_where(cfg), split="val")).thing_classes
    truths, found, images = [], [], []
    with inference_context(model), torch.no_grad():
        for index in chosen:
            record = records[index]
            images.append(read_image(record["file_name"], "RGB"))
            truths.append(_truth(record))
            instances = model([loader.dataset[index]])[0]["instances"].to("cpu")
            found.append(_found(instances[instances.scores >= PICTURE_SCORE]))
    write_atomically(job.folder / PICTURE_FILE, draw(images, truths, found, classes))
    caption = (
        f"{job.run.dataset} validation images: truth above, predictions with a score of at least "
        f"{PICTURE_SCORE} below ({job.run.init}, seed {job.run.seed})"
    )
    return Picture(path=PICTURE_FILE, caption=caption)


def _where(cfg: DictConfig) -> dict[str, str]:
    test = cfg.dataloader.test
    return dict(dataset=test.dataset, data_root=test.data_root)


def _truth(record: dict[str, Any]) -> Detections:
    size, objects = (record["height"], record["width"]), record["annotations"]
    for item in objects:
        item["bbox"], item["bbox_mode"] = (
            BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS),
            BoxMode.XYXY_ABS,
        )
    truth = annotations_to_instances(objects, size, mask_format="bitmask")
    return Detections(
        boxes=truth.gt_boxes.tensor.numpy(),
        masks=truth.gt_masks.tensor.numpy(),
        labels=truth.gt_classes.tolist(),
    )


def _found(instances: Instances) -> Detections:
    return Detections(
        boxes=instances.pred_boxes.tensor.numpy(),
        masks=instances.pred_masks.numpy(),
        labels=instances.pred_classes.tolist(),
        scores=instances.scores.tolist(),
    )
