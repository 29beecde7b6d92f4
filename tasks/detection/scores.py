"""Scores of a detector: pycocotools' for the record, a faster evaluator's while it is trained.

The record comes from detectron2's evaluator, with the files that it leaves. While training, the
same numbers are computed by faster-coco-eval where that is installed (extra `fast`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.utils.data import DataLoader

# Before detectron2: it restores names that detectron2 reads.
import backbones.detectron2  # isort: skip  # noqa: F401
from detectron2.config import instantiate
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, inference_on_dataset

from mae_bench.job import Job, write_atomically
from mae_bench.records import Metric
from tasks import distributed

# detectron2's name of a score -> ours, after "box_" or "mask_".
SCORES = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "APs": "ap_small",
    "APm": "ap_medium",
    "APl": "ap_large",
}
KINDS = {"bbox": "box", "segm": "mask"}
FAST = "faster_coco_eval"
Results = dict[str, dict[str, float]]


class Progress(DatasetEvaluator):
    """Tells the job how many images are done, and notes which.

    Args:
        phase: None to tell nothing.
        total: images of this process.
    """

    def __init__(self, job: Job, phase: str | None, total: int):
        self.job, self.phase, self.total = job, phase, total
        self.ids: list[int] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self.ids += [item["image_id"] for item in inputs]
        if self.phase and distributed.is_main():
            self.job.report(self.phase, len(self.ids), self.total)


def evaluate(job: Job, cfg: DictConfig, model: nn.Module) -> Results:
    """Score the validation images once with pycocotools; "bbox" and "segm" -> score -> AP.

    Several processes share the images; only the main one has results.

    Raises:
        RuntimeError: the processes together did not see every image exactly once.
    """
    loader = instantiate(cfg.dataloader.test)
    cfg.dataloader.evaluator.output_dir = str(job.folder / "inference")
    seen = Progress(job, "evaluate", len(loader))
    # pycocotools prints its table; it belongs to the results.
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        coco = instantiate(cfg.dataloader.evaluator)
        results = inference_on_dataset(model, loader, [_only(coco, loader), seen])
    check_seen_once(seen.ids, image_ids(loader))
    if distributed.is_main():
        write_atomically(job.folder / "inference" / "pycocotools.txt", printed.getvalue())
    classes = [category["name"] for category in coco._coco_api.dataset["categories"]]
    if len(classes) == 1:  # detectron2 has no scores by class then
        for values in results.values():
            values[f"AP-{classes[0]}"] = values["AP"]
    return results


def _only(coco: COCOEvaluator, loader: DataLoader) -> COCOEvaluator:
    """Score against the images of the loader and no others (smoke runs read a few)."""
    coco.evaluate = functools.partial(coco.evaluate, img_ids=image_ids(loader))
    return coco


def image_ids(loader: DataLoader) -> list[int]:
    """Ids of all images of a test loader, those of other processes too."""
    return [record["image_id"] for record in loader.dataset._dataset]


def check_seen_once(own: Sequence[int], expected: Sequence[int]) -> None:
    """Make sure that the images of all processes together are the expected ones, each once.

    Raises:
        RuntimeError: they are not: scores would count images twice, or leave some out.
    """
    seen = sorted(distributed.gather(own))
    if seen != sorted(expected):
        raise RuntimeError(
            f"{len(seen)} images were scored ({len(set(seen))} different ones) where "
            f"{len(expected)} were to be, each once"
        )


def metrics_of(results: Mapping[str, Mapping[str, float]]) -> dict[str, Metric]:
    """detectron2's results -> our metrics, in percent.

    A size class without any object has no score and is left out. A detector that found nothing at
    all has 0, where detectron2 says NaN.
    """
    metrics = {}
    for kind, prefix in KINDS.items():
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
        f"{prefix}_ap": {
            key.removeprefix("AP-"): value
            for key, value in results[kind].items()
            if key.startswith("AP-") and not math.isnan(value)
        }
        for kind, prefix in KINDS.items()
    }


def has_fast_evaluator() -> bool:
    """Whether faster-coco-eval is installed."""
    return importlib.util.find_spec(FAST) is not None


def coco_scores(
    truth: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    ids: Sequence[int],
    fast: bool = False,
) -> Results:
    """Score detections as detectron2's evaluator does, in memory.

    Args:
        truth: content of an instance file; annotations have `iscrowd` and `area`.
        found: COCO's form of results: image_id, category_id, bbox, score, segmentation (RLE).
        ids: of the images that count.
        fast: by faster-coco-eval instead of pycocotools; the numbers are the same.

    Returns:
        "bbox" and "segm" -> names of `SCORES` and AP-<class> -> percent, NaN where there is no
        object (and, as in detectron2, where nothing at all was found).
    """
    if not found:
        return {kind: dict.fromkeys(SCORES, math.nan) for kind in KINDS}
    api, evaluation = _fast_evaluator() if fast else (COCO, COCOeval)
    classes = sorted(truth["categories"], key=lambda category: category["id"])
    results = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for kind in KINDS:
            # Both evaluators write into what they are given, and take boxes for the areas of masks.
            left_out = {"bbox"} if kind == "segm" else {"segmentation"}
            coco = api()
            coco.dataset = {**truth, "annotations": [dict(item) for item in truth["annotations"]]}
            coco.createIndex()
            copies = [{k: v for k, v in one.items() if k not in left_out} for one in found]
            run = evaluation(coco, coco.loadRes(copies), kind)
            run.params.imgIds = list(ids)
            run.evaluate()
            run.accumulate()
            run.summarize()
            scores = dict(zip(SCORES, run.stats, strict=False))
            # Axes: IoU, recall, class, area ("all" first), detections (100 last).
            precision = run.eval["precision"][:, :, :, 0, -1]
            for index, category in enumerate(classes):
                valid = precision[:, :, index][precision[:, :, index] > -1]
                scores[f"AP-{category['name']}"] = valid.mean() if valid.size else -1
            results[kind] = {
                name: float(100 * score) if score > -1 else math.nan
                for name, score in scores.items()
            }
    return results


def _fast_evaluator() -> tuple[Any, Any]:
    from faster_coco_eval import COCO as FastCOCO
    from faster_coco_eval import COCOeval_faster

    return FastCOCO, COCOeval_faster
