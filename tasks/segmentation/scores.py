"""Scores over a validation set: mmseg's metric, each image once, at full precision.

Shapes: H W px of an image, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import mmcv
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmseg.datasets import BaseSegDataset
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder

from mae_bench.job import Job
from mae_bench.records import Metric
from tasks.segmentation.picture import Example

NUM_PICTURES = 4


@dataclass(frozen=True)
class Scores:
    """Percent over the whole set; NaN marks a class that neither truth nor prediction has.

    Such a class does not count in the means, as in mmseg's own metric.
    """

    aacc: float
    iou: list[float]
    acc: list[float]

    def metrics(self) -> dict[str, Metric]:
        """The run's metrics."""
        return {
            "miou": Metric(value=float(np.nanmean(self.iou)), unit="mIoU"),
            "macc": Metric(value=float(np.nanmean(self.acc)), unit="%"),
            "aacc": Metric(value=self.aacc, unit="%"),
        }


@torch.no_grad()
def evaluate(
    job: Job, model: EncoderDecoder, dataset: BaseSegDataset, metric: IoUMetric
) -> tuple[Scores, list[Example]]:
    """Score every image of the dataset once, at its original resolution.

    Areas are summed in float64: mmseg sums float32 and rounds to two decimals, which a set of
    ADE20K's size no longer bears.

    Returns:
        the scores, and the same few images of every run for the picture.
    """
    model.eval()
    metric.dataset_meta = dataset.metainfo
    shown = set(np.linspace(0, len(dataset) - 1, NUM_PICTURES).round().astype(int).tolist())
    examples = []
    for index in range(len(dataset)):
        sample = model.val_step(pseudo_collate([dataset[index]]))[0].to_dict()
        metric.process({}, [sample])
        if index in shown:
            truth, prediction = (
                sample[key]["data"][0].cpu().numpy() for key in ("gt_sem_seg", "pred_sem_seg")
            )
            examples.append(Example(mmcv.imread(sample["img_path"])[..., ::-1], truth, prediction))
        job.report("evaluate", index + 1, len(dataset))
    return score(metric), examples


def score(metric: IoUMetric) -> Scores:
    """Turn the areas that mmseg's metric has collected into percent."""
    areas = [sum(area.double() for area in column) for column in zip(*metric.results, strict=True)]
    ratios = metric.total_area_to_metrics(*areas, metric.metrics)
    iou, acc = (list(map(float, ratios[key] * 100)) for key in ("IoU", "Acc"))
    return Scores(aacc=float(ratios["aAcc"]) * 100, iou=iou, acc=acc)
