"""Scores over a validation set: each image once, at its original resolution and full precision.

Shapes: H W px of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mmcv
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmseg.datasets import BaseSegDataset
from torch.utils.data import DataLoader, Subset

from mae_bench.records import Metric
from tasks import distributed
from tasks.data.maps import IGNORED
from tasks.segmentation.picture import Example

NUM_PICTURES = 4


@dataclass(frozen=True)
class Scores:
    """Percent over the whole set, from its confusion matrix (truth, prediction).

    As in mmseg's metric, which the published numbers are of: a class that neither truth nor
    prediction has is NaN and counts in no mean; one that is only predicted has an IoU of 0, which
    counts, and no accuracy.
    """

    aacc: float
    iou: list[float]
    acc: list[float]

    @classmethod
    def of(cls, confusion: np.ndarray) -> Scores:
        """From whole numbers (K, K)."""
        right, truth, predicted = (
            area.astype(float)
            for area in (confusion.diagonal(), confusion.sum(1), confusion.sum(0))
        )
        with np.errstate(invalid="ignore"):
            iou, acc = right / (truth + predicted - right), right / truth
            aacc = right.sum() / truth.sum()
        return cls(float(aacc) * 100, (iou * 100).tolist(), (acc * 100).tolist())

    @property
    def miou(self) -> float:
        """Mean over the classes that occur."""
        return float(np.nanmean(self.iou))

    def metrics(self) -> dict[str, Metric]:
        """The run's metrics."""
        return {
            "miou": Metric(value=self.miou, unit="mIoU"),
            "macc": Metric(value=float(np.nanmean(self.acc)), unit="%"),
            "aacc": Metric(value=self.aacc, unit="%"),
        }


def confusion(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each true class (row) that were given each class (column), (K, K) of int64.

    Args:
        truth: labels (H, W), 255 where nothing is scored.
        prediction: classes (H, W).
    """
    known = truth != IGNORED
    pairs = truth[known].astype(np.int64) * num_classes + prediction[known]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


@torch.no_grad()
def evaluate(
    model: BaseModel,
    dataset: BaseSegDataset,
    report: Callable[[int, int], None] = lambda done, total: None,
    num_workers: int = 0,
) -> tuple[Scores, list[Example]]:
    """Score every image once, each process its share; and put the model back into its mode.

    Args:
        model: called by `test_step`.
        report: called after every image of this process with what is done of how many.

    Returns:
        the scores of all, and the same few images of every run for the picture.
    """
    training = model.training
    model.eval()
    _take_statistics_of_main(model)
    num_classes = len(dataset.metainfo["classes"])
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    shown = set(np.linspace(0, len(dataset) - 1, NUM_PICTURES).round().astype(int).tolist())
    own = range(distributed.rank(), len(dataset), distributed.world_size())
    loader = DataLoader(
        Subset(dataset, own),
        collate_fn=pseudo_collate,
        num_workers=distributed.loading_processes(num_workers),
    )
    examples = []
    for index, batch in zip(own, loader, strict=True):
        sample = model.test_step(batch)[0]
        truth, prediction = (
            part.data[0].cpu().numpy() for part in (sample.gt_sem_seg, sample.pred_sem_seg)
        )
        matrix += confusion(truth, prediction, num_classes)
        if index in shown:
            image = mmcv.imread(sample.img_path)[..., ::-1]
            examples.append((index, Example(image, truth, prediction)))
        report(own.index(index) + 1, len(own))
    model.train(training)
    total = sum(distributed.gather([matrix]))
    drawn = sorted(distributed.gather(examples), key=lambda item: item[0])
    return Scores.of(total), [example for _, example in drawn]


def _take_statistics_of_main(model: BaseModel) -> None:
    """BatchNorm's: on a CPU every process has its own, and the main one's model is saved."""
    if distributed.world_size() > 1:
        buffers = {name: buffer.cpu() for name, buffer in model.named_buffers()}
        for name, value in distributed.from_main(buffers).items():
            model.get_buffer(name).copy_(value)
