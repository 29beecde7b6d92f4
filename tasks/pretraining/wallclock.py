"""What a pretraining costs: time, beside the same with mask tokens in the encoder (Table 2), and
FLOPs, beside the same without (Table 1c).

Both are trained in turn, a step of one and a step of the other on the same images, so that
whatever else the machine does hits both. Times are of steps, without loading; they are measured,
and differ a little each time. FLOPs are torch's count of one image's step.

Source: arXiv:2111.06377 Tables 1(c) and 2. Differs: the paper measures whole trainings (and
extrapolates one from ten epochs), here all are extrapolated from a few steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from mmengine.device import get_device
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mae_bench.job import Job
from mae_bench.records import Metric, Outcome
from tasks import engine
from tasks.data.images import labelled_sets
from tasks.engine.acceleration import optim_wrapper
from tasks.pretraining.mae import build

# What the others are compared with: the first line of the table.
BASELINE = {"encoder_mask_tokens": True, "decoder_depth": 8}
WARMUP = 2


def run(job: Job) -> Outcome:
    """Time steps; score the speed-up, the hours of the recipe's epochs, and the relative FLOPs.

    Raises:
        Stopped: the job was asked to stop; there is nothing to continue, a later call starts anew.
    """
    data, solver = job.recipe["data"], job.recipe["solver"]
    engine.seed_all(job.run.seed, 0)
    train_set, _, _ = labelled_sets(job.run.dataset, job.data_root, data)
    some = [train_set[i % len(train_set)]["images"] for i in range(solver["batch_size"])]
    images = torch.stack(some).to(get_device())
    model = job.recipe["model"]
    steps = [_step(job, {**model, **BASELINE}, images), _step(job, model, images)]
    seconds = []
    for number in range(WARMUP + solver["iterations"]):
        seconds.append([step() for step in steps])
        job.report("measure", number + 1, WARMUP + solver["iterations"])
    baseline, own = (statistics.median(times) for times in zip(*seconds[WARMUP:], strict=True))
    without = {**model, "encoder_mask_tokens": False}
    flops = [_flops(job, one, images[:1]) for one in (model, without)]
    hours = own / solver["batch_size"] * len(train_set) * solver["epochs"] / 3600
    return Outcome(
        metrics={
            "hours": Metric(value=hours, unit="h", higher_is_better=False),
            "speedup": Metric(value=baseline / own, unit="x"),
            "relative_flops": Metric(value=flops[0] / flops[1], unit="x", higher_is_better=False),
        },
        images_per_second=solver["batch_size"] / own,
        facts={
            "device": str(images.device),
            "threads": torch.get_num_threads(),
            "seconds_of_steps": [times[1] for times in seconds[WARMUP:]],
            "seconds_of_baseline_steps": [times[0] for times in seconds[WARMUP:]],
            "training_images": len(train_set),
        },
    )


def _flops(job: Job, model: dict[str, Any], image: Tensor) -> int:
    """FLOPs of training on one image; attention is counted as the products that it is made of."""
    mae = build(job.run.backbone, job.recipe["data"], model, None).to(image.device)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mae(image, mode="loss")["loss"].backward()
    return counter.get_total_flops()


def _step(job: Job, model: dict[str, Any], images: Tensor) -> Callable[[], float]:
    """Build a masked autoencoder; a call trains it for a step and returns the seconds."""
    solver = job.recipe["solver"]
    mae = build(job.run.backbone, job.recipe["data"], model, None).to(images.device)
    trained = [parameter for parameter in mae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, solver["base_lr"], solver["betas"], fused=True)
    wrapper = optim_wrapper(optimizer, solver["amp"], images.device.type, accumulation=1)

    def step() -> float:
        started = time.perf_counter()
        # Reading the loss waits for a GPU to be done; the update of the last step is in the next.
        mae.train_step({"images": images}, wrapper)["loss"].item()
        return time.perf_counter() - started

    return step
