"""What a pretraining says of itself: in the header of its checkpoint, in its record."""

from __future__ import annotations

import json

from torch.utils.data import Dataset

from backbones.vit import VisionTransformer
from mae_bench.job import Job
from mae_bench.provenance import code_version, packages
from mae_bench.records import content_hash
from tasks.engine.schedules import duration
from tasks.engine.training import Trained


def header(job: Job) -> dict[str, str]:
    """What the header of a pretrained checkpoint says of the run that made it.

    The recipe and its hash, the data, the weights it started from, the code and the packages; no
    date, so that the same run of the same code writes the same file again.
    """
    run = job.run
    commit, dirty = code_version()
    upstream = {role: weights.model_dump() for role, weights in run.upstream.items()}
    return {
        "backbone": run.backbone,
        "init": run.init,
        "run": run.id,
        "task": f"{run.task} (version {run.task_version})",
        "seed": str(run.seed),
        "recipe": json.dumps(job.recipe),
        "recipe_hash": content_hash(job.recipe),
        "dataset": run.dataset,
        "data_fingerprint": run.data_fingerprint,
        "upstream": json.dumps(upstream),
        "commit": f"{commit or 'unknown'}{' with changes' if dirty else ''}",
        "packages": json.dumps(packages()),
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
