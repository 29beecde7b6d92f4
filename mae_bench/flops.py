"""What a training computes, from its recipe alone: multiply-adds per image, parameters. No torch.

Counted are matrix products and convolutions, which is all that takes time; norms, softmax, losses
and the sorting out of proposals are left out. Tests hold the formulas against torch's own counter.

Letters: D encoder width, L patches, p patch size, C channels of a neck or head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from backbones.architectures import ARCHITECTURES, Architecture
from mae_bench.records import Run
from tasks.data.extent import LARGEST_SIDE, Extent

FLOPS_PER_MULTIPLY_ADD = 2
# The backward pass computes two products, for inputs and for weights, per product of the forward.
BACKWARD = 2
# Training images as published, for plans on a machine that lacks the data.
NUM_TRAIN = {
    "imagenet": 1_281_167,
    "coco": 118_287,
    "ade20k": 20_210,
    "inat2017": 579_184,
    "inat2018": 437_513,
    "inat2019": 265_213,
    "places205": 2_448_873,
    "places365": 1_803_460,
}
# Published numbers of classes are small beside the layers below; one value serves all heads.
CLASSES = 100


@dataclass(frozen=True)
class Work:
    """Of one image in one forward pass.

    Attributes:
        trained, frozen: multiply-adds of layers with and without a backward pass.
        parameters: of all layers.
    """

    trained: float = 0.0
    frozen: float = 0.0
    parameters: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.trained + other.trained,
            self.frozen + other.frozen,
            self.parameters + other.parameters,
        )

    def __mul__(self, times: float) -> Work:
        return Work(times * self.trained, times * self.frozen, times * self.parameters)

    def without_gradient(self) -> Work:
        """The same layers, frozen."""
        return Work(0.0, self.trained + self.frozen, self.parameters)

    @property
    def training_flops(self) -> float:
        """Of one image in training, forward and backward."""
        return FLOPS_PER_MULTIPLY_ADD * ((1 + BACKWARD) * self.trained + self.frozen)


@dataclass(frozen=True)
class Model:
    """What is trained: the encoder, and all of it together."""

    encoder: Work
    whole: Work


def model_of(run: Run, extent: Extent | None = None) -> Model | None:
    """Return what a run trains; None where no formula knows the task or the encoder.

    Args:
        extent: of the dataset, where the recipe leaves the image size to it; without, the largest.
    """
    architecture, formula = ARCHITECTURES.get(run.backbone), FORMULAS.get(run.task)
    if architecture is None or formula is None:
        return None
    settings: Any = run.recipe_values["data"]
    if extent and settings.get("image_size", 0) is None:
        settings = {**settings, "image_size": extent.side}
    return formula(architecture, settings, run.recipe_values["model"])


def training_flops(run: Run, extent: Extent | None = None) -> float | None:
    """Return the FLOPs of a run's training; None where no formula knows it.

    Args:
        extent: of the dataset, unless it is a published one.
    """
    model, images = model_of(run, extent), training_images(run, extent)
    return None if model is None or images is None else images * model.whole.training_flops


def training_images(run: Run, extent: Extent | None = None) -> float | None:
    """Return how many images a training sees; None for epochs over a set of unknown size."""
    solver: Any = run.recipe_values["solver"]
    if solver.get("iterations") is not None:
        return float(solver["iterations"] * solver["batch_size"])
    size = NUM_TRAIN.get(run.dataset, extent.images if extent else None)
    # Without either, each image is seen once (frozen features).
    return None if size is None else float(solver.get("epochs", 1) * size)


def _layer(positions: float, fan_in: float, fan_out: float, kernel: int = 1) -> Work:
    """A convolution of `kernel` x `kernel`, or a linear layer."""
    weights = fan_in * fan_out * kernel**2
    return Work(positions * weights, 0.0, weights)


def _blocks(tokens: float, width: int, depth: int, context: float | None = None) -> Work:
    """Transformer blocks with an MLP of 4 D; `context`: tokens that one attends to."""
    weights = 12 * width**2
    attention = 2 * (tokens if context is None else context) * width
    return Work(tokens * (weights + attention), 0.0, weights) * depth


def _encoder(
    architecture: Architecture, grid: int, visible: int | None = None, tokens: int | None = None
) -> Work:
    """An encoder on grid x grid patches, of which `visible` are embedded (all by default)."""
    width = architecture.embed_dim
    visible = grid**2 if visible is None else visible
    patches = _layer(visible, 3 * architecture.patch_size**2, width)
    return patches + _blocks(tokens or 1 + visible, width, architecture.depth)


def _dense_encoder(architecture: Architecture, grid: int, model: Mapping[str, Any]) -> Work:
    """An encoder for detection, where most blocks may attend inside of windows only."""
    window, width, depth = model.get("window_size", 0), architecture.embed_dim, architecture.depth
    chosen = model.get("global_blocks")
    everywhere = depth if not window else 4 if chosen is None else len(chosen)
    patches = _layer(grid**2, 3 * architecture.patch_size**2, width)
    wide = _blocks(grid**2, width, everywhere)
    return patches + wide + _blocks(grid**2, width, depth - everywhere, context=window**2)


def _pretraining(
    architecture: Architecture, data: Mapping[str, Any], model: Mapping[str, Any]
) -> Model:
    grid, width = data["image_size"] // architecture.patch_size, model["decoder_width"]
    tokens, visible = 1 + grid**2, int(grid**2 * (1 - model["mask_ratio"]))
    predicted = grid**2 - (0 if model.get("loss_on_all_patches", False) else visible)
    everywhere = model.get("encoder_mask_tokens", False)
    encoder = _encoder(architecture, grid, visible, tokens if everywhere else None)
    whole = encoder + _layer(1 + visible, architecture.embed_dim, width)
    whole += _blocks(tokens, width, model["decoder_depth"] - 1)
    # Of the last block, tokens that are not predicted are looked at only.
    whole += _blocks(predicted, width, 1, context=tokens)
    whole += Work((tokens - predicted) * 3 * width**2)
    whole += _layer(predicted, width, 3 * architecture.patch_size**2)
    return Model(encoder, whole)


def _wallclock(
    architecture: Architecture, data: Mapping[str, Any], model: Mapping[str, Any]
) -> Model:
    """A pretraining and, in turn with it, the one that it is compared with."""
    beside = {**model, "encoder_mask_tokens": True, "decoder_depth": 8}
    own, other = (_pretraining(architecture, data, one) for one in (model, beside))
    return Model(own.encoder + other.encoder, own.whole + other.whole)


def _classification(
    architecture: Architecture, data: Mapping[str, Any], model: Mapping[str, Any]
) -> Model:
    grid, blocks = data["image_size"] // architecture.patch_size, model.get("trained_blocks")
    encoder = _encoder(architecture, grid)
    if model.get("frozen", False):
        encoder = encoder.without_gradient()
    elif blocks is not None:
        trained = _blocks(1 + grid**2, architecture.embed_dim, 1).trained * blocks
        encoder = Work(trained, encoder.trained - trained, encoder.parameters)
    return Model(encoder, encoder + _layer(1, architecture.embed_dim, CLASSES))


def _frozen(architecture: Architecture, data: Mapping[str, Any], model: Mapping[str, Any]) -> Model:
    grid = data["image_size"] // architecture.patch_size
    encoder = _encoder(architecture, grid).without_gradient()
    return Model(encoder, encoder)


def _tokenizer(
    architecture: Architecture, data: Mapping[str, Any], model: Mapping[str, Any]
) -> Model:
    """Strided convolutions to the codes and back; nothing of the encoder that will use them."""
    halvings, width, codes = int(math.log2(model["stride"])), model["width"], model["num_codes"]
    widths = [max(16, width >> (halvings - 1 - level)) for level in range(halvings)]
    cells = (data["image_size"] // model["stride"]) ** 2
    residual = (_layer(cells, width, width, 3) + _layer(cells, width, width)) * model.get(
        "depth", 0
    )
    down = residual + _layer(cells, width, width) + _layer(cells, width, codes)
    up = residual + _layer(cells, codes, width)
    up += _layer(cells * 4**halvings, widths[0], 3)
    for level, (before, after) in enumerate(zip([3, *widths], widths, strict=False)):
        down += _layer(cells * 4 ** (halvings - 1 - level), before, after, 4)
    for level, (before, after) in enumerate(
        zip(widths[::-1], [*widths[-2::-1], widths[0]], strict=True)
    ):
        # A transposed convolution spreads every input over 4 x 4 outputs.
        up += _layer(cells * 4**level, before, after, 4)
    return Model(Work(), down + up)


def _resample(architecture: Architecture, grid: int, strides: list[float]) -> Work:
    """Transposed 2 x 2 convolutions from the patch grid to finer levels; pooling costs nothing."""
    found, width = Work(), architecture.embed_dim
    for stride in strides:
        doublings = max(round(math.log2(architecture.patch_size / stride)), 0)
        for step in range(doublings):
            found += _layer(grid**2 * 4**step, width, width, 2)
    return found


def _detection(
    architecture: Architecture, data: Mapping[str, Any], model: Mapping[str, Any]
) -> Model:
    size, channels = data["image_size"] or LARGEST_SIDE, model["fpn_channels"]
    strides, own_patch = model["strides"], architecture.patch_size
    architecture = replace(architecture, patch_size=model["patch_size"] or own_patch)
    grid = size // architecture.patch_size
    encoder = _dense_encoder(architecture, grid, model)
    cells = sum((size / stride) ** 2 for stride in strides)
    levels, anchors = len(strides), len(model["aspect_ratios"])
    neck = _resample(architecture, grid, strides)
    # One set of weights per level in the neck, one for all levels in the RPN.
    per_level = architecture.embed_dim * channels + 9 * channels**2
    neck += Work(cells * per_level, 0.0, levels * per_level)
    rpn = _layer(cells, channels, channels, 3) * model["rpn_convs"]
    rpn += _layer(cells, channels, 5 * anchors)
    return Model(encoder, encoder + neck + rpn + _roi_heads(model, channels))


def _roi_heads(model: Mapping[str, Any], channels: int) -> Work:
    """Box head on every sampled region, mask head on the quarter that may be objects."""
    boxes, masks = model["roi_samples"], model["roi_samples"] / 4
    stages = 3 if model["cascade"] else 1
    box, mask = model["box_resolution"] ** 2, model["mask_resolution"] ** 2
    found: Work = _layer(boxes * box, channels, channels, 3) * model["box_convs"]
    found += _layer(boxes, box * channels, model["box_fc"])
    found += _layer(boxes, model["box_fc"], 5 * CLASSES)
    found *= stages
    found += _layer(masks * mask, channels, channels, 3) * model["mask_convs"]
    found += _layer(masks * mask, channels, channels, 2)
    return found + _layer(masks * 4 * mask, channels, CLASSES)


def _segmentation(
    architecture: Architecture, data: Mapping[str, Any], model: Mapping[str, Any]
) -> Model:
    crop, width = data["crop_size"] or LARGEST_SIDE, architecture.embed_dim
    grid = crop // architecture.patch_size
    encoder = _encoder(architecture, grid)
    if model["freeze_backbone"]:
        encoder = encoder.without_gradient()
    scales, channels = model["scales"], model["channels"] or width
    cells = [(grid * scale) ** 2 for scale in scales]
    neck = _resample(architecture, grid, [architecture.patch_size / scale for scale in scales])
    head = _layer(sum(pool**2 for pool in model["pool_scales"]), width, channels)
    head += _layer(cells[-1], width + len(model["pool_scales"]) * channels, channels, 3)
    for level in cells[:-1]:
        head += _layer(level, width, channels) + _layer(level, channels, channels, 3)
    # Lean heads convolve every level at its own size, mmseg's all of them at the finest.
    joint = sum(cells) if model.get("lean_heads") else len(cells) * cells[0]
    head += _layer(joint / len(cells), len(cells) * channels, channels, 3)
    head += _layer(cells[0], channels, CLASSES)
    head += _layer(cells[-2], width, model["aux_channels"], 3)
    return Model(encoder, encoder + neck + head)


FORMULAS: dict[str, Callable[[Architecture, Any, Any], Model]] = {
    "tokenizer": _tokenizer,
    "pretraining": _pretraining,
    "wallclock": _wallclock,
    "supervised": _classification,
    "classification": _classification,
    "frozen": _frozen,
    "detection": _detection,
    "segmentation": _segmentation,
}
