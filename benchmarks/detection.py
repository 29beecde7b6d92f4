"""Speed of detection: a training step beside detectron2's own ViTDet, and COCO evaluation.

`step` trains Mask R-CNN of the recipe `detection/vitdet` on generated images, read and jittered as
always: seconds per iteration, of these waiting for data, and peak memory, each side in a fresh
process. The other side is the same model around detectron2's own ViTDet backbone, which its main
branch has and release 0.6 lacks: put a checkout on PYTHONPATH, else ours stands alone.

`evaluation` scores detections of 5000 generated images by pycocotools and by faster-coco-eval,
compares all numbers, and takes the ratio of the clock's and of the processor's time.

    python benchmarks/detection.py step --threads 2
    python benchmarks/detection.py step --device cuda --amp bfloat16 --batch 4
    python benchmarks/detection.py evaluation
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import multiprocessing
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import nn

# Before detectron2: it restores names that detectron2 reads.
import backbones.detectron2  # isort: skip  # noqa: F401
from detectron2.config import instantiate
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.utils.events import EventStorage

from mae_bench.provenance import cpu_model
from mae_bench.recipes import load_recipe
from tasks.detection.config import lazy_config
from tasks.detection.scores import coco_scores
from tasks.detection.training import Trainer
from tasks.engine.acceleration import precision

SIDES = ("detectron2", "ours")
# COCO's: sizes of images, classes, objects in an image; and what a detector leaves of one.
SIZE, CLASSES, OBJECTS, DETECTIONS = (480, 640), 80, 7, 40
TOLERANCE = 1e-9
FRESH = multiprocessing.get_context("forkserver")


def generate(rng: np.random.Generator, images: int, detections: int) -> tuple[dict, list[dict]]:
    """An instance file of polygons and crowds, and detections that are its objects, shaken."""
    truth: dict[str, Any] = dict(images=[], annotations=[])
    truth["categories"] = [dict(id=k + 1, name=f"class {k}") for k in range(CLASSES)]
    found: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        height, width = SIZE
        name = f"{image:012}.jpg"
        truth["images"].append(dict(id=image, height=height, width=width, file_name=name))
        sides = np.exp(rng.uniform(np.log(10), np.log(300), (OBJECTS, 2)))
        corners = rng.uniform(0, 1, (OBJECTS, 2)) * (np.array([width, height]) - sides)
        labels = rng.integers(1, CLASSES + 1, OBJECTS)
        for box, label in zip(np.hstack([corners, sides]).tolist(), labels.tolist(), strict=True):
            item = dict(id=len(truth["annotations"]) + 1, image_id=image, category_id=label)
            item |= dict(bbox=box, area=box[2] * box[3], iscrowd=int(rng.random() < 0.02))
            item["segmentation"] = rle(box) if item["iscrowd"] else [polygon(box)]
            truth["annotations"].append(item)
        for index in rng.integers(0, OBJECTS, detections):
            shaken = np.hstack([corners[index], sides[index]]) * rng.normal(1, 0.1, 4)
            box = np.maximum(shaken, [0, 0, 2, 2]).tolist()
            label = labels[index] if rng.random() < 0.7 else rng.integers(1, CLASSES + 1)
            one = dict(image_id=image, category_id=int(label), bbox=box, score=rng.random())
            found.append({**one, "segmentation": rle(box)})
    return truth, found


def polygon(box: list[float]) -> list[float]:
    """An octagon in a box."""
    x, y, w, h = box
    angles = np.arange(8) * math.pi / 4
    points = [x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))]
    return np.stack(points, 1).ravel().tolist()


def rle(box: list[float]) -> dict[str, Any]:
    """The octagon's run-length code."""
    (code,) = pycocotools.mask.frPyObjects([polygon(box)], *SIZE)
    return {**code, "counts": code["counts"].decode()}


# --- evaluation ------------------------------------------------------------------------------


def evaluation(options: argparse.Namespace) -> dict[str, Any]:
    """Time both evaluators in turn on the same detections.

    Raises:
        SystemExit: their numbers differ.
    """
    truth, found = generate(np.random.default_rng(0), options.images, options.detections)
    ids = [image["id"] for image in truth["images"]]
    taken: dict[str, list[tuple[float, float]]] = {"pycocotools": [], "faster-coco-eval": []}
    for _ in range(options.repeats):
        results = {}
        for name, times in taken.items():
            started = time.perf_counter(), time.process_time()
            results[name] = coco_scores(truth, found, ids, fast=name != "pycocotools")
            times.append((time.perf_counter() - started[0], time.process_time() - started[1]))
        apart = difference(*results.values())
        if apart > TOLERANCE:
            raise SystemExit(f"scores differ by {apart}, {TOLERANCE} is allowed")
    slow, fast = (statistics.median(clock for clock, _ in times) for times in taken.values())
    busy = [statistics.median(processor for _, processor in times) for times in taken.values()]
    print(
        f"{options.images} images, {len(truth['annotations'])} objects, {len(found)} detections, "
        f"boxes and masks: pycocotools {slow:.1f} s, faster-coco-eval {fast:.1f} s, ratio "
        f"{fast / slow:.2f} (processor {busy[1] / busy[0]:.2f}), difference {apart:.1e}"
    )
    return {"seconds": taken, "ratio": fast / slow, "processor_ratio": busy[1] / busy[0]}


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of any score; NaN must meet NaN."""
    pairs = [(one[kind][name], other[kind][name]) for kind in one for name in one[kind]]
    return max(0.0 if math.isnan(a) and math.isnan(b) else abs(a - b) for a, b in pairs)


# --- a training step -------------------------------------------------------------------------


def write_set(root: Path, images: int = 16) -> None:
    """A data set in COCO's format, as photographs: smooth noise of 640 x 480."""
    rng = np.random.default_rng(0)
    truth, _ = generate(rng, images, 0)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        (root / split / "_annotations.coco.json").write_text(json.dumps(truth))
        for image in truth["images"]:
            coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
            coarse.resize(SIZE[::-1]).save(root / split / image["file_name"], quality=90)


