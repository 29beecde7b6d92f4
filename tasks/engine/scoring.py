"""Scores of a classifier: every sample once, at any number of processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mmengine.device import get_device
from mmengine.model import BaseModel
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from mae_bench.job import Job
from mae_bench.records import Metric
from tasks import distributed
from tasks.engine.acceleration import autocast


@dataclass(frozen=True)
class Accuracy:
    """What was right, by class.

    Attributes:
        right: (classes,) samples of each class whose largest logit was their label's.
        seen: (classes,) samples of each class.
    """

    right: Tensor
    seen: Tensor

    @property
    def top1(self) -> float:
        """Share of all samples, percent."""
        return 100.0 * int(self.right.sum()) / int(self.seen.sum())

    @property
    def mean_per_class(self) -> float:
        """Mean over the classes' own shares, percent; classes without a sample do not count."""
        there = self.seen > 0
        return 100.0 * float((self.right[there].double() / self.seen[there]).mean())

    def metrics(self, suffix: str = "") -> dict[str, Metric]:
        """Both, for a record; of a long tail, the second says how the rare classes fare."""
        return {
            f"top1{suffix}": Metric(value=self.top1, unit="%"),
            f"mean_per_class{suffix}": Metric(value=self.mean_per_class, unit="%"),
        }


def count(predictions: Tensor, labels: Tensor, num_classes: int) -> Accuracy:
    """Predicted and true labels, (N,) each -> what was right."""
    right = labels[predictions == labels]
    return Accuracy(*(torch.bincount(x.cpu(), minlength=num_classes) for x in (right, labels)))


@torch.no_grad()
def accuracy(
    model: BaseModel,
    dataset: Dataset,
    job: Job,
    batch_size: int = 64,
    amp: str | None = None,
    num_workers: int = 0,
) -> Accuracy:
    """Score a classifier on a set.

    Args:
        model: called with `mode="predict"`, returns {"logits": (B, classes)}.
        dataset: items {"images", "labels"}, as of `tasks.data.images.ImageDataset`.
        amp: as in `train`.

    Raises:
        RuntimeError: samples were left out or counted twice.
    """
    model.eval()
    _share_buffers(model)
    # Each process scores its own samples, so that every sample counts once at any world size.
    own = range(distributed.rank(), len(dataset), distributed.world_size())  # type: ignore[arg-type]
    loader = DataLoader(
        Subset(dataset, own),
        batch_size=batch_size,
        num_workers=distributed.loading_processes(num_workers),
    )
    counted = []
    for step, batch in enumerate(loader):
        batch = model.data_preprocessor(batch, training=False)
        with autocast(amp, torch.device(get_device()).type):
            logits = model(**batch, mode="predict")["logits"]
        counted.append(count(logits.argmax(dim=1), batch["labels"], logits.shape[1]))
        if distributed.is_main():
            job.report("evaluate", step + 1, len(loader))
    everything = distributed.gather(counted)
    total = Accuracy(sum(c.right for c in everything), sum(c.seen for c in everything))  # type: ignore[arg-type]
    if int(total.seen.sum()) != len(dataset):  # type: ignore[arg-type]
        raise RuntimeError(
            f"{int(total.seen.sum())} samples were scored of a set of {len(dataset)}; "  # type: ignore[arg-type]
            "each must count once"
        )
    return total


def _share_buffers(model: BaseModel) -> None:
    """Score the main process's model everywhere: running means are each process's own."""
    buffers = dict(model.named_buffers())
    if distributed.world_size() > 1 and buffers:
        for name, value in distributed.from_main({k: v.cpu() for k, v in buffers.items()}).items():
            buffers[name].copy_(value)
