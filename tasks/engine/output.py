"""What a pretraining says of itself: in the header of its checkpoint, in its record."""

from __future__ import annotations

import json

from torch.utils.data import Dataset

from backbones.vit import VisionTransformer
from mae_bench.job import Job
from tasks.engine.schedules import duration
from tasks.engine.training import Trained


def header(job: Job) -> dict[str, str]:
    """What the header of a pretrained checkpoint says of the run that made it."""
    return {
        "backbone": job.run.backbone,
        "init": job.run.init,
        "run": job.run.id,
        "recipe": json.dumps(job.recipe),
    }


def pretraining_facts(
    job: Job, encoder: VisionTransformer, dataset: Dataset, trained: Trained
) -> dict[str, object]:
    """What a pretraining's record notes beside its score: size, data and how often it was seen."""
    solver, size = job.recipe["solver"], len(dataset)  # type: ignore[arg-type]
    return {
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "training_images": size,
        "epochs": duration(solver, size)[0] * solver["batch_size"] / size,
        **trained.facts,
    }