def build(side: str, options: argparse.Namespace, data: str) -> tuple[DictConfig, nn.Module]:
    """The recipe's config and model, with one of the two backbones."""
    keys = {"data.image_size": options.size, "solver.batch_size": options.batch}
    keys |= {"data.num_workers": options.workers}
    recipe = load_recipe("detection/vitdet", keys, backbone=options.backbone, init="mae")
    config = lazy_config(recipe, backbone=options.backbone, dataset=f"coco-format:{data}")
    config = DictConfig(config, flags={"allow_objects": True})
    model = instantiate(config.model)
    if side == "detectron2":
        model.backbone = their_backbone(model.backbone.encoder, recipe)
    return config, model.to(options.device)


def their_backbone(ours: nn.Module, recipe: dict[str, Any]) -> nn.Module:
    """detectron2's ViTDet of the same size, windows and drop path."""
    from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT

    model, size, depth = recipe["model"], recipe["data"]["image_size"], ours.depth
    whole = set(model["global_blocks"] or range(depth // 4 - 1, depth, depth // 4))
    net = ViT(
        img_size=size,
        patch_size=ours.patch_size,
        embed_dim=ours.embed_dim,
        depth=depth,
        num_heads=ours.blocks[0].attn.num_heads,
        drop_path_rate=model["drop_path"],
        window_size=model["window_size"],
        window_block_indexes=[k for k in range(depth) if k not in whole],
        use_rel_pos=model["relative_positions"] == "decomposed",
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        residual_block_indexes=[],
        out_feature="last_feat",
    )
    return SimpleFeaturePyramid(
        net,
        in_feature="last_feat",
        out_channels=model["fpn_channels"],
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        norm="LN",
        square_pad=size,
    )


def train(side: str, options: argparse.Namespace, data: str) -> dict[str, float]:
    """A few steps in this process; the first does not count."""
    torch.set_num_threads(options.threads)
    config, model = build(side, options, data)
    config.optimizer.params.model = model
    dtype = precision(options.amp, options.device)
    scaler = torch.amp.GradScaler(options.device, enabled=dtype == torch.float16)
    loader, optimizer = instantiate(config.dataloader.train), instantiate(config.optimizer)
    trainer = Trainer(model, loader, optimizer, 0, 1, dtype, scaler)
    seconds, waited = [], []
    with EventStorage() as trainer.storage:
        for trainer.iter in range(options.repeats + 1):
            started = time.perf_counter()
            trainer.run_step()
            if options.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
            waited.append(trainer.storage.latest()["data_time"][0])
            trainer.storage.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if options.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {
        "seconds": statistics.median(seconds[1:]),
        "data_seconds": statistics.median(waited[1:]),
        "peak_mb": peak / 1e6,
        "backbone_parameters": sum(p.numel() for p in model.backbone.parameters()),
    }


def in_fresh_process(target: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, so that memory is not another's."""
    with FRESH.Pool(1) as pool:
        return pool.apply(target, arguments)


def step(options: argparse.Namespace) -> dict[str, Any]:
    """Time a step of each side, detectron2's where it is there."""
    has_theirs = importlib.util.find_spec("detectron2.modeling.backbone.vit") is not None
    if not has_theirs:
        print("this detectron2 has no ViTDet (its main branch has); ours alone")
    with tempfile.TemporaryDirectory() as folder:
        write_set(Path(folder))
        rows = {
            side: in_fresh_process(train, side, options, folder)
            for side in (SIDES if has_theirs else SIDES[1:])
        }
    print("backbone     s/iteration  of these data  peak MB  backbone parameters")
    for side, row in rows.items():
        print(
            f"{side:11} {row['seconds']:12.2f} {row['data_seconds']:14.3f} {row['peak_mb']:8.0f} "
            f"{row['backbone_parameters']:20,}"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parts = parser.add_subparsers(dest="part", required=True)
    training = parts.add_parser("step")
    training.add_argument("--backbone", default="vit_base_patch16")
    training.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    training.add_argument("--size", type=int, help="pixels; default 512 on a CPU, 1024 on a GPU")
    training.add_argument("--batch", type=int, default=1)
    training.add_argument("--amp", choices=("bfloat16", "float16"))
    training.add_argument("--workers", type=int, default=0)
    training.add_argument("--repeats", type=int, default=5)
    training.add_argument("--threads", type=int, default=torch.get_num_threads())
    scoring = parts.add_parser("evaluation")
    scoring.add_argument("--images", type=int, default=5000)
    scoring.add_argument("--detections", type=int, default=DETECTIONS, help="of each image")
    scoring.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.part == "step":
        options.size = options.size or (512 if options.device == "cpu" else 1024)
    rows = step(options) if options.part == "step" else evaluation(options)
    if options.out:
        facts = {key: value for key, value in vars(options).items() if key != "out"}
        facts |= {"machine": cpu_model(), "torch": torch.__version__}
        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name()
        facts["python"] = platform.python_version()
        options.out.write_text(json.dumps({"settings": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
