"""A small labelled set on disk, and jobs of the classification tasks on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mae_bench.job import Job
from mae_bench.recipes import load_recipe
from mae_bench.records import Outcome, Run
from tasks import TASKS

# Small and short: 16 px are four patches of the miniature's encoder.
SHORT: dict[str, Any] = {
    "data.image_size": 16,
    "solver.batch_size": 8,
    "solver.iterations": 6,
    "solver.warmup_iterations": 2,
}


def write_set(root: Path, train: int = 8, val: int = 5, classes: int = 3, size: int = 24) -> Path:
    """`{train,val}/<class>/*.png`, where a class is a colour with noise."""
    noise = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            colour = np.eye(3)[label % 3] * 120 + 20 * label
            for number in range(count):
                pixels = colour + noise.uniform(0, 60, (size, size, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def job_on(
    data: Path | str,
    folder: Path,
    recipe: str = "classification/mini_finetune",
    backbone: str = "vit_mini_patch8",
    seed: int = 0,
    **overrides: Any,
) -> Job:
    """A job on a folder of images; overrides have "__" for the dot of a recipe's key."""
    task = recipe.partition("/")[0]
    short = SHORT if task == "classification" else {"data.image_size": 16}
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    run = Run(
        task=task,
        task_version=1,
        dataset=data if isinstance(data, str) else f"imagefolder:{data}",
        data_fingerprint="f",
        backbone=backbone,
        init="random",
        recipe=recipe,
        recipe_values=load_recipe(recipe, {**short, **given}, backbone=backbone),
        seed=seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return Job(run, folder, folder)


def run_on(data: Path | str, folder: Path, *arguments: Any, **overrides: Any) -> Outcome:
    """Run such a job on one thread."""
    torch.set_num_threads(1)
    job = job_on(data, folder, *arguments, **overrides)
    return TASKS[job.run.task](job)
