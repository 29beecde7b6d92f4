"""What can be known before a training starts, said or refused before it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmseg.datasets import BaseSegDataset

from mae_bench.errors import UserError
from mae_bench.job import STATE_FILE, Job
from tasks import distributed
from tasks.data.verify.scan import scan_image
from tasks.segmentation.transforms import LoadLabels

# What the published runs normalise over: 8 GPUs x 2 images, synchronised.
NORM_IMAGES = 16


def check_maps(job: Job, *datasets: BaseSegDataset) -> None:
    """Read every image and map that a run will see; not again where a training continues.

    Raises:
        UserError: a missing pair, a file that cannot be read, a map that does not fit, by its name.
    """
    if (job.folder / STATE_FILE).exists() or not distributed.is_main():
        return
    for dataset in datasets:
        about = dataset.metainfo
        rules = (len(about["classes"]), about["reduce_zero_label"], about["ignore_value"])
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            checks = pool.map(partial(_check, LoadLabels(*rules)), infos)
            for done, _ in enumerate(checks, start=1):
                job.report("prepare", done, len(infos))
        finally:
            pool.shutdown(cancel_futures=True)


def _check(load: LoadLabels, info: dict[str, Any]) -> None:
    load(_with_size(info))


def _with_size(info: dict[str, Any]) -> dict[str, Any]:
    """Add an image's (height, width) as OpenCV will turn it; the image is read to its end."""
    path = info["img_path"]
    scan = scan_image(Path(path))
    if scan.size is None:
        raise UserError(f"image {path} cannot be read ({scan.error}); write it again")
    return {**info, "ori_shape": scan.size[::-1]}


def norm_images(job: Job) -> int:
    """How many images BatchNorm sees at a time; it is not synchronised between passes or on a CPU.

    Says so where these are fewer than the published runs had.

    Raises:
        UserError: a single one, whose pooled map has no variance.
    """
    solver = job.recipe["solver"]
    batch = solver["batch_size"]
    passes = solver.get("accumulation", 1) * job.accumulation
    processes = 1 if torch.cuda.is_available() else distributed.world_size()
    seen = batch // (passes * processes)
    if seen < 2:
        raise UserError(
            f"BatchNorm would see {seen} image at a time (solver.batch_size {batch} in {passes} "
            f"passes over {processes} processes); at least 2 are needed, because behind UperNet's "
            "1x1 pooling there is one value an image"
        )
    if seen < min(batch, NORM_IMAGES) and distributed.is_main():
        print(
            f"WARNING: BatchNorm sees {seen} images at a time, the published runs had "
            f"{NORM_IMAGES}: expect another score. More GPUs with fewer passes have its statistics"
        )
    return seen
