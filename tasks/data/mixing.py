"""Mixup and CutMix of whole batches, timm's, as a recipe's `model` section says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor

from mae_bench.errors import UserError


class Mixing:
    """Mixes each batch with its own reverse, and its labels with it.

    Every batch is mixed: by CutMix with probability one half where both are on, with one lambda
    per batch. Smoothing is inside the mixed targets. Draws from NumPy's global generator.

    Source: arXiv:2111.06377 Table 9; facebookresearch/mae main_finetune.py.
    """

    def __init__(self, mixup: float, cutmix: float, smoothing: float, num_classes: int):
        self._mixup = Mixup(
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            label_smoothing=smoothing,
            num_classes=num_classes,
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and labels (B,) -> mixed images and targets (B, classes).

        Raises:
            UserError: an odd number of images, of which one would be mixed with itself.
        """
        if len(images) % 2:
            raise UserError(
                f"mixup and cutmix need an even number of images per pass, not {len(images)}; "
                "change solver.batch_size (divided by processes and solver.accumulation), or set "
                "model.mixup=0 and model.cutmix=0"
            )
        # timm mixes in place; the batch may be looked at again.
        return self._mixup(images.clone(), labels)


def mixed_loss(
    classify: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    mix: Mixing | None,
    smoothing: float,
) -> Tensor:
    """Cross-entropy of a batch that is mixed first, if it is to be.

    Args:
        classify: images (B, 3, H, W) -> logits (B, classes).
        labels: (B,).
        mix: None to leave the batch as it is.
        smoothing: of the labels; mixed targets bring theirs.
    """
    if mix is None:
        return F.cross_entropy(classify(images), labels, label_smoothing=smoothing)
    images, targets = mix(images, labels)
    return F.cross_entropy(classify(images), targets)


def mixing(settings: Mapping[str, Any], num_classes: int) -> Mixing | None:
    """Return what the `model` section's mixup, cutmix and label_smoothing ask for; None for off."""
    mixup, cutmix = settings.get("mixup", 0.0), settings.get("cutmix", 0.0)
    if not (mixup or cutmix):
        return None
    return Mixing(mixup, cutmix, settings["label_smoothing"], num_classes)
