"""A tiny mini-coco, jobs and configs on it, for tests of detection."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mae_bench.job import Job
from mae_bench.recipes import load_recipe
from mae_bench.records import Outcome, Run
from tasks import data as datasets
from tasks import detection, distributed
from tasks.data.specs import SPECS
from tasks.detection import config, training

TINY = replace(SPECS["mini-coco"], num_train=10, num_val=4)
FAST = {
    "solver.iterations": 6,
    "solver.batch_size": 2,
    "solver.save_every": 3,
    "solver.warmup_iterations": 2,
    "model.fpn_channels": 32,
    "model.box_fc": 32,
}


def prepare(folder: Path) -> Path:
    """Write the tiny set and return its data root."""
    datasets.prepare("mini-coco", folder, TINY)
    return folder


def job_in(
    folder: Path, root: Path, upstream: dict[str, Path] | None = None, **overrides: Any
) -> Job:
    values = load_recipe("detection/mini", {**FAST, **overrides})
    run = Run(
        task="detection",
        task_version=1,
        dataset="mini-coco",
        data_fingerprint="tiny",
        backbone="vit_mini_patch8",
        init="random",
        recipe="detection/mini",
        recipe_values=values,
        seed=3,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return Job(run, folder, root, upstream or {})


def lazy(root: Path, **overrides: Any) -> dict[str, Any]:
    recipe = load_recipe("detection/mini", {**FAST, **overrides})
    return config.lazy_config(
        recipe, backbone="vit_mini_patch8", dataset="mini-coco", data_root=root, seed=3
    )


def composed(
    recipe: str,
    backbone: str,
    init: str = "mae",
    dataset: str = "coco",
    data_root: str | Path = "nowhere",
    **overrides: Any,
) -> dict[str, Any]:
    """The LazyConfig of any recipe of detection."""
    values = load_recipe(f"detection/{recipe}", overrides, backbone=backbone, init=init)
    return config.lazy_config(values, backbone=backbone, dataset=dataset, data_root=data_root)


def run_in(folder: Path, root: Path, die_at: int | None = None, **overrides: Any) -> Outcome:
    """Run the task; with `die_at`, be killed at the start of that step."""
    torch.set_num_threads(1)
    step = training.Trainer.run_step

    def dying(self: training.Trainer) -> None:
        if self.iter + 1 == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self)

    training.Trainer.run_step = dying
    try:
        return detection.run(job_in(folder, root, **overrides))
    finally:
        training.Trainer.run_step = step


def killed_in(folder: Path, root: Path, die_at: int, **overrides: Any) -> None:
    """Run the task in a process that is killed at the start of that step."""
    process = multiprocessing.get_context("spawn").Process(
        target=run_in, args=(folder, root, die_at), kwargs=overrides
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def run_with(folder: Path, root: Path, overrides: dict[str, Any]) -> None:
    """Run the task as one of several processes; the main one leaves its outcome."""
    outcome = run_in(folder, root, **overrides)
    if distributed.is_main():
        (folder / "outcome.json").write_text(outcome.model_dump_json())
