"""Detections beside the truth as a picture: boxes, masks, names and scores on enlarged images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from omegaconf import DictConfig
from torch import nn

# Before detectron2: it restores names that detectron2 reads.
import backbones.detectron2  # isort: skip  # noqa: F401
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances, read_image
from detectron2.evaluation.evaluator import inference_context
from detectron2.structures import BoxMode, Instances

from mae_bench.job import Job, write_atomically
from mae_bench.records import Picture
from tasks.detection.data import register

PICTURE_FILE = "detections.png"
NUM_PICTURES = 4
PICTURE_SCORE = 0.3
INCHES_PER_IMAGE = 2.6
DPI = 130


@dataclass(frozen=True)
class Detections:
    """Objects of one image.

    Attributes:
        boxes: (N, 4) as x0, y0, x1, y1 in pixels.
        masks: (N, H, W) bool.
        labels: N class indices.
        scores: N scores; None for the truth.
    """

    boxes: np.ndarray
    masks: np.ndarray
    labels: Sequence[int]
    scores: Sequence[float] | None = None


def draw(
    images: Sequence[np.ndarray],
    truths: Sequence[Detections],
    found: Sequence[Detections],
    classes: Sequence[str],
) -> bytes:
    """Return a PNG with the truth in the upper row and what was found in the lower one.

    Args:
        images: (H, W, 3) uint8, RGB.
    """
    count = len(images)
    figure = Figure(figsize=(INCHES_PER_IMAGE * count, INCHES_PER_IMAGE * 2.08), dpi=DPI)
    grid = figure.subplots(2, count, squeeze=False, gridspec_kw=dict(wspace=0.04, hspace=0.04))
    for row, title, detections in ((0, "truth", truths), (1, "predicted", found)):
        for axes, image, objects in zip(grid[row], images, detections, strict=True):
            _draw_image(axes, image, objects, classes)
        grid[row][0].set_ylabel(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.05)
    return buffer.getvalue()


def _draw_image(axes: Axes, image: np.ndarray, objects: Detections, classes: Sequence[str]) -> None:
    height, width = image.shape[:2]
    axes.imshow(image, interpolation="bicubic", extent=(0, width, height, 0))
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    for side in axes.spines.values():
        side.set_visible(False)
    palette = matplotlib.colormaps["tab10" if len(classes) <= 10 else "hsv"]
    for index, (box, mask, label) in enumerate(
        zip(objects.boxes, objects.masks, objects.labels, strict=True)
    ):
        colour = palette(label if len(classes) <= 10 else label / len(classes))
        _draw_mask(axes, mask, colour)
        x0, y0, x1, y1 = box
        axes.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.4)
        )
        score = "" if objects.scores is None else f" {objects.scores[index]:.2f}"
        # Boxes at the upper edge carry their name inside.
        above = y0 > 0.08 * height
        axes.text(
            x0,
            y0,
            classes[label] + score,
            fontsize=7,
            color="white",
            verticalalignment="bottom" if above else "top",
            bbox=dict(facecolor=colour, edgecolor="none", pad=1.0, alpha=0.9),
            clip_on=True,
            parse_math=False,  # a class may have dollars in its name
        )


def _draw_mask(axes: Axes, mask: np.ndarray, colour: tuple[float, ...]) -> None:
    height, width = mask.shape
    layer = np.zeros((height, width, 4))
    layer[mask] = (*colour[:3], 0.4)
    axes.imshow(layer, interpolation="nearest", extent=(0, width, height, 0))
    if mask.any() and not mask.all():
        centres_x, centres_y = np.arange(width) + 0.5, np.arange(height) + 0.5
        axes.contour(centres_x, centres_y, mask, levels=[0.5], colors=[colour], linewidths=1.0)


def picture(job: Job, cfg: DictConfig, model: nn.Module) -> Picture:
    """Draw the first validation images that have objects: truth above, predictions below."""
    loader = instantiate(cfg.dataloader.test)
    records = loader.dataset._dataset
    chosen = [i for i in range(len(records)) if records[i]["annotations"]][:NUM_PICTURES]
    classes = MetadataCatalog.get(register(**_where(cfg), split="val")).thing_classes
    truths, found, images = [], [], []
    with inference_context(model), torch.no_grad():
        for index in chosen:
            record = records[index]
            images.append(read_image(record["file_name"], "RGB"))
            truths.append(truth_of(record))
            instances = model([loader.dataset[index]])[0]["instances"].to("cpu")
            found.append(found_of(instances[instances.scores >= PICTURE_SCORE]))
    write_atomically(job.folder / PICTURE_FILE, draw(images, truths, found, classes))
    caption = (
        f"{job.run.dataset} validation images: truth above, predictions with a score of at least "
        f"{PICTURE_SCORE} below ({job.run.init}, seed {job.run.seed})"
    )
    return Picture(path=PICTURE_FILE, caption=caption)


def _where(cfg: DictConfig) -> dict[str, str]:
    test = cfg.dataloader.test
    return dict(dataset=test.dataset, data_root=test.data_root)


def truth_of(record: dict[str, Any]) -> Detections:
    """Objects of a record of detectron2's, crowds too."""
    size, objects = (record["height"], record["width"]), record["annotations"]
    for item in objects:
        item["bbox"], item["bbox_mode"] = (
            BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS),
            BoxMode.XYXY_ABS,
        )
    truth = annotations_to_instances(objects, size, mask_format="bitmask")
    return Detections(
        boxes=truth.gt_boxes.tensor.numpy(),
        masks=truth.gt_masks.tensor.numpy(),
        labels=truth.gt_classes.tolist(),
    )


def found_of(instances: Instances) -> Detections:
    """Objects that a model found."""
    return Detections(
        boxes=instances.pred_boxes.tensor.numpy(),
        masks=instances.pred_masks.numpy(),
        labels=instances.pred_classes.tolist(),
        scores=instances.scores.tolist(),
    )
