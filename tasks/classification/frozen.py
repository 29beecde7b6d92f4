"""Frozen features without a trained head: nearest neighbours, and classifiers of a few images.

Cheap companions of the linear probe: one pass over the images, no lr to choose.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.device import get_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from backbones.load_report import fingerprint
from backbones.vit import VisionTransformer
from mae_bench.job import Job
from mae_bench.records import Metric, Outcome
from tasks import distributed, engine
from tasks.classification import load_encoder
from tasks.classification.checks import check_classes
from tasks.classification.features import few, few_shot, nearest_neighbours
from tasks.classification.model import check_encoder, pooled
from tasks.data.images import labelled_sets


def run(job: Job) -> Outcome:
    """Score k-NN, and for every number of `model.shots` the mean over `model.draws` of few images.

    All in percent: top-1, and the mean over classes beside that of k-NN.
    """
    data, settings = job.recipe["data"], job.recipe["model"]
    engine.seed_all(job.run.seed, 0)
    train_set, val_set, classes = labelled_sets(job.run.dataset, job.data_root, data)
    check_classes(job.run.dataset, classes, train_set.labels, val_set.labels)
    encoder, loaded = load_encoder(job)
    check_encoder(encoder, settings["pool"])
    distributed.start()
    encoder.requires_grad_(False).eval().to(get_device())
    features, labels = extract(encoder, train_set, job)
    queries, truth = extract(encoder, val_set, job)
    votes = nearest_neighbours(
        features,
        labels,
        queries,
        len(classes),
        settings["neighbours"],
        settings["temperature"],
    )
    scored = engine.count(votes, truth, len(classes))
    metrics = {f"knn_{name}": metric for name, metric in scored.metrics().items()}
    facts: dict[str, object] = {}
    for shots in settings["shots"]:
        scores = list(_few_shot_scores(job, shots, features, labels, queries, truth))
        metrics[f"low_shot_{shots}_top1"] = Metric(value=statistics.fmean(scores), unit="%")
        facts[f"low_shot_{shots}_draws"] = scores
    return Outcome(
        metrics=metrics,
        facts={
            "classes": len(classes),
            "training_images": len(train_set),
            "validation_images": len(val_set),
            **loaded,
            "fingerprint_after_scoring": fingerprint(encoder.state_dict()),
            **facts,
        },
    )


def _few_shot_scores(
    job: Job, shots: int, features: Tensor, labels: Tensor, queries: Tensor, truth: Tensor
) -> Iterator[float]:
    """Top-1 of each draw of a few images; all encoders of one seed get the same images."""
    num_classes = 1 + int(max(labels.max(), truth.max()))
    for draw in range(job.recipe["model"]["draws"]):
        some = few(labels, shots, job.run.seed, 4, shots, draw)
        found = few_shot(features[some], labels[some], queries, num_classes)
        yield engine.count(found, truth, num_classes).top1
        if distributed.is_main():
            job.report("evaluate", draw + 1, job.recipe["model"]["draws"])


@torch.no_grad()
def extract(encoder: VisionTransformer, dataset: Dataset, job: Job) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of a set, in its order, on the CPU in fp32.

    Each process computes its share; all of them get everything.
    """
    solver: dict[str, Any] = job.recipe["solver"]
    size, world = len(dataset), distributed.world_size()  # type: ignore[arg-type]
    loader = DataLoader(
        Subset(dataset, range(distributed.rank(), size, world)),
        batch_size=solver["batch_size"],
        num_workers=distributed.loading_processes(solver["num_workers"]),
    )
    device, pieces = get_device(), []
    for step, batch in enumerate(loader):
        with engine.autocast(solver["amp"], torch.device(device).type):
            found = pooled(encoder, batch["images"].to(device), job.recipe["model"]["pool"])
        pieces.append((found.float().cpu(), batch["labels"]))
        if distributed.is_main():
            job.report("evaluate", step + 1, len(loader))
    shares = distributed.gather([[torch.cat(part) for part in zip(*pieces, strict=True)]])
    whole = [torch.empty(size, *part.shape[1:], dtype=part.dtype) for part in shares[0]]
    for rank, share in enumerate(shares):
        for everything, part in zip(whole, share, strict=False):
            everything[rank::world] = part
    return whole[0], whole[1]
